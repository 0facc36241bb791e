"""A right answer of R1-Zero made fit to learn from: reasoning in the question's language, and a summary for the user.

R1 has a chat model write both, and people check them (R1 v2 section B.3.2, Listing 1). `rewrite_by_rule` is what a
laptop does instead: it frames the steps with a sentence of the question's language and states the answer; the steps
themselves stay R1-Zero's. `request` is what the chat model is asked; its wording is ours.
"""

from __future__ import annotations

from dataclasses import replace

from framework.data.reasoning import Reasoned
from framework.data.selection import Sample
from framework.rewards.code import extract_code
from framework.rewards.code_tests import has_tests
from framework.rewards.language import main_language
from framework.types import Prompt

# First person, as R1's authors wanted it; a variant is chosen by the sample's id.
_FRAMES = {
    "en": (
        ("I go step by step.", "The answer is \\boxed{ANSWER}."),
        ("Let me work it out.", "So the answer is \\boxed{ANSWER}."),
    ),
    "zh": (
        ("我一步一步来算。", "答案是 \\boxed{ANSWER}。"),
        ("让我算一下。", "所以答案是 \\boxed{ANSWER}。"),
    ),
}
_PROGRAMS = {"en": "This program does it:", "zh": "这个程序可以："}
_LANGUAGES = {"en": "English", "zh": "Chinese"}
_REQUEST = """Below are a question and a draft of its solution. Write the draft anew for a reader.
- First the reasoning, in {language} only, in the first person, in short paragraphs and without code blocks. Keep \
every step that matters, also doubts and corrections. Change no number and no result.
- Then a summary in {language} that explains the solution briefly and ends with the final answer in {form}.
Reply with <think>the reasoning</think> and then the summary, and nothing else.

Question:
{question}

Draft:
{reasoning}

Final answer of the draft:
{summary}"""

_ANSWER = """Reply with <think>your reasoning</think> and then the answer, both in the language of the request above. \
Leave the reasoning empty where the request is simple, a greeting for instance."""


def rewrite_by_rule(sample: Sample) -> Reasoned:
    """Return the steps behind a sentence of the question's language, and a summary with the answer in a box.

    A program stands in a fenced block instead, where the code reward looks for it.
    """
    language = main_language(sample.prompt.text)
    opening, closing = _FRAMES[language][len(sample.id) % len(_FRAMES[language])]
    if has_tests(sample.prompt):
        closing = f"{_PROGRAMS[language]}\n```python\n{(extract_code(sample.found.summary) or '').strip()}\n```"
    return Reasoned(f"{opening} {sample.found.reasoning}".strip(), closing.replace("ANSWER", sample.found.summary))


def request(sample: Sample) -> Prompt:
    """Return what a chat model is asked; the prompt's id is the sample's.

    It keeps the answer and the rewards of the question: the reply is scored as an answer to that, and so must still be
    right.
    """
    language = _LANGUAGES[main_language(sample.prompt.text)]
    form = "one ```python block" if has_tests(sample.prompt) else "\\boxed{}"
    text = _REQUEST.format(language=language, form=form, question=sample.prompt.text, **vars(sample.found))
    asked = ({"role": "user", "content": text},)
    return replace(sample.prompt, id=sample.id, messages=asked, token_ids=(), opened="")


def answer_request(prompt: Prompt) -> Prompt:
    """Return what a chat model is asked in order to answer a general request in R1's form."""
    *before, last = prompt.conversation
    asked = {**last, "content": f"{last['content']}\n\n{_ANSWER}"}
    return replace(prompt, messages=(*before, asked), token_ids=(), opened="")
