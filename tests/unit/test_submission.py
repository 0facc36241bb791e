"""What `framework submit` sends along: plug-ins and yaml files that lie on the user's machine alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from framework.commands.submission import SENT_CONF, found_conf, place_of, to_send
from framework.errors import UserError


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sent_file.py").write_text("ONE = 1\n")
    (tmp_path / "sent_package").mkdir()
    (tmp_path / "sent_package" / "__init__.py").write_text("")
    (tmp_path / "conf" / "reward").mkdir(parents=True)
    (tmp_path / "conf" / "reward" / "mine.yaml").write_text("_target_: sent_file.Mine")
    (tmp_path / "conf" / "notes.txt").write_text("not read")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_files_and_packages_are_sent_once_and_what_is_installed_is_not(beside: Path) -> None:
    plugins = ["sent_file", "sent_package.rewards", "sent_package.tasks", "numpy", "json"]
    with to_send(plugins, None) as (modules, conf):
        assert [Path(module).name for module in modules] == ["sent_file", "sent_package"]
        assert Path(modules[0], "__init__.py").read_text() == "ONE = 1\n"  # folders alone can be sent
        assert modules[1] == str(beside / "sent_package")
        assert conf == ""


def test_yaml_files_get_a_name_of_their_own_and_are_found_by_it(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with to_send([], beside / "conf") as ((folder,), name):
        assert Path(folder).name == name
        assert [path.name for path in sorted(Path(folder).rglob("*.*"))] == ["mine.yaml"]
        monkeypatch.setattr(sys, "path", [str(Path(folder).parent)])  # as Ray unpacks it
        assert found_conf(Path(name)) == Path(folder)
        first = name
    (beside / "conf" / "reward" / "mine.yaml").write_text("_target_: sent_file.Other")
    with to_send([], beside / "conf") as (_, name):
        assert name != first
    assert found_conf(None) is None
    assert found_conf(Path("conf")) == Path("conf")
    assert found_conf(Path(f"{SENT_CONF}gone")) == Path(f"{SENT_CONF}gone")


def test_what_cannot_be_sent_is_said(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):  # a namespace in two places
        (beside / name / "sent_spread").mkdir(parents=True)
        monkeypatch.syspath_prepend(str(beside / name))
    for plugin in ("sent_spread", "sent_nowhere"):
        with pytest.raises(UserError, match=rf"plugins: got '{plugin}'; cannot be sent"):
            place_of(plugin)
