from __future__ import annotations

import json
import random
import tempfile
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.artifacts import PromptSet, TextSet
from framework.data.cleaning import CleanConfig, words
from framework.data.readers import write_prompts
from framework.data.text.shard_files import Document, read_text, write_text
from framework.errors import UserError
from framework.stages.clean import Clean, CleanInputs
from framework.types import Prompt
from tests.unit.stages.test_collect import runtime

ONLY_10_GRAMS = CleanConfig(exact=False, near_threshold=None)
ONLY_NEAR = CleanConfig(exact=False, decontamination_words=0)


def judged(config: CleanConfig, texts: Iterable[str], *heldout: Prompt) -> list[tuple[str, str] | None]:
    """Reason and origin of each document, None for those that stay; ids are places."""
    asked = [replace(prompt, id=f"{prompt.id}{place or ''}") for place, prompt in enumerate(heldout)]
    documents = [Document(f"{place:032x}", text) for place, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        stays = [Document("f" * 32, "never a copy of anything")]
        write_text(tmp / "text", {"train": [*documents, *stays], "validation": [Document("e" * 32, "nor is this")]})
        write_prompts(tmp / "prompts" / "heldout.jsonl", asked or [question("never asked of any one")])
        write_prompts(tmp / "prompts" / "train.jsonl", [question("x")])
        inputs = CleanInputs(TextSet(tmp / "text"), PromptSet(tmp / "prompts"))
        text = Clean(config).run(inputs, runtime(tmp)).text.path
        kept = [document.text for document in read_text(text, "train")]
        rows = [json.loads(line) for line in (text / "dropped-00000.jsonl").open()]
    found = {int(row["id"], 16): (row["reason"], row["of"]) for row in rows}
    assert kept == [document.text for place, document in enumerate(documents) if place not in found] + [stays[0].text]
    return [
        (reason, of if reason == "contaminated" else str(int(of, 16))) if (reason, of) != ("", "") else None
        for reason, of in (found.get(place, ("", "")) for place in range(len(documents)))
    ]


def question(text: str, answer: str = "1") -> Prompt:
    return Prompt("q", text, "t", answer)


def test_words_are_case_blind_and_tell_operators_apart() -> None:
    assert words("Is **1+5** well-known?") == ["is", "1", "+", "5", "well", "known"]
    assert words("1 - 5 = 数学é") == ["1", "-", "5", "数", "学", "é"]


def test_exact_duplicates_differ_in_case_and_white_space_at_most() -> None:
    config = CleanConfig(near_threshold=None)
    found = judged(config, ["A b c", "a  B\nc ", "a b c.", "A b c"])
    assert found == [None, ("exact_duplicate", "0"), None, ("exact_duplicate", "0")]
    assert judged(CleanConfig(exact=False, near_threshold=None), ["a", "a"]) == [None, None]


def test_ten_shared_words_contaminate_and_nine_do_not() -> None:
    prompt = question("w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11")
    ten, nine = "x W1, w2 w3 w4 w5 w6 w7: w8 w9 w10 y", "x w1 w2 w3 w4 w5 w6 w7 w8 w9 y w10"
    assert judged(ONLY_10_GRAMS, [ten, nine], prompt) == [("contaminated", "q"), None]


def test_a_long_reference_answer_contaminates_and_a_short_one_does_not() -> None:
    solution = "first we add the two and then we take the half"
    texts = [f"So {solution}.", "the answer 1"]
    assert judged(ONLY_10_GRAMS, texts, question("how many are there", solution)) == [("contaminated", "q"), None]
    assert judged(ONLY_10_GRAMS, texts, question("how many are there", "1")) == [None, None]


def test_a_short_question_is_searched_for_whole() -> None:
    texts = ["User: calculate 1 + 5! Then", "Calculate 1 - 5.", "calculate 1 and + 5", "Calculate 1 +", "1 + 5"]
    assert judged(ONLY_10_GRAMS, texts, question("Calculate 1 + 5.")) == [("contaminated", "q"), *[None] * 4]
    assert judged(ONLY_10_GRAMS, ["why not", "x why not y"], question("Why not?")) == [None, None]  # two words only


def test_accents_count_the_same_composed_or_not() -> None:
    text = "où est passé le café que François a préparé hier très tôt"
    other = unicodedata.normalize("NFD", text)
    assert other != text
    assert judged(ONLY_10_GRAMS, [other], question(text)) == [("contaminated", "q")]
    assert judged(CleanConfig(near_threshold=None), [text, other]) == [None, ("exact_duplicate", "0")]


def test_decontamination_can_be_off() -> None:
    config = CleanConfig(exact=False, near_threshold=None, decontamination_words=0)
    assert judged(config, ["calculate 1 + 5"], question("calculate 1 + 5")) == [None]


def test_near_duplicates_are_those_above_the_threshold() -> None:
    rng = random.Random(0)
    texts, expected = [], []
    for place in range(0, 300, 3):
        base = [f"{rng.randrange(10**6)}" for _ in range(204)]  # 200 shingles
        near, far = list(base), list(base)
        near[100] = "x"  # 5 shingles of 200 change: similarity 195/205 = 0.95
        far[20::20] = ["x"] * len(far[20::20])  # 10 places, 50 shingles: 150/250 = 0.6
        texts += [" ".join(text) for text in (base, near, far)]
        expected += [None, ("near_duplicate", str(place)), None]
    assert judged(ONLY_NEAR, texts) == expected


def test_texts_shorter_than_a_shingle_and_without_words() -> None:
    assert judged(ONLY_NEAR, ["a b", "a b!", "b a", "...", "!!"]) == [None, ("near_duplicate", "0"), None, None, None]


def test_a_contaminated_document_stands_for_no_duplicate() -> None:
    text = "calculate 1 + 5"
    assert judged(CleanConfig(), [text, text, "else"], question(text)) == [*[("contaminated", "q")] * 2, None]


LETTERS = st.lists(st.sampled_from("abc"), min_size=1, max_size=8).map(" ".join)


@given(st.lists(LETTERS, max_size=20), st.lists(LETTERS, max_size=4))
def test_contamination_is_a_shared_passage(texts: list[str], questions: list[str]) -> None:
    config = CleanConfig(exact=False, near_threshold=None, decontamination_words=4)
    found = judged(config, texts, *map(question, questions))
    passages = {q[i : i + 7] for q in questions for i in range(0, len(q) - 6, 2)} | {
        q for q in questions if len(q) == 5
    }
    assert [drop is not None for drop in found] == [any(passage in text for passage in passages) for text in texts]


@settings(max_examples=30)
@given(st.lists(LETTERS, max_size=20))
def test_clean_text_stays_when_it_is_cleaned_again(texts: list[str]) -> None:
    kept = [t for t, drop in zip(texts, judged(CleanConfig(shingle_words=2), texts), strict=True) if drop is None]
    assert judged(CleanConfig(shingle_words=2), kept) == [None] * len(kept)
    assert set(kept) <= set(texts)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("threshold", [0.1, 0.8, 0.95])
@pytest.mark.parametrize("permutations", [32, 256])
def test_the_ends_of_the_ranges_work(threshold: float, permutations: int) -> None:
    config = CleanConfig(False, threshold, permutations=permutations)
    texts = [" ".join(f"{i}{j}" for j in range(900)) for i in "ab"]
    assert judged(config, [*texts, texts[1] + " c"]) == [None, None, ("near_duplicate", "1")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("near_threshold", value) for value in (0.0, 1.0)),
        ("shingle_words", 0),
        ("permutations", 16),
        ("decontamination_words", -1),
    ],
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"CleanConfig.{name}"):
        CleanConfig(**{name: value})  # type: ignore[arg-type]
