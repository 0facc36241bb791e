"""What stands for long responses on the driver and between machines: they stay where they were sampled.

A batch of R1-Zero, 8,192 responses of up to 32,768 tokens, is 4 GiB and more. The loop works from outlines, and those
that need tokens or text fetch them. Short responses travel as they are (`framework.types`): both kinds have `outline`,
`load` and, as samples, `length` and `logprob`.

Dimensions: G group, P prompt tokens, R response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from framework.errors import ResponsesLost
from framework.types import (
    Float32,
    Int32,
    Outline,
    Prompt,
    Response,
    ResponseGroup,
    RewardScore,
    ScoredGroup,
    TrainSample,
)


class Place(Protocol):
    """Where a response lies that is not in this process."""

    def load(self) -> Response:
        """Fetch it; raises ResponsesLost."""
        ...


@dataclass(frozen=True)
class StoredResponse:
    """A response that is somewhere else: [7 1] of 2 tokens, in some machine's object store."""

    outline: Outline
    place: Place

    def load(self) -> Response:
        """Fetch it; raises ResponsesLost."""
        return self.place.load()


def text_of(response: Response | StoredResponse) -> str:
    """Return a response's text for people, wherever it lies; where it is lost, that."""
    try:
        return response.load().text
    except ResponsesLost as error:
        return f"({error})"


@dataclass(frozen=True)
class StoredGroup:
    """The G responses to one prompt, as `types.ResponseGroup`."""

    prompt: Prompt
    responses: tuple[StoredResponse, ...]  # G

    def load(self) -> ResponseGroup:
        """Fetch all of them; raises ResponsesLost."""
        return ResponseGroup(self.prompt, tuple(response.load() for response in self.responses))


@dataclass(frozen=True)
class ScoredStored:
    """Such a group with its rewards, as `types.ScoredGroup`."""

    group: StoredGroup
    scores: tuple[RewardScore, ...]  # G

    def load(self) -> ScoredGroup:
        """Fetch all responses; raises ResponsesLost."""
        return ScoredGroup(self.group.load(), self.scores)


Sampled = ResponseGroup | StoredGroup
Scored = ScoredGroup | ScoredStored


def scored_group(group: Sampled, scores: tuple[RewardScore, ...]) -> Scored:
    """Return the group with its rewards."""
    return ScoredGroup(group, scores) if isinstance(group, ResponseGroup) else ScoredStored(group, scores)


@dataclass(frozen=True)
class SampleOutline:
    """What is known of a `types.TrainSample` where its response is not: on the driver, and on ranks without it.

    Of [7 1]: "sum-1", [5 6], 2 tokens of -0.3 nats, advantage 1.
    """

    prompt_id: str
    prompt_ids: Int32  # [P]
    outline: Outline
    advantage: float
    place: Place | None = None  # what the driver alone knows
    old_logprobs: Float32 | None = None  # [R]

    @property
    def length(self) -> int:
        """R."""
        return self.outline.length

    @property
    def logprob(self) -> float:
        """Of the whole response, the sampler's; nats."""
        return self.outline.logprob

    def whole(self, response: Response) -> TrainSample:
        """Return the sample with its response."""
        return TrainSample(
            self.prompt_id,
            self.prompt_ids,
            response.token_ids,
            self.advantage,
            response.logprobs,
            response.weight_versions,
            self.old_logprobs,
        )


Sample = TrainSample | SampleOutline
