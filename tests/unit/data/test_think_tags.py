from __future__ import annotations

from pathlib import Path

import pytest

from framework.data.think_tags import TAGS, ThinkTags, check_think_tags, prepare_think_tags
from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
from framework.data.tokenizer_training import TokenizerConfig, train_tokenizer
from framework.errors import UserError

WHERE = "stage.distill_qwen.think_tags"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A byte-level tokenizer that knows no think tags."""
    train_tokenizer(["one and two"], TokenizerConfig(vocab_size=300, min_frequency=1), tmp_path, 64, "{{ messages }}")
    return tmp_path


def ids(directory: Path, text: str) -> list[int]:
    return list(load_tokenizer(directory)(text, add_special_tokens=False)["input_ids"])


def test_added_tags_are_tokens_behind_the_last_one_and_all_else_stays(student: Path) -> None:
    before, size = ids(student, "one <b> two"), vocabulary_size(load_tokenizer(student))
    prepare_think_tags(student, "added", size + 2, WHERE)
    assert [ids(student, tag) for tag in TAGS] == [[size], [size + 1]]
    assert ids(student, "one <b> two") == before
    assert ids(student, "<think>\none</think>")[0] == size
    assert load_tokenizer(student).decode(ids(student, "<think>one</think>")) == "<think>one</think>"
    prepare_think_tags(student, "found", None, WHERE)  # there now; and again changes nothing
    prepare_think_tags(student, "added", size + 2, WHERE)
    assert vocabulary_size(load_tokenizer(student)) == size + 2


def test_a_missing_tag_is_one_line(student: Path) -> None:
    with pytest.raises(UserError, match=rf"^{WHERE}: got 'found, but no <think> and no </think>'; the student's"):
        prepare_think_tags(student, "found", None, WHERE)


def test_a_student_is_looked_at_before_a_run_and_stays_as_it_is(student: Path) -> None:
    size = vocabulary_size(load_tokenizer(student))
    (student / "config.json").write_text(f'{{"vocab_size": {size + 1}}}')
    before = {file.name: file.read_bytes() for file in student.iterdir()}
    with pytest.raises(UserError, match=rf"^{WHERE}: got 'found, but no <think>"):
        check_think_tags(student, "found", WHERE)
    with pytest.raises(UserError, match="needs 2 more tokens"):
        check_think_tags(student, "added", WHERE)
    check_think_tags(student, "spelled", WHERE)
    assert {file.name: file.read_bytes() for file in student.iterdir()} == before


def test_a_full_embedding_is_one_line(student: Path) -> None:
    size = vocabulary_size(load_tokenizer(student))
    with pytest.raises(UserError, match=f"needs 2 more tokens, and the model's {size + 1} rows hold {size} already"):
        prepare_think_tags(student, "added", size + 1, WHERE)
    assert ids(student, "<think>") != [size]


def test_bytes_spell_any_tag(student: Path) -> None:
    prepare_think_tags(student, "spelled", None, WHERE)
    assert len(ids(student, "<think>")) > 1


@pytest.mark.parametrize("how", ["spelled", "found"])
def test_a_tokenizer_that_cannot_say_a_tag_is_refused(tmp_path: Path, how: ThinkTags) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot say <think>"):
        prepare_think_tags(tmp_path, how, None, WHERE)
