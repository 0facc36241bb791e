"""Length reward within a group: of the responses to one prompt the shorter ones are better."""

from __future__ import annotations

from dataclasses import dataclass, replace

from framework.bounds import bounded
from framework.convert import Component
from framework.errors import UserError
from framework.rewards.base import Reward
from framework.types import Prompt, Response, ResponseGroup


@dataclass(frozen=True, kw_only=True)
@bounded
class Length(Reward):
    """0.5 for the group's shortest response down to -0.5 for its longest; a wrong one gets no more than 0.

    value = 0.5 - (length - shortest) / (longest - shortest), and min(0, value) if the answer is wrong; 0 for all where
    all are of one length. Source: Kimi k1.5 (2501.12599) section 2.3.3. V3.2 has a length penalty whose formula is not
    stated; DAPO's, which goes by the run's limit, is `framework.rewards.overlong`.

    `right` is the reward that says whether an answer is right (above 0); without it no response counts as right, so
    that being long costs and being short pays nothing.
    """

    right: Component = None
    shortest: int = 0  # tokens, of the group: set by `for_group`
    longest: int = 0

    def __post_init__(self) -> None:
        if self.right is not None and not isinstance(self.right, Reward):
            raise UserError("right", self.right, "needs a _target_ that names a reward, or null")

    def for_group(self, group: ResponseGroup) -> Length:
        """Take the group's lengths."""
        lengths = [len(response.token_ids) for response in group.responses]
        return replace(self, shortest=min(lengths, default=0), longest=max(lengths, default=0))

    def check(self, prompt: Prompt) -> None:
        """Ask the reward that says what is right."""
        if self.right is not None:
            self.right.check(prompt)

    def prepare(self) -> None:
        """Prepare the reward that says what is right."""
        if self.right is not None:
            self.right.prepare()

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a value in [-0.5, 0.5]."""
        if self.longest <= self.shortest:
            return 0.0
        place = (len(response.token_ids) - self.shortest) / (self.longest - self.shortest)
        value = 0.5 - min(max(place, 0.0), 1.0)
        is_right = value > 0 and self.right is not None and self.right(prompt, response) > 0
        return value if is_right else min(0.0, value)
