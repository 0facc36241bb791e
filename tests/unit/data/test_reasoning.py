from __future__ import annotations

import pytest

from framework.data.reasoning import Reasoned, split_reasoning


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think> 7+8=15 </think> <answer> 15 </answer>", Reasoned("7+8=15", "15")),
        ("<think>\n7+8=15\n</think>\n\nIt is 15.", Reasoned("7+8=15", "It is 15.")),
        ("<think>\n\n</think>\n\nHello!", Reasoned("", "Hello!")),
        ("  <think>a</think>b", Reasoned("a", "b")),
        ("<think>a</think> ", None),
        ("<think>a</think> <answer> </answer>", None),
        ("<think>a <think>b</think> c", None),
        ("<think>a</think> b </think> c", None),
        ("a</think> b", None),
        ("</think> b <think>", None),
        ("so <think>a</think> b", None),
        ("It is 15.", None),
        ("", None),
    ],
)
def test_a_response_is_split_only_if_it_has_each_tag_once(text: str, found: Reasoned | None) -> None:
    assert split_reasoning(text) == found


@pytest.mark.parametrize(
    "given", [Reasoned("7+8=15", "It is 15."), Reasoned("", "Hello!"), Reasoned("a\n\nb", "c\n\nd")]
)
def test_a_message_is_split_into_what_it_was_made_of(given: Reasoned) -> None:
    message = given.message()
    assert message["role"] == "assistant"
    assert message["content"].startswith("<think>\n")  # as R1's generation prompt ends
    assert split_reasoning(message["content"]) == given
