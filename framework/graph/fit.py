"""What a stage's settings are told by the model and the cluster that they are to run on; knows no stage by name.

A setting that neither a yaml file nor the command line gives may be computed: a stage's settings offer `fit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from framework.errors import UserError
from framework.graph.cluster import ClusterConfig

Given = Callable[[str], bool]  # whether a key of the stage's node, or "cluster.KEY", has been given
OF_CLUSTER = "cluster."


@dataclass(frozen=True)
class Fit:
    """What was computed for one stage; `choices`: key of its node, or "cluster.KEY" -> value."""

    choices: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""  # a line for people: what takes how much memory, and what did not fit
    misfit: str = ""  # where nothing fits: what is lacking, and what would fit


@runtime_checkable
class Fits(Protocol):
    """Settings of a stage that can be completed. What has `fits_first` chooses how roles share the cluster."""

    def fit(self, model: Any, cluster: ClusterConfig, given: Given) -> Fit:
        """Return what is not given, for the model on the cluster."""
        ...


@runtime_checkable
class ChecksPlace(Protocol):
    """Settings of a stage that can tell whether they suit a model and a cluster."""

    def check_place(self, model: Any, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in the stage's node, for what can't work."""
        ...


def fit_stages(
    stages: Mapping[str, Any],
    model: Any,
    cluster: ClusterConfig,
    given: Given,
    models: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Fit]:
    """Return what each stage computes, by stage; what one says of the cluster holds for those after it.

    `models`: of stages whose model is not the run's; settings that hold a `model` have that one. `given` is asked for
    whole keys, such as "stage.grpo.engine.learner.zero_stage".
    """
    found: dict[str, Fit] = {}
    chosen: set[str] = set()  # of the cluster
    for name in sorted(stages, key=lambda name: not getattr(stages[name], "fits_first", False)):
        settings = stages[name]
        own = _model_of(settings, models.get(name, model))
        if isinstance(settings, Fits) and own is not None:  # a base that is missing is told of by the job
            asked = partial(_asked, given, frozenset(chosen), name)
            found[name] = settings.fit(own, cluster, asked)
            said = {key: value for key, value in found[name].choices.items() if key.startswith(OF_CLUSTER)}
            cluster = replace(cluster, **{key.removeprefix(OF_CLUSTER): value for key, value in said.items()})
            chosen |= set(said)
    return found


def _model_of(settings: Any, otherwise: Any) -> Any:
    return getattr(settings, "model", None) or otherwise


def _asked(given: Given, chosen: frozenset[str], stage: str, key: str) -> bool:
    return given(key) or key in chosen if key.startswith(OF_CLUSTER) else given(f"stage.{stage}.{key}")


def choices_of(fits: Mapping[str, Fit]) -> dict[str, Any]:
    """Return whole key -> value of all that was computed."""
    return {_whole(name, key): value for name, fit in fits.items() for key, value in fit.choices.items()}


def describe_fits(fits: Mapping[str, Fit]) -> str:
    """What was computed and why, as the plan shows it; empty if nothing was."""
    lines: list[str] = []
    for name, fit in fits.items():
        if fit.why or fit.misfit:
            lines.append(f"  stage.{name}: {f'DOES NOT FIT: {fit.misfit}' if fit.misfit else fit.why}")
            lines += [f"    {_whole(name, key)}={_shown(value)}" for key, value in fit.choices.items()]
    heading = "fitted to the model and the cluster; what a yaml file or the command line gives goes before:"
    return "\n".join([heading, *lines] if lines else [])


def check_fits(fits: Mapping[str, Fit]) -> None:
    """Raise UserError for the first stage that has not the memory it needs."""
    for name, fit in fits.items():
        if fit.misfit:
            raise UserError(f"stage.{name}", "more memory than a GPU has", fit.misfit)


def check_places(
    stages: Mapping[str, Any], model: Any, cluster: ClusterConfig, models: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Ask every stage whether it suits the model and the cluster; errors name the whole key."""
    for name, settings in stages.items():
        own = _model_of(settings, models.get(name, model))
        if isinstance(settings, ChecksPlace) and own is not None:
            with naming(f"stage.{name}", settings):
                settings.check_place(own, cluster)


@contextmanager
def naming(where: str, settings: Any) -> Iterator[None]:
    """Let an error about a field of `settings`, which stand at key `where`, name the whole key."""
    try:
        yield
    except UserError as error:
        raise _in_node(error, where, settings) from None


def _in_node(error: UserError, where: str, settings: Any) -> UserError:
    """Put the stage's key before that of an error about one of its own fields."""
    own = {item.name for item in dataclasses.fields(settings)}
    if error.where.partition(".")[0] not in own:
        return error
    return type(error)(f"{where}.{error.where}", error.value, error.allowed)


def _whole(name: str, key: str) -> str:
    return key if key.startswith(OF_CLUSTER) else f"stage.{name}.{key}"


def _shown(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
