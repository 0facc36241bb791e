"""A view of the run on wandb with the report's charts: a section for each stage and question, made by wandb-workspaces.

wandb's own panels stand in alphabetical order, a panel a name; here lines to be compared share one, as in the report.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
from collections.abc import Mapping, Set
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from framework.files import write_atomically
from framework.observe.curves import CURVES, GROUPS, Curves

log = logging.getLogger("framework.observe")


class Workspace:
    """The run's own view, saved by a thread of its own whenever a stage records a name for the first time.

    `file` holds its identity: a resumed process changes the same view. Where saving fails it is said once, and no
    further attempt is made: wandb's own panels show the numbers anyway.
    """

    def __init__(self, entity: str, project: str, run_id: str, file: Path) -> None:
        self.entity, self.project, self.run_id, self._file = entity, project, run_id, file
        self._names: dict[str, frozenset[str]] = {}  # stage -> what it has recorded
        self._changes: queue.SimpleQueue[dict[str, frozenset[str]] | None] = queue.SimpleQueue()  # None: the end
        self.thread = threading.Thread(target=self._work, name="wandb-workspace", daemon=True)
        self.thread.start()

    def recorded(self, stage: str, names: Set[str]) -> None:
        """Note what a stage records; returns at once."""
        known = self._names.get(stage, frozenset())
        if not names <= known:
            self._names = {**self._names, stage: known | names}
            self._changes.put(self._names)

    def close(self) -> None:
        """Let the thread end once it has saved what there is; returns at once."""
        self._changes.put(None)

    def _work(self) -> None:
        while (names := self._changes.get()) is not None:
            try:
                self.save(names)
            except Exception as error:  # whatever the library or its server raises costs the view alone
                why = f"{type(error).__name__}: {' '.join(str(error).split())}"
                return log.warning("no wandb workspace (%s): wandb's own panels show the numbers", why)

    def save(self, names: Mapping[str, Set[str]]) -> None:
        """Write the view; waits for wandb's server, and raises what the library raises."""
        from wandb_workspaces import workspaces

        view = workspaces.Workspace(
            entity=self.entity,
            project=self.project,
            name=f"run {self.run_id}",
            sections=sections(names),
            runset_settings=workspaces.RunsetSettings(query=self.run_id),
        )
        if self._file.is_file():  # the library has no public way to say which view is meant
            view._internal_name, view._internal_id = json.loads(self._file.read_text())
        view.save()
        write_atomically(self._file, json.dumps([view._internal_name, view._internal_id]))


def sections(names: Mapping[str, Set[str]]) -> list[Any]:
    """A section for each stage and each of the report's groups of charts of which the stage records something."""
    from wandb_workspaces.workspaces import Section

    found = []
    for stage, recorded in names.items():
        for group in GROUPS:
            drawn = [curves for curves in CURVES if curves.group == group and _draws(curves, recorded)]
            panels = [_panel(stage, curves) for curves in drawn]
            if panels:
                found.append(Section(name=f"{stage}: {group}", panels=panels, is_open=group == GROUPS[0]))
    return found


def _draws(curves: Curves, names: Set[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in curves.metrics)


def _panel(stage: str, curves: Curves) -> Any:
    """A chart; what the report takes by a pattern wandb takes by a regular expression."""
    from wandb_workspaces.reports.v2 import LinePlot

    names = "|".join(re.escape(name).replace(r"\*", ".*") for name in curves.metrics)
    lines: Mapping[str, Any] = {"y": [f"{stage}/{name}" for name in curves.metrics]}
    if any("*" in name for name in curves.metrics):
        lines = {"metric_regex": f"^{re.escape(stage)}/({names})$"}
    return LinePlot(title=curves.title, x=f"{stage}/step", title_y=curves.unit or None, **lines)
