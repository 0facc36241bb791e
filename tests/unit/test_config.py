"""Composition into frozen dataclasses, and every shipped yaml."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from framework.config import CONF, build_component, build_graph, compose
from framework.convert import TARGET, Component, convert, to_plain
from framework.errors import UserError
from framework.targets import TargetResolver, blaming_plugins
from tests.unit.bad_input import CHAT, sft_files
from tests.unit.toy_graph import Train, Write

TOY_CONF = Path(__file__).parent / "conf"
TOY = ("job=toy", "~recipe", "~data", "~engine", "~algorithm", "~reward", "~tracking")
SHIPPED = sorted(file.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml"))
GROUPS = ("job", "recipe", "model", "algorithm", "reward", "data", "cluster", "tracking")
MOST_FILES = 73  # besides the public test sets, a file each; nine are sizes of the table of transformers


class Shape(Protocol):
    def area(self) -> float: ...


@dataclass(frozen=True)
class Square:
    side: float = 1.0

    def area(self) -> float:
        return self.side**2


@dataclass(frozen=True)
class CircleConfig:
    radius: float = 1.0


class Circle:
    """Not a dataclass; its Config lies beside it."""

    def __init__(self, config: CircleConfig) -> None:
        self.config = config

    def area(self) -> float:
        return 3.0 * self.config.radius**2


class Triangle:
    @dataclass(frozen=True)
    class Config:
        height: int

    def __init__(self, config: Config) -> None:
        self.config = config


class Unconfigured:
    pass


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise UserError("rate", self.rate, "must not be negative")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    kind: Literal["a", "b", 1] = "a"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    maybe: int | None = None
    either: int | str = 0
    path: Path = Path(".")
    flag: bool = False
    text: str = ""
    number: float = 0.0
    count: int = 0
    shape: Shape | None = None
    square: Square | None = None
    part: Component = None
    anything: Any = None


RESOLVE = TargetResolver(("tests",))
HERE = "tests.unit.test_config"


def outer(**values: Any) -> Outer:
    built = convert(Outer, values, "outer", RESOLVE)
    assert isinstance(built, Outer)
    return built


@pytest.mark.parametrize(
    ("key", "plain", "expected"),
    [
        ("inner", {"rate": 1}, Inner(1.0)),
        ("kind", "b", "b"),
        ("kind", 1, 1),
        ("sizes", [1, 2], (1, 2)),
        ("pair", [1, "x"], (1, "x")),
        ("by_name", {"x": {"rate": 0.5}}, {"x": Inner(0.5)}),
        ("maybe", None, None),
        ("maybe", 3, 3),
        ("either", "x", "x"),
        ("path", "a/b", Path("a/b")),
        ("flag", True, True),
        ("text", 7, "7"),
        ("number", 2, 2.0),
        ("count", 1e9, 1_000_000_000),
        ("shape", {TARGET: f"{HERE}.Square", "side": 3}, Square(3.0)),
        ("part", {TARGET: f"{HERE}.Square"}, Square()),
        ("anything", {"free": [1]}, {"free": [1]}),
    ],
)
def test_plain_values_become_typed(key: str, plain: Any, expected: Any) -> None:
    value = getattr(outer(**{key: plain}), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rat": 1}}, "outer.inner.rat: got 1; unknown key; did you mean 'rate'?"),
        ({"inner": {"rate": -1}}, "outer.inner.rate: got -1.0; must not be negative"),
        ({"inner": 3}, "outer.inner: got 3; must be a mapping with the keys of Inner"),
        ({"kind": "c"}, "outer.kind: got 'c'; must be one of 'a', 'b', 1"),
        ({"kind": True}, "outer.kind: got True; must be one of 'a', 'b', 1"),
        ({"sizes": 3}, "outer.sizes: got 3; must be a list of an integer"),
        ({"sizes": [1, "x"]}, "outer.sizes[1]: got 'x'; must be an integer"),
        ({"pair": [1]}, "outer.pair: got [1]; must hold 2 values"),
        ({"by_name": {"x": {"rate": "y"}}}, "outer.by_name.x.rate: got 'y'; must be a number"),
        ({"by_name": []}, "outer.by_name: got []; must be a mapping"),
        ({"maybe": "x"}, "outer.maybe: got 'x'; must be an integer or null"),
        ({"either": 1.5}, "outer.either: got 1.5; must be an integer or a string"),
        ({"path": 3}, "outer.path: got 3; must be a path"),
        ({"flag": 1}, "outer.flag: got 1; must be true or false"),
        ({"number": "1"}, "outer.number: got '1'; must be a number"),
        ({"count": 1.5}, "outer.count: got 1.5; must be an integer"),
        ({"count": True}, "outer.count: got True; must be an integer"),
        ({"part": {"side": 1}}, "outer.part: got {'side': 1}; must be a group with a _target_"),
        ({"square": {TARGET: f"{HERE}.Circle"}}, f"outer.square._target_: got '{HERE}.Circle'; must be a Square"),
    ],
)
def test_misfits_name_the_full_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        outer(**values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_config_beside_or_inside_the_class() -> None:
    circle = build_component({TARGET: f"{HERE}.Circle", "radius": 2}, ["tests"])
    assert (type(circle), circle.config) == (Circle, CircleConfig(2.0))
    triangle = build_component({TARGET: f"{HERE}.Triangle", "height": 2}, ["tests"])
    assert triangle.config == Triangle.Config(2)
    with pytest.raises(UserError, match=r"part\.height: got None; must be given: an integer"):
        build_component({TARGET: f"{HERE}.Triangle"}, ["tests"], "part")
    with pytest.raises(UserError, match="have a Config dataclass"):
        build_component({TARGET: f"{HERE}.Unconfigured"}, ["tests"])
    with pytest.raises(UserError, match="must name a class"):
        build_component({TARGET: f"{HERE}.compose"}, ["tests"])


def test_targets_come_from_named_modules_only() -> None:
    for target in ("os.system", "frameworks.x", "framework", "tests.unit.test_config.Square"):
        with pytest.raises(UserError, match="must start with framework, jobs; add your own module to `plugins`"):
            build_component({TARGET: target})
    with pytest.raises(UserError, match=r"no module named framework\.nope"):
        build_component({TARGET: "framework.nope.X"})
    with pytest.raises(UserError, match="did you mean 'Square'"):
        build_component({TARGET: f"{HERE}.Squere"}, ["tests"])


def test_an_import_missing_inside_a_module_is_not_the_users_fault(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "broken_plugin.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        build_component({TARGET: "broken_plugin.X"}, ["broken_plugin"])


def test_to_plain_and_back() -> None:
    value = Outer(inner=Inner(0.5), sizes=(1, 2), path=Path("a"), shape=Square(2.0), by_name={"x": Inner()})
    plain = to_plain(value)
    assert plain["sizes"] == [1, 2]
    assert plain["path"] == "a"
    assert convert(Outer, plain, "", RESOLVE) == value
    assert to_plain(Circle(CircleConfig(2.0))) == {"radius": 2.0, TARGET: f"{HERE}.Circle"}
    with pytest.raises(TypeError, match="is no configuration"):
        to_plain({"x": object()})


def test_compose_gives_frozen_dataclasses() -> None:
    config = compose([*TOY, "stage.train.lr=1e-4", "seed=3"], TOY_CONF)
    assert config.stage == {"write": Write(), "train": Train(lr=1e-4)}
    assert (config.seed, config.run, config.run_dir) == (3, "toy", Path("runs/toy").absolute())
    assert config.model.name == "v3_tiny"
    assert list(build_graph(config).nodes) == ["write", "train", "evaluate"]


def test_composing_twice_does_not_interfere() -> None:
    first = compose([*TOY, "model=v3_671b"], TOY_CONF)
    assert first.model.name == "v3_671b"
    assert compose(TOY, TOY_CONF).model.name == "v3_tiny"


def test_defaults_live_in_the_dataclass_only() -> None:
    """A key that no yaml mentions can be set all the same, and a stage can be swapped for another."""
    config = compose([*TOY, "stage.write.word=bye", "stage@stage.train=toy_write"], TOY_CONF)
    assert config.stage == {"write": Write(word="bye"), "train": Write()}


def test_a_few_yaml_files_say_it_all() -> None:
    assert len([file for file in SHIPPED if not file.startswith("benchmark/")]) <= MOST_FILES  # public sets, one each


SIZES = {
    "dapo": ("model=qwen_32b", "cluster=h800_512"),
    "published": ("model=v3_671b", "cluster=h800_512"),
    "student": ("model=qwen_7b", "cluster=node8"),
}


@pytest.mark.parametrize("file", SHIPPED)
def test_every_shipped_yaml_loads(file: str, tmp_path: Path) -> None:
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    if file == "config.yaml":
        compose()
        return
    if group == "recipe" and name in ("own", "rlhf", "instructgpt"):  # recipes of other jobs, which are below
        return
    if file.startswith("recipe/table"):
        build_graph(compose(["job=transformers", f"recipe={name}"]))
        return
    if group in ("algorithm", "recipe"):  # they may set what RL stages alone have
        build_graph(compose([f"{group}={name}", *SIZES.get(name, ())]))
        return
    if group == "benchmark":  # each is composed with a file in its format in test_benchmarks.py
        return
    assert group in GROUPS, f"{file} is in no group of the configuration"
    if group == "job":
        sft_files(CHAT)(tmp_path)
        lines = (f'{{"question": "{i} + 1?", "answer": "#### {i + 1}"}}' for i in range(40))
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
        data = {
            "sft": f"data.train={tmp_path}/chats.jsonl",
            "grpo": f"data.train={tmp_path}/prompts.jsonl",
            "eval": f"data.heldout={tmp_path}/prompts.jsonl",
            **dict.fromkeys(("reward_model", "dpo"), f"data.train={tmp_path}/pairs.jsonl"),
        }
        (tmp_path / "pairs.jsonl").write_text('{"prompt": "1 + 2?", "chosen": "3", "rejected": "4"}')
        given = [data[name], f"base={tmp_path}/base"] if name in data else []
        if name == "pretrain":
            (tmp_path / "text.jsonl").write_text('{"text": "one"}')
            given = [f"data.documents={tmp_path}/*.jsonl"]
        build_graph(compose([f"job={name}", *given])).check()
    else:
        config = compose([*(item for item in TOY if item != f"~{group}"), f"{group}={name}"], TOY_CONF)
        assert getattr(config, group)


def test_hydra_is_imported_by_composing_only() -> None:
    import subprocess

    code = "import sys, framework.config; sys.exit(any(m.split('.')[0] in ('hydra', 'omegaconf') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("raise Untold", "Untold: (its text cannot be had: RuntimeError)"),
        ("raise GeneratorExit", "GeneratorExit ("),
        ("import sys; sys.exit('no table')", "SystemExit: no table ("),
        ("from .beside import x", "ImportError: attempted relative import"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_is_named_with_its_line(tmp_path: Path, monkeypatch: Any, line: str, says: str) -> None:
    name = f"failing_{abs(hash(line))}"
    untold = "class Untold(Exception):\n    def __str__(self): raise RuntimeError\n"
    (tmp_path / f"{name}.py").write_text(untold + line + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as found, blaming_plugins([name]):
        importlib.import_module(name)
    assert says in str(found.value)
    assert f"{name}.py:3)" in str(found.value)


def test_a_plugin_neither_prints_among_results_nor_moves_the_command(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noisy_plugin.py").write_text("import os\nprint('loaded')\nos.chdir('/')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with blaming_plugins(["noisy_plugin"]):
        importlib.import_module("noisy_plugin")
    assert Path.cwd() == tmp_path
    assert capsys.readouterr() == ("", "loaded\n")
