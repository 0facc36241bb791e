"""The base model says of its special tokens what its tokenizer says."""

from __future__ import annotations

from pathlib import Path

from framework.config import compose
from framework.stages.pretrain import with_special_tokens
from jobs.bench._checkpoints import save_tokenizer


def test_a_published_size_takes_the_ids_of_the_tokenizer_trained_here(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    published = compose(["model=v2_lite", "cluster=h800_512"]).model
    assert (published.bos_token_id, published.eos_token_id) == (100000, 100001)
    model = with_special_tokens(published, tmp_path)
    assert (model.bos_token_id, model.eos_token_id, model.pad_token_id) == (0, 1, 2)
