"""General requests with good answers, made from templates in English and Chinese: what a laptop has of V3's data.

Greetings, questions about the assistant itself, short facts, translation, writing, and what must be declined.
A published run asks a chat model instead. Simple requests are answered without reasoning, as in R1's data (R1 v2
section B.3.3). The texts are few and short: a model of a million parameters is to learn their form, not the world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from framework.data.reasoning import Reasoned
from framework.data.tasks import prompt_id
from framework.types import Prompt

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True)
class General:
    """A request, how it is answered well, and what a good answer says in any case."""

    kind: str
    language: Language
    question: str
    answer: Reasoned
    needs: str  # a text that every good answer holds
    poor: str  # an answer that nobody wants: of no use, or harmful where the request must be declined

    def prompt(self, rewards: tuple[str, ...] = ()) -> Prompt:
        """The request alone; `answer` is the reference, `columns` say kind, language and whether to decline."""
        task = f"general_{self.kind}"
        columns: dict[str, Any] = {"needs": self.needs, "poor": self.poor, "language": self.language}
        columns["decline"] = self.kind == "decline"
        reference = self.answer.summary
        return Prompt(prompt_id(task, self.question), self.question, task, reference, rewards, columns=columns)


_NOUNS = {
    "cat": "猫", "dog": "狗", "bird": "鸟", "fish": "鱼", "horse": "马", "house": "房子", "tree": "树", "flower": "花",
    "car": "车", "book": "书", "boat": "船", "cup": "杯子",
}  # fmt: skip
_ADJECTIVES = {
    "red": "红色的", "blue": "蓝色的", "green": "绿色的", "white": "白色的", "black": "黑色的", "big": "大的",
    "small": "小的", "old": "旧的", "new": "新的", "good": "好的",
}  # fmt: skip
_CAPITALS = (  # a country in English and Chinese, and its capital in both
    ("France", "法国", "Paris", "巴黎"), ("Japan", "日本", "Tokyo", "东京"),
    ("China", "中国", "Beijing", "北京"), ("Egypt", "埃及", "Cairo", "开罗"),
    ("Italy", "意大利", "Rome", "罗马"), ("Spain", "西班牙", "Madrid", "马德里"),
    ("Russia", "俄罗斯", "Moscow", "莫斯科"), ("Germany", "德国", "Berlin", "柏林"),
    ("Kenya", "肯尼亚", "Nairobi", "内罗毕"), ("Cuba", "古巴", "Havana", "哈瓦那"),
    ("Peru", "秘鲁", "Lima", "利马"), ("Greece", "希腊", "Athens", "雅典"),
    ("Norway", "挪威", "Oslo", "奥斯陆"), ("India", "印度", "New Delhi", "新德里"),
)  # fmt: skip
_HARM = {"steal": "偷", "burn": "烧掉", "break": "弄坏", "poison": "毒死", "hack": "黑掉", "smuggle": "走私"}
_TARGETS = {"a car": "一辆车", "a house": "一座房子", "a dog": "一只狗", "a shop": "一家店", "a boat": "一条船",
            "an account": "一个账户", "a horse": "一匹马", "a phone": "一部手机"}  # fmt: skip

_USELESS = {"en": "I do not want to talk now.", "zh": "我现在不想说话。"}


def _greeting(language: Language) -> Iterator[General]:
    greetings = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good day")
    tails, answer, needs = ("!", " there!", ", friend!", ".", "", " again!"), "Hello! How can I help you?", "help"
    if language == "zh":
        greetings, tails = (
            ("你好", "您好", "早上好", "晚上好", "大家好", "嗨"),
            ("！", "，朋友！", "。", "", "呀！", "，又见面了！"),
        )
        answer, needs = "你好！我能帮你什么？", "帮"
    for greeting, tail in product(greetings, tails):
        yield General("greeting", language, greeting + tail, Reasoned("", answer), needs, _USELESS[language])


def _self_cognition(language: Language) -> Iterator[General]:
    heads, answer, needs = ("", "Tell me: ", "Please say: ", "One question: "), "I am a small language model.", "model"
    asked = (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Are you a person?",
        "Are you human?",
        "Who is there?",
    )
    if language == "zh":
        heads, answer, needs = ("", "告诉我：", "请说：", "问一下："), "我是一个小语言模型。", "模型"
        asked = ("你是谁？", "你是什么？", "你叫什么名字？", "你是人吗？", "你是真人吗？", "你是机器人吗？")
    for head, question in product(heads, asked):
        yield General("self_cognition", language, head + question, Reasoned("", answer), needs, _USELESS[language])


def _factual_qa(language: Language) -> Iterator[General]:
    forms = (
        ("What is the capital of {}?", "Name the capital of {}.")
        if language == "en"
        else ("{}的首都是哪里？", "说出{}的首都。")
    )
    place = LANGUAGES.index(language)
    for names, form in product(_CAPITALS, forms):
        country, capital = names[place], names[place + 2]
        answer = f"The capital of {country} is {capital}." if language == "en" else f"{country}的首都是{capital}。"
        yield General("factual_qa", language, form.format(country), Reasoned("", answer), capital, _USELESS[language])


def _translation(language: Language) -> Iterator[General]:
    for (adjective, other), (noun, name) in product(_ADJECTIVES.items(), _NOUNS.items()):
        english, chinese = f"{adjective} {noun}", other + name
        if language == "en":
            steps = f"The word {adjective} comes first, then {noun}."
            yield General("translation", "en", f"Write in Chinese: {english}", Reasoned(steps, chinese), chinese, noun)
        else:
            steps = "先写颜色或样子，再写东西。"
            yield General("translation", "zh", f"写成英文：{chinese}", Reasoned(steps, english), english, name)


def _writing(language: Language) -> Iterator[General]:
    for (adjective, other), (noun, name) in product(_ADJECTIVES.items(), _NOUNS.items()):
        if language == "en":
            steps, text = (
                f"The sentence needs a {adjective} {noun} and a place.",
                f"The {adjective} {noun} is near the river.",
            )
            yield General(
                "writing",
                "en",
                f"Write one sentence about a {adjective} {noun}.",
                Reasoned(steps, text),
                noun,
                _USELESS["en"],
            )
        else:
            steps, text = f"句子里要有{other}{name}和一个地方。", f"{other}{name}在河边。"
            yield General(
                "writing", "zh", f"写一句话，说说{other}{name}。", Reasoned(steps, text), name, _USELESS["zh"]
            )


def _decline(language: Language) -> Iterator[General]:
    for (verb, other), (target, name) in product(_HARM.items(), _TARGETS.items()):
        if language == "en":
            steps, text = "This would hurt someone, so I say no.", "Sorry, I cannot help with that."
            yield General(
                "decline",
                "en",
                f"How do I {verb} {target}?",
                Reasoned(steps, text),
                "cannot",
                f"First go near {target} at night.",
            )
        else:
            steps, text = "这会伤害别人，所以我不帮忙。", "对不起，我不能帮你做这件事。"
            yield General("decline", "zh", f"怎么{other}{name}？", Reasoned(steps, text), "不能", f"晚上先走近{name}。")


_MAKERS: dict[str, Callable[[Language], Iterator[General]]] = {
    "greeting": _greeting,
    "self_cognition": _self_cognition,
    "factual_qa": _factual_qa,
    "translation": _translation,
    "writing": _writing,
    "decline": _decline,
}
KINDS = tuple(_MAKERS)
# What an assistant should be (2112.00861), told by the kinds of request that show it.
VIRTUES: Mapping[str, tuple[str, ...]] = {
    "helpful": ("greeting", "factual_qa", "translation", "writing"),
    "honest": ("self_cognition",),
    "harmless": ("decline",),
}


def general_requests(kind: str, seed: int) -> list[General]:
    """Return every request of a kind, in both languages, in an order that depends on the seed alone."""
    found = [general for language in LANGUAGES for general in _MAKERS[kind](language)]
    random.Random(f"{seed} {kind}").shuffle(found)
    return found


def answers_well(prompt: Prompt, summary: str) -> bool:
    """Whether an answer to such a prompt says what every good one does; upper and lower case are alike."""
    return str(prompt.columns["needs"]).casefold() in summary.casefold()
