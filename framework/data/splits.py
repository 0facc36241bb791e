"""Train and held-out questions: which are the same, how one file is shared out, that none is on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from framework.data.layouts.columns import Columns
from framework.data.layouts.prompts import load_prompts
from framework.data.tasks import same_text, split_of
from framework.errors import UserError
from framework.types import Prompt


def load_splits(
    train: str | None, heldout: str | None = None, columns: Columns | None = None, heldout_share: float = 0.1
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Read train and held-out prompts; without a held-out source a share of the train source, by hash of the text.

    Without a train source all is held out (an evaluation). Raises UserError if one side is empty, or a question is on
    both.
    """
    if train is None and heldout is None:
        raise UserError("data.train", None, "must name a file, glob, folder or hub data set of prompts")
    held = load_prompts(heldout, columns, "data.heldout", "test") if heldout is not None else ()
    found = load_prompts(train, columns, "data.train") if train is not None else ()
    if heldout is None:
        if not 0 < heldout_share < 1:
            raise UserError("data.heldout_share", heldout_share, "must lie between 0 and 1")
        found, held = share_out(found, heldout_share)
    check_disjoint(found, held)
    return found, held


def share_out(prompts: Sequence[Prompt], heldout_share: float) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return the train and the held-out ones: the hash of the text decides, so that equal questions stay together.

    Raises UserError if a side has none.
    """
    sides = [split_of(prompt.text, heldout_share) for prompt in prompts]
    train = tuple(prompt for prompt, side in zip(prompts, sides, strict=True) if side == "train")
    heldout = tuple(prompt for prompt, side in zip(prompts, sides, strict=True) if side != "train")
    if not train or not heldout:
        allowed = f"leaves {len(train)} to train on and {len(heldout)} held out of {len(prompts)}: name data.heldout"
        raise UserError("data.heldout_share", heldout_share, allowed)
    return train, heldout


def check_disjoint(train: Iterable[Prompt], heldout: Sequence[Prompt]) -> None:
    """Raise UserError if a prompt is on both sides, by id or by text; case and blanks make no other text."""
    ids: set[str] = set()
    texts: dict[str, str] = {}
    for prompt in train:
        ids.add(prompt.id)
        texts.setdefault(same_text(prompt.text), prompt.id)
    for prompt in heldout:
        if prompt.id in ids:
            raise UserError(f"held-out prompt {prompt.id}", prompt.id, "its id is also in the train prompts")
        if same_text(prompt.text) in texts:
            twin = texts[same_text(prompt.text)]
            allowed = f"its text is also in the train prompts ({twin}; case and blanks aside)"
            raise UserError(f"held-out prompt {prompt.id}", prompt.text, allowed)
