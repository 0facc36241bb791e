"""Long responses in Ray's object store, on the machine whose sampler made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from framework.errors import ResponsesLost
from framework.stored import StoredGroup
from framework.types import Response

INLINE_BYTES = 100 * 1024  # smaller results come to the caller anyway, with the message that they are there
TOKEN_BYTES = 12 + 6  # of a response: id, logprob and version, and about so much text


@dataclass(frozen=True)
class InStore:
    """A `stored.Place`."""

    reference: Any  # ray.ObjectRef of a Response; the driver's, so that it outlives the sampler's process

    def load(self) -> Response:
        """Fetch it; raises ResponsesLost where its machine is gone."""
        import ray

        try:
            return cast(Response, ray.get(self.reference))
        except ray.exceptions.ObjectLostError as error:
            raise ResponsesLost(f"a response is lost with its machine ({type(error).__name__})") from error


def stays_where_it_is(responses: int, max_tokens: int) -> bool:
    """Whether a group of so many responses is too long to travel with the news of it."""
    return responses * max_tokens * TOKEN_BYTES > INLINE_BYTES


def references(group: StoredGroup) -> list[Any]:
    """The references of a group's responses, for a call that is to get the responses themselves."""
    return [reference_of(response.place) for response in group.responses]


def reference_of(place: object) -> Any:
    """The reference behind a place, which must be in the store."""
    assert isinstance(place, InStore), place
    return place.reference
