"""Stored responses without Ray: places in memory, which lose what they hold on demand."""

from __future__ import annotations

from dataclasses import dataclass

from framework.errors import ResponsesLost
from framework.stored import StoredGroup, StoredResponse
from framework.types import Response, ResponseGroup


@dataclass
class Shelf:
    """A `stored.Place`; counts how often it was asked."""

    response: Response | None
    loads: int = 0

    def load(self) -> Response:
        self.loads += 1
        if self.response is None:
            raise ResponsesLost("its machine is gone")
        return self.response


def stored(group: ResponseGroup) -> StoredGroup:
    """The group as the loop gets one of long responses."""
    return StoredGroup(group.prompt, tuple(StoredResponse(one.outline, Shelf(one)) for one in group.responses))


def lose(group: StoredGroup) -> None:
    """Let the machine with this group go."""
    for response in group.responses:
        assert isinstance(response.place, Shelf)
        response.place.response = None
