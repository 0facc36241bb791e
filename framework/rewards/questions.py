"""What a reward process is asked besides scores: can these prompts be judged, and which answers say the same?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from framework.errors import UserError
from framework.rewards.base import MAX_ERROR_CHARS, Reward
from framework.types import Prompt, Response

Lines = Iterator[dict[str, Any]]  # each goes out as soon as it is known: its time limit is its own


def check_lines(components: Mapping[str, Reward], prompts: Iterable[Prompt]) -> Lines:
    """Before each prompt its id and answer, after it what is wrong with it, or nothing; "checked" ends the list.

    `prompts` may be made while it is read, so that what hangs in the making is as guarded as what hangs in the check.
    """
    count, found = 0, iter(prompts)
    try:
        for prompt in found:
            yield {"id": prompt.id, "answer": prompt.answer}
            for name in prompt.rewards or components:
                components[name].check(prompt)
            count += 1
            yield {}
    except UserError as error:
        value = error.value if isinstance(error.value, str) else repr(error.value)
        yield {"fault": [error.where, value, error.allowed]}
        return
    except Exception as error:
        yield {"fault": ["", "", f"the check of its rewards raises {type(error).__name__}: {error}"[:MAX_ERROR_CHARS]]}
        return
    yield {"checked": count}


def vote_lines(
    components: Mapping[str, Reward], name: str, prompt: Prompt, response: Response, kinds: Sequence[tuple[str, bool]]
) -> Lines:
    """The answer that the response gives, then the place of the first kind that says the same; -1: none does.

    A kind is an answer, and whether it may be compared by more than its text.
    """
    reward = components[name]
    try:
        answer = reward.extracted(prompt, response)
    except Exception:  # anyone's code: a response that cannot be read gives no vote
        answer = None
    yield {"answer": answer}
    if answer:
        same = (i for i, (other, _) in enumerate(kinds) if other == answer)
        equal = (
            i for i, (other, comparable) in enumerate(kinds) if comparable and _agree(reward, prompt, other, answer)
        )
        yield {"agrees": next(chain(same, equal), -1)}


def _agree(reward: Reward, prompt: Prompt, first: str, second: str) -> bool:
    try:
        return reward.agree(prompt, first, second)
    except Exception:  # one of the two is nothing that can be compared
        return False
