"""Files that settings name, by whatever kind of name: a stage is run again when the content of one of them changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from framework.config import BenchmarkConfig, RunConfig
from framework.data.chat_template import TemplateConfig
from framework.data.cleaning import CleanConfig
from framework.data.tasks import TaskConfig
from framework.graph.nodes import NamesFiles, Node
from framework.graph.store import Store
from framework.keys import documented
from framework.observe.wandb_sink import TrackingConfig
from framework.stages.chats import ChatsConfig, CollectChats, EncodeChats
from framework.stages.clean import Clean
from framework.stages.collect import Collect, CollectConfig
from framework.stages.documents import CollectDocuments, DocumentsConfig
from framework.stages.preferences import CollectPreferences, PreferencesConfig
from framework.stages.prompts import PreparePrompts, PromptsConfig
from tests.unit.bad_input import prompt_line
from tests.unit.test_bounds import settings
from tests.unit.toy_graph import Nothing, Texts

TASKS = {"chain_sum": TaskConfig()}
# Setting -> a stage in which it names `named`, and `other` is what goes with it.
STAGES: dict[str, Callable[[str, str], Any]] = {
    "data.train": lambda named, other: PreparePrompts(PromptsConfig(train=named)),
    "data.train, a glob": lambda named, other: PreparePrompts(PromptsConfig(train=named.replace("med.", "me*."))),
    "data.heldout": lambda named, other: PreparePrompts(PromptsConfig(train=other, heldout=named)),
    "data.documents": lambda named, other: CollectDocuments(DocumentsConfig(named)),
    "data.documents, a folder": lambda named, other: CollectDocuments(DocumentsConfig(str(Path(named).parent))),
    "data.train of preferences": lambda named, other: CollectPreferences(PreferencesConfig(named), "pairwise"),
    "data.train of conversations": lambda named, other: CollectChats(ChatsConfig(named)),
    "data.documents_files": lambda named, other: Collect(CollectConfig(TASKS, documents_files=(other, named))),
    "stage.clean.benchmarks": lambda named, other: Clean(CleanConfig(benchmarks=(other, named))),
    "data.train_prompts_file": lambda named, other: Collect(
        CollectConfig(TASKS, train_prompts_file=named, heldout_prompts_file=other)
    ),
    "data.heldout_prompts_file": lambda named, other: Collect(
        CollectConfig(TASKS, train_prompts_file=other, heldout_prompts_file=named)
    ),
    "template.name": lambda named, other: EncodeChats(8, TemplateConfig(named.replace(".jsonl", ".jinja"))),
}


@pytest.mark.parametrize("setting", STAGES)
def test_a_stage_has_another_key_once_a_file_that_it_names_has_other_content(setting: str, tmp_path: Path) -> None:
    def key() -> str:
        stage = STAGES[setting](str(tmp_path / "named.jsonl"), str(tmp_path / "other.jsonl"))
        return Store(tmp_path / "run").key(Node("node", stage, {}, Nothing, Texts, {}), {}, 0)

    def write(name: str, question: str) -> None:
        (tmp_path / f"{name}.jsonl").write_text(prompt_line(name, question))
        (tmp_path / f"{name}.jinja").write_text(f"{{{{ messages }}}} {question}")

    write("other", "What is 3 + 9?")
    write("named", "What is 1 + 2?")
    first = key()
    write("named", "What is 2 + 2?")
    assert key() != first
    write("named", "What is 1 + 2?")
    assert key() == first


def test_templates_that_are_no_file_name_none() -> None:
    for name in ("", "r1", "v3"):
        assert TemplateConfig(name).named_files() == ()


def is_text(hint: Any) -> bool:
    return hint is str or any(is_text(arg) for arg in get_args(hint) if arg is not hint)


def test_every_text_setting_that_is_said_to_name_a_file_is_known_to_do_so() -> None:
    """By what is said of it: its name, and the comment beside it or its class's first line."""
    words, found = re.compile(r"\b(files?|globs?|folders?|jinja)\b|_files?\b"), set()
    for cls in settings() - {RunConfig, TrackingConfig, BenchmarkConfig}:  # which no stage holds
        hints = get_type_hints(cls, include_extras=True)
        told = {name: comment for name, (comment, _) in documented(cls).items() if is_text(hints[name])}
        named = {name for name, comment in told.items() if words.search(f"{name} {comment}")}
        found |= named
        assert not named or issubclass(cls, NamesFiles), f"{cls.__name__}, {named}: give it named_files()"
    assert found >= {
        "documents",
        "train",
        "heldout",
        "documents_files",
        "train_prompts_file",
        "name",
        "benchmarks",
    }
