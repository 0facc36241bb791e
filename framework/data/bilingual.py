"""Small verifiable tasks in English and Chinese: word problems, programs with hidden tests, multiple choice, logic.

They are made for models of a million parameters: short questions of few words, answers that a rule can judge. Half are
in each language, so that a model trained on them mixes languages, and can be cured of it. Everything follows from the
seed. Requests that no rule judges (greetings, facts, what must be declined) come from `framework.data.general`.

A record keeps worked steps in both languages, and wrong answers of the right kind, for `framework.data.solutions`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from framework.bounds import Bound, bounded
from framework.data.entries import encode_entry
from framework.data.general import KINDS, general_requests
from framework.data.tasks import prompt_id
from framework.errors import UserError
from framework.types import Prompt

Language = Literal["en", "zh"]


@dataclass(frozen=True)
@bounded
class BilingualParams:
    """What a task of this file takes under `params`."""

    language: Literal["both", "en", "zh"] = "both"
    largest: Annotated[int, Bound(least=3, most=1000)] = 9  # number in a question
    kinds: tuple[str, ...] = ("greeting", "self_cognition", "factual_qa", "decline")  # of general requests

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError("kinds", kind, f"must be of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Made:
    """A question with its answer in one language, worked steps in both, and wrong answers of its kind."""

    question: str
    answer: str
    steps: Mapping[Language, str]
    wrong: tuple[str, ...]
    columns: Mapping[str, Any]


Maker = Callable[[random.Random, Language, int], Made]
_NAMES = {"en": ("Tom", "Ann", "Bob", "Eve", "Sam", "Liu"), "zh": ("小明", "小红", "小刚", "小丽", "小华", "小刘")}
_THINGS = (
    ("apples", "个苹果"), ("pens", "支笔"), ("books", "本书"), ("cups", "个杯子"), ("eggs", "个鸡蛋"),
    ("balls", "个球"), ("cards", "张卡片"), ("coins", "枚硬币"),
)  # fmt: skip


def _word_problem(rng: random.Random, language: Language, largest: int) -> Made:
    """Two steps of arithmetic; no number on the way is negative."""
    a, b = rng.randint(2, largest), rng.randint(2, largest)
    name, (thing, ding) = rng.randrange(6), rng.choice(_THINGS)
    en, zh = _NAMES["en"][name], _NAMES["zh"][name]
    kind = rng.randrange(4)
    if kind == 0:
        total = a + b
        c = rng.randint(1, total)
        answer = total - c
        texts = (
            f"{en} has {a} {thing}, gets {b} more and gives {c} away. How many {thing} are left?",
            f"{zh}有{a}{ding}，又得到{b}{ding[0]}，送走{c}{ding[0]}。还剩几{ding[0]}？",
        )
        steps = (f"First add: {a}+{b}={total}. Then take away: {total}-{c}={answer}.",
                 f"先加：{a}+{b}={total}。再减：{total}-{c}={answer}。")  # fmt: skip
    elif kind == 1:
        total = a * b
        c = rng.randint(1, total)
        answer = total - c
        texts = (
            f"{en} has {a} boxes with {b} {thing} each and loses {c}. How many {thing} are left?",
            f"{zh}有{a}个盒子，每个装{b}{ding}，丢了{c}{ding[0]}。还剩几{ding[0]}？",
        )
        steps = (f"First multiply: {a}*{b}={total}. Then take away: {total}-{c}={answer}.",
                 f"先乘：{a}*{b}={total}。再减：{total}-{c}={answer}。")  # fmt: skip
    elif kind == 2:
        total = a + b
        answer = a + total
        texts = (
            f"{en} has {a} {thing}. A friend has {b} more than that. How many do both have?",
            f"{zh}有{a}{ding}，朋友比{zh}多{b}{ding[0]}。两人一共有几{ding[0]}？",
        )
        steps = (f"The friend has {a}+{b}={total}. Both have {a}+{total}={answer}.",
                 f"朋友有{a}+{b}={total}。两人有{a}+{total}={answer}。")  # fmt: skip
    else:
        total, answer = a * b, a
        texts = (
            f"{en} puts {total} {thing} into {b} boxes, the same number in each. How many are in one box?",
            f"{zh}把{total}{ding}平均放进{b}个盒子。每个盒子有几{ding[0]}？",
        )
        steps = (f"Divide evenly: {total}/{b}={answer}.", f"平均分：{total}/{b}={answer}。")
    return _made(language, texts, str(answer), steps, _near(answer))


def _program(rng: random.Random, language: Language, largest: int) -> Made:
    """A function of a line, with its hidden tests."""
    a, b = rng.randint(2, largest), rng.randint(1, largest)
    numbers = [[rng.randint(-9, 20) for _ in range(rng.randint(1, 6))] for _ in range(4)]
    words = ["".join(rng.choice("abcde") for _ in range(rng.randint(1, 6))) for _ in range(4)]
    values = [a * rng.randint(-5, 9), *rng.sample(range(-20, 50), 3)]
    kinds: tuple[tuple[str, str, str, list[Any], Callable[[Any], Any]], ...] = (
        (f"{a} times x plus {b}", f"x的{a}倍加{b}", f"{a} * x + {b}", values, lambda x: a * x + b),
        (f"x minus {b}", f"x减{b}", f"x - {b}", values, lambda x: x - b),
        (f"whether {a} divides x", f"x能否被{a}整除", f"x % {a} == 0", values, lambda x: x % a == 0),
        (f"the sum of the list x plus {b}", f"列表x的和加{b}", f"sum(x) + {b}", numbers, lambda x: sum(x) + b),
        (f"the largest of the list x times {a}", f"列表x的最大值乘{a}", f"max(x) * {a}", numbers, lambda x: max(x) * a),
        (
            f"how many numbers of the list x are above {b}", f"列表x中大于{b}的数有几个",
            f"sum(y > {b} for y in x)", numbers, lambda x: sum(y > b for y in x),
        ),
        (f"the text x backwards, {a} times", f"文字x倒过来重复{a}次", f"x[::-1] * {a}", words, lambda x: x[::-1] * a),
    )  # fmt: skip
    english, chinese, code, given, function = rng.choice(kinds)
    texts = (f"Write a Python function f(x) that returns {english}.", f"写一个Python函数f(x)，返回{chinese}。")
    answer = f"def f(x):\n    return {code}"
    steps = (f"One line is enough: {code}.", f"一行就够：{code}。")
    tests = [{"args": [value], "expected": function(value)} for value in given]
    if len({test["expected"] for test in tests}) < 2:  # what returns one value always would pass
        return _program(rng, language, largest)
    made = _made(language, texts, answer, steps, ("def f(x):\n    return x", f"def f(x):\n    return {b}"))
    return replace(made, columns={**made.columns, "tests": tests, "entry_point": "f"})


_KINDS_OF_THING = (
    ("an animal", "动物", (("cat", "猫"), ("dog", "狗"), ("horse", "马"), ("fish", "鱼"), ("bird", "鸟"))),
    ("a fruit", "水果", (("apple", "苹果"), ("pear", "梨"), ("peach", "桃子"), ("grape", "葡萄"))),
    ("a colour", "颜色", (("red", "红"), ("blue", "蓝"), ("green", "绿"), ("white", "白"))),
    ("a tool", "工具", (("hammer", "锤子"), ("saw", "锯子"), ("knife", "刀"), ("axe", "斧头"))),
)


def _choice(rng: random.Random, language: Language, largest: int) -> Made:
    """One of four options, A to D."""
    place = int(language == "zh")
    if rng.random() < 0.5:
        a, b = rng.randint(2, largest), rng.randint(2, largest)
        right = str(a * b)
        others = list(dict.fromkeys(str(v) for v in (a * b + a, a * b + b, a + b, a * b + 1, a * b - 1, a * b + 2)))
        wrong = rng.sample([value for value in others if value != right], 3)
        texts = (f"What is {a} times {b}?", f"{a}乘{b}等于几？")
        steps = (f"Multiply: {a}*{b}={right}.", f"相乘：{a}*{b}={right}。")
    else:
        first, *others_of = rng.sample(_KINDS_OF_THING, 4)
        right = rng.choice(first[2])[place]
        wrong = [rng.choice(other[2])[place] for other in others_of]
        texts = (f"Which of these is {first[0]}?", f"下面哪一个是{first[1]}？")
        steps = (f"I look for {first[0]}: that is {right}.", f"要找{first[1]}：那是{right}。")
    options = [right, *wrong]
    rng.shuffle(options)
    lettered = dict(zip("ABCD", options, strict=True))
    letter = "ABCD"[options.index(right)]
    listed = " ".join(f"{key}) {value}" for key, value in lettered.items())
    made = _made(
        language, tuple(f"{text} {listed}" for text in texts), letter, steps, tuple(k for k in "ABCD" if k != letter)
    )
    return replace(made, columns={**made.columns, "options": lettered})


_MEASURES = (
    ("taller", "tallest", "shortest", "高", "最高", "最矮"),
    ("older", "oldest", "youngest", "大", "最大", "最小"),
    ("faster", "fastest", "slowest", "快", "最快", "最慢"),
)
_NONSENSE = (("cats", "cat", "猫"), ("birds", "bird", "鸟"), ("stones", "stone", "石头"), ("trees", "tree", "树"))
_SAID = (("blue", "蓝的"), ("old", "老的"), ("warm", "暖的"), ("round", "圆的"), ("loud", "响的"))


def _logic(rng: random.Random, language: Language, _largest: int) -> Made:
    """Who comes first of three, or what follows from a rule."""
    place = int(language == "zh")
    if rng.random() < 0.6:
        people = rng.sample(range(6), 3)
        en, zh = ([_NAMES[key][person] for person in people] for key in ("en", "zh"))
        more, most, least, mehr, meist, wenig = rng.choice(_MEASURES)
        facts = [(0, 1), (1, 2)]
        rng.shuffle(facts)
        top = rng.random() < 0.5
        told = (
            " ".join(f"{en[i]} is {more} than {en[j]}." for i, j in facts),
            "".join(f"{zh[i]}比{zh[j]}{mehr}。" for i, j in facts),
        )
        texts = (f"{told[0]} Who is the {most if top else least}?", f"{told[1]}谁{meist if top else wenig}？")
        names = zh if place else en
        steps = (f"The order is {en[0]}, {en[1]}, {en[2]}.", f"顺序是{zh[0]}、{zh[1]}、{zh[2]}。")
        answer = names[0 if top else 2]
        return _made(language, texts, answer, steps, tuple(name for name in names if name != answer))
    many, one, ding = rng.choice(_NONSENSE)
    said, gesagt = rng.choice(_SAID)
    person = rng.randrange(6)
    en_name, zh_name = _NAMES["en"][person], _NAMES["zh"][person]
    holds = rng.random() < 0.5
    every = (f"{'All' if holds else 'No'} {many} are {said}.", "所有" if holds else "没有", "都是" if holds else "是")
    texts = (
        f"{every[0]} {en_name} is a {one}. Is {en_name} {said}?",
        f"{every[1]}{ding}{every[2]}{gesagt}。{zh_name}是{ding}。{zh_name}是{gesagt}吗？",
    )
    steps = (
        f"{en_name} is a {one}, so {en_name} is {'' if holds else 'not '}{said}.",
        f"{zh_name}是{ding}，所以{zh_name}{'' if holds else '不'}是{gesagt}。",
    )
    words = ("是", "不是") if place else ("yes", "no")
    return _made(language, texts, words[0 if holds else 1], steps, (words[1 if holds else 0],))


_MAKERS: Mapping[str, Maker] = {
    "word_problems": _word_problem,
    "small_programs": _program,
    "multiple_choice": _choice,
    "logic": _logic,
}
GENERAL = "general"
NAMES = (*_MAKERS, GENERAL)  # tasks that framework.data.tasks finds here


def generate_bilingual(task: str, params: Mapping[str, Any], seed: int, size: int) -> Iterator[Prompt]:
    """Yield up to `size` prompts of a task of this file; raises UserError for parameters that it does not take."""
    from framework.convert import convert

    config = convert(BilingualParams, dict(params), f"data.tasks.{task}.params", _no_target)
    languages: tuple[Language, ...] = ("en", "zh") if config.language == "both" else (config.language,)
    if task == GENERAL:
        found = [request for kind in config.kinds for request in general_requests(kind, seed)]
        chosen = [request for request in found if request.language in languages]
        random.Random(f"{seed} general").shuffle(chosen)
        yield from (request.prompt() for request in chosen[:size])
        return
    for index in range(size):
        rng = random.Random(f"{task} {seed} {index}")
        language = languages[index % len(languages)]
        made = _MAKERS[task](rng, language, config.largest)
        metadata = {"language": language, "steps": dict(made.steps), "wrong": list(made.wrong)}
        entry = {"question": made.question, "answer": made.answer, "metadata": metadata}
        yield Prompt(
            prompt_id(task, made.question), made.question, task, made.answer,
            entry=encode_entry(entry), columns={**made.columns, "language": language},
        )  # fmt: skip


def _no_target(target: str, where: str) -> Any:
    raise UserError(where, target, "takes no _target_")


def _made(
    language: Language, texts: tuple[str, ...], answer: str, steps: tuple[str, ...], wrong: tuple[str, ...]
) -> Made:
    return Made(texts[int(language == "zh")], answer, {"en": steps[0], "zh": steps[1]}, wrong, {})


def _near(value: int) -> tuple[str, ...]:
    return tuple(str(value + off) for off in (-10, -2, -1, 1, 2, 10) if value + off >= 0)
