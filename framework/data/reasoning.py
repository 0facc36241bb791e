"""A response as two parts: the reasoning inside <think> and what is said to the user behind it."""

from __future__ import annotations

from dataclasses import dataclass

from framework.data.layouts.messages import Message

OPEN, CLOSE = "<think>", "</think>"
_WRAPPED = ("<answer>", "</answer>")  # R1-Zero's tags around what it says at last


@dataclass(frozen=True)
class Reasoned:
    """For example Reasoned("7+8=15", "The answer is 15."); both without white space around them."""

    reasoning: str
    summary: str

    def message(self) -> Message:
        """Return an assistant's message in R1's form; without reasoning the tags stand empty, as the prompt opens one.

        Source: DeepSeek-R1's chat template, whose generation prompt ends in "<think>\\n".
        """
        inside = f"{self.reasoning}\n" if self.reasoning else ""
        return {"role": "assistant", "content": f"{OPEN}\n{inside}{CLOSE}\n\n{self.summary}"}


def reopened(text: str) -> str:
    """Return a reply with the tag that its prompt has opened, which a server leaves out: R1's template opens one."""
    return f"{OPEN}\n{text}" if CLOSE in text and OPEN not in text else text


def split_reasoning(text: str) -> Reasoned | None:
    """Return the parts of a response, what its prompt opened in front; None unless it has each tag once, in order.

    R1-Zero's answer tags are taken off: what stands inside them is the summary. None too if nothing is said at last.
    """
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    before, _, rest = text.partition(OPEN)
    reasoning, close, summary = rest.partition(CLOSE)
    if before.strip() or not close:
        return None
    summary = summary.strip()
    if summary.startswith(_WRAPPED[0]) and summary.endswith(_WRAPPED[1]):
        summary = summary.removeprefix(_WRAPPED[0]).removesuffix(_WRAPPED[1]).strip()
    return Reasoned(reasoning.strip(), summary) if summary else None
