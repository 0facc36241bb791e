"""Hydra composes, this file makes frozen dataclasses of it. The only file that imports Hydra and OmegaConf."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from framework.artifacts import Artifact, Checkpoint
from framework.bounds import Seed, bounded
from framework.convert import TARGET, Component, convert, instantiate
from framework.data.chat_template import TemplateConfig
from framework.errors import UserError, did_you_mean
from framework.graph.cluster import ClusterConfig
from framework.graph.cut import from_node, up_to
from framework.graph.fit import Fit, check_places, choices_of, fit_stages
from framework.graph.found import find_run, newest_of
from framework.graph.nodes import Graph
from framework.inherit import as_written, given_in, inherit, with_values
from framework.keys import SYNONYMS, Key, how_to_quote, like, list_keys
from framework.models.families.base import ModelConfig
from framework.models.families.find import check_same, of_base, reads_alone
from framework.models.find_base import find_base
from framework.named_groups import compose_beside_names, fill_names
from framework.targets import TargetResolver, blaming_plugins, find_plugins

CONF = Path(__file__).resolve().parent.parent / "conf"
_KEY = re.compile(r"[^\s\0./=@]+([./@][^\s\0./=@]+)*")  # of an override


@dataclass(frozen=True)
class JobConfig:
    """The job graph: `target` is the dotted name of its `build(config: RunConfig) -> Graph`."""

    name: str
    target: str
    reads_text: bool = False  # its base may be an encoder
    takes_base: bool = False  # it makes a base of its own unless one is given


@dataclass(frozen=True)
class BenchmarkConfig:
    """A public test set; its yaml also says how it is asked and sampled (`data`, `stage.evaluate`)."""

    name: str = ""
    file: str = ""  # what `data.heldout` is: a data set of the hub, or a file of it that you have


@dataclass(frozen=True)
class EngineConfig:
    """The engines' own Config dataclasses: `VllmConfig` and `DeepSpeedConfig`, or what a plug-in gives."""

    rollout: Component = None
    learner: Component = None


class Stages(dict[str, Any]):
    """Settings of a job's stages by name; one that is not there is the user's to give."""

    def __missing__(self, name: str) -> Any:
        raise UserError(f"stage.{name}", None, f"must be given: the job has such a stage (given: {', '.join(self)})")


@dataclass(frozen=True)
@bounded
class RunConfig:
    """Everything a run is made of. Fields typed `Component` hold what their node's `_target_` names."""

    job: JobConfig
    model: ModelConfig | None = None  # sizes of a fresh model; None: those of `base`
    models: Mapping[str, str] = field(default_factory=dict)  # stage name -> its model, by a name of conf/model
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # What the stages have in common: a stage's own node, `stage.NAME.algorithm` and so on, goes before it.
    algorithm: Component = None
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    reward: Component = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    rl: Mapping[str, Any] = field(default_factory=dict)  # any setting of a stage of reinforcement learning
    data: Component = None
    tracking: Component = None
    stage: Mapping[str, Component] = field(default_factory=dict)  # stage name -> all of its settings
    until: str = ""  # a node of the job after which the run ends
    from_: str = ""  # a node that the run begins at, with `base` as the checkpoint that another would give it
    template: TemplateConfig = field(default_factory=TemplateConfig)  # of prompts and conversations
    base: Path | None = None  # the checkpoint that a job starts from: a directory, a hub id or a run
    seed: Seed = 0
    run: str = "run"
    runs_dir: Path = Path("runs")
    plugins: tuple[str, ...] = ()  # module prefixes that `_target_` may name besides framework and jobs

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,99}", self.run):
            raise UserError("run", self.run, "must be a directory name of at most 100 letters, digits, '.', '_', '-'")
        object.__setattr__(self, "stage", Stages(self.stage))

    @property
    def sizes(self) -> dict[str, ModelConfig]:
        """The models of `models`, by stage; raises UserError for a stage, or a model, that is not there."""
        found = {}
        for name, model in self.models.items() if self.stage else ():
            if name not in self.stage:
                allowed = f"{did_you_mean(name, self.stage)}must be of a stage of the job"
                raise UserError(f"models.{name}", model, allowed)
            found[name] = named_model(model, f"models.{name}")
        return found

    @property
    def run_dir(self) -> Path:
        """Where the run keeps its artifacts and metrics."""
        return (self.runs_dir / self.run).absolute()  # workers have another working directory


def compose(
    overrides: Sequence[str] = (), config_dir: Path | None = None, weights: bool = True, places: bool = True
) -> RunConfig:
    """Compose conf/config.yaml with `overrides` (Hydra's grammar) into a RunConfig.

    `config_dir` holds further yaml files of its groups. Without a model the sizes are those of `base`, which is fetched
    if it is a hub id (for `plan` without its weights). Raises UserError on an override that does not parse, an unknown
    key or group option, a wrong type or a missing value; if `places`, also for a stage that does not fit its model or
    the cluster.
    """
    return compose_fitted(overrides, config_dir, weights, places)[0]


def compose_fitted(
    overrides: Sequence[str] = (), config_dir: Path | None = None, weights: bool = True, places: bool = True
) -> tuple[RunConfig, dict[str, Fit]]:
    """As `compose`, with what was computed for each stage."""
    node, plugins = _plain(overrides, config_dir)
    job = node.get("job")
    if not isinstance(job, Mapping) or TARGET not in job:
        raise UserError("job", job, f"must be a group with a {TARGET}")
    node["job"] = {("target" if key == TARGET else key): value for key, value in job.items()}
    resolve = TargetResolver(plugins)
    with blaming_plugins(plugins):
        taken = inherit(node, resolve)
        try:
            config = _converted(node, resolve)
            resolve(config.job.target, f"job.{TARGET}")
            if config.base is not None:
                named = any(word.startswith("model=") for word in overrides)
                run = find_run(str(node["base"]), config.runs_dir)
                base = newest_of(run) if run is not None else find_base(str(node["base"]), weights)
                sizes = config.model if named or not (config.from_ or config.job.takes_base) else None  # a fresh one's
                no_policy = config.job.reads_text and reads_alone(base)
                config = replace(config, base=base, model=sizes or (None if no_policy else of_base(base)))
            models = config.sizes
            fits = fit_stages(config.stage, config.model, config.cluster, given_in(node), models)
            if fits:
                fitted = _converted(with_values(node, choices_of(fits)), resolve)
                config = replace(fitted, base=config.base, model=config.model)
            if places:
                check_places(config.stage, config.model, config.cluster, models)
        except UserError as error:
            raise _elsewhere(as_written(error, taken), node, resolve) from None
    return config, fits


def compose_rewards(overrides: Sequence[str], config_dir: Path | None) -> Any:
    """Return `reward` alone: what the rest of a job asks of its rewards is nothing to a file of responses."""
    node, plugins = _plain(overrides, config_dir)
    with blaming_plugins(plugins):
        return convert(Component, node.get("reward"), "reward", TargetResolver(plugins))


def setting_keys(overrides: Sequence[str] = (), config_dir: Path | None = None) -> list[Key]:
    """Return every setting of the job that `overrides` choose; a base is not looked at."""
    node, plugins = _plain(overrides, config_dir)
    resolve = TargetResolver(plugins)
    inherit(node, resolve)
    config = _converted({**node, "job": {"name": "keys", "target": ""}}, resolve)
    computed = choices_of(fit_stages(config.stage, config.model, config.cluster, given_in(node), config.sizes))
    keys = list_keys(RunConfig, with_values(node, computed), resolve)
    found = (replace(key, doc=f"{key.doc}; computed if not given") if key.name in computed else key for key in keys)
    return [replace(key, name=key.name.rstrip("_")) for key in found if not key.name.startswith("job.")]


def _converted(node: Mapping[str, Any], resolve: TargetResolver) -> RunConfig:
    config = convert(RunConfig, node, "", resolve)
    assert isinstance(config, RunConfig)
    return config


def _plain(overrides: Sequence[str], config_dir: Path | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What Hydra composes, less the values of stages that the job has not; and its plug-ins, which are found."""
    node, beneath = compose_beside_names(overrides, lambda given: compose_plain(given, config_dir))
    if "from" in node:
        node["from_"] = node.pop("from")  # a word that Python keeps for itself
    plugins = convert(tuple[str, ...], node.get("plugins", []), "plugins", _no_target)
    find_plugins(plugins)
    stages = node.get("stage")
    if isinstance(stages, Mapping):  # a recipe has values for the stages of every job; a user means one of this job's
        keys = [word.lstrip("+~").partition("=")[0].split(".") for word in overrides]
        meant = {parts[1] for parts in keys if parts[0] == "stage" and parts[1:]}
        node["stage"] = {
            name: item
            for name, item in stages.items()
            if name in meant or not isinstance(item, Mapping) or TARGET in item
        }
        named = {parts[1] for parts in keys if parts[0] == "models" and parts[1:]}
        models = node.get("models") or {}
        node["models"] = {name: model for name, model in models.items() if name in node["stage"] or name in named}
        fill_names(node["stage"], beneath, lambda given: compose_plain(given, config_dir))
    return node, plugins


def _elsewhere(error: UserError, node: Mapping[str, Any], resolve: TargetResolver) -> UserError:
    """Point an unknown key to the keys of that name, or of what it is called here, in other places."""
    if not error.allowed.startswith("unknown key;"):
        return error
    word = error.where.rpartition(".")[2]
    found = like(word, (key.name for key in list_keys(RunConfig, node, resolve) if "[]" not in key.name))
    exact = word in SYNONYMS or any(name.endswith(f".{word}") for name in found)
    if not found or ("did you mean" in error.allowed and not exact):
        return error
    near = re.search(r"did you mean '(\w+)'", error.allowed)  # beside it
    found = [*([error.where.removesuffix(word) + near[1]] if near and word not in SYNONYMS else []), *found]
    more = f" or {len(found) - 4} more, see framework keys" if len(found) > 4 else ""
    return UserError(error.where, error.value, f"unknown key; did you mean {', '.join(found[:4])}{more}?")


def fresh_model(config: RunConfig) -> ModelConfig:
    """Return the sizes of the model that a job makes from nothing; raises UserError if none are given."""
    if config.model is None:
        raise UserError("model", None, f"must be given: {', '.join(group_options('model'))}")
    if not config.model.policy:
        allowed = f"must be a model that vLLM samples from: {config.model.model_type} is for job=transformers"
        raise UserError("model", config.model.name, allowed)
    return config.model


def given_base(config: RunConfig) -> tuple[Checkpoint, ModelConfig]:
    """Return the checkpoint that a job starts from, and its sizes.

    Raises UserError if there is none, or a model given by hand disagrees with it in a field that counts.
    """
    if config.base is None:
        raise UserError("base", None, "must name the checkpoint directory, or the hub id, to start from")
    assert config.model is not None  # `compose` has read it
    if config.model != of_base(config.base):
        check_same(config.model, config.base)
    return Checkpoint(config.base.absolute()), config.model


def build_graph(config: RunConfig) -> Graph:
    """Call the job's `build(config)`; raises UserError if an edge of its graph does not fit."""
    build = TargetResolver(config.plugins)(config.job.target, f"job.{TARGET}")
    if not callable(build):
        raise UserError(f"job.{TARGET}", config.job.target, "must be a function that builds a graph")
    with blaming_plugins(config.plugins), _naming_what_is_absent(config):
        graph = build(config)
    if not isinstance(graph, Graph):
        raise UserError(f"job.{TARGET}", config.job.target, "must return a framework.graph.nodes.Graph")
    if config.from_:
        if config.base is not None and config.model is not None and config.model != of_base(config.base):
            check_same(config.model, config.base)
        graph = from_node(graph, config.from_, config.base)
    graph = up_to(graph, config.until) if config.until else graph
    given = {edge.path for node in graph.nodes.values() for edge in node.edges.values() if isinstance(edge, Artifact)}
    if config.base is not None and config.base.absolute() not in given:
        allowed = f"must be left out: job {config.job.name} makes its own base model; or begin with it at a node: from="
        raise UserError("base", str(config.base), allowed)
    return graph


@contextmanager
def _naming_what_is_absent(config: RunConfig) -> Iterator[None]:
    """Say which group a job lacks that was left out or set to null, where its `build` would meet None."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        groups = {name: getattr(config, name) for name in ("algorithm", "data", "reward")}
        groups |= {f"engine.{name}": getattr(config.engine, name) for name in ("rollout", "learner")}
        absent = [name for name, value in groups.items() if value is None]
        if "NoneType" not in str(error) or not absent:
            raise
        raise UserError(", ".join(absent), None, f"must be given: job {config.job.name} needs it") from error


def build_component(node: Mapping[str, Any], plugins: Sequence[str] = (), where: str = "") -> Any:
    """Instantiate one plain node with a `_target_`, checking its fields as `compose` does."""
    return instantiate(node, where, TargetResolver(tuple(plugins)))


def compose_plain(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """Return what Hydra composes, interpolations resolved, as plain dicts and lists."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    if not CONF.is_dir():
        raise UserError(
            str(CONF), "no such directory", "conf/ must lie beside the package: install with pip install -e"
        )
    if config_dir is not None and not config_dir.is_dir():
        raise UserError("--config-dir", str(config_dir), "must be a directory")
    if config_dir is not None and any(config_dir.rglob("*.yml")):
        with tempfile.TemporaryDirectory() as renamed:  # Hydra looks for .yaml alone
            for file in (*config_dir.rglob("*.yml"), *config_dir.rglob("*.yaml")):
                copy = Path(renamed, file.relative_to(config_dir)).with_suffix(".yaml")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            return compose_plain(overrides, Path(renamed))
    folders = [CONF] if config_dir is None else [CONF, config_dir.resolve()]
    arguments = [_as_hydra_takes_it(override, folders) for override in overrides]
    if config_dir is not None:
        arguments.append(f"hydra.searchpath=[file://{config_dir.resolve()}]")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", arguments)
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(str(error.full_key), "???", "must be given") from None
    except OmegaConfBaseException as error:
        raise UserError(str(error.full_key or "configuration"), error.value, _first_line(error)) from None
    except YAMLError as error:
        raise UserError("configuration", " ".join(str(error).split()), "must be valid yaml") from None
    except HydraException as error:
        raise _composition_error(error, folders) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def group_options(group: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """Return the names of the yaml files of a config group, e.g. group_options("model")."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def _as_hydra_takes_it(override: str, folders: Sequence[Path]) -> str:
    """Let `key=value` set keys that no yaml mentions: which keys exist is the dataclasses' to say, not the yaml's."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    allowed = "an override reads key=value, e.g. model=v3_tiny or algorithm.group_size=8"
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (HydraException, ValueError):  # ValueError: an integer of more digits than Python reads
        key, equals, value = override.partition("=")
        if len(value) > 1000 and value.lstrip("-").isdigit():
            raise UserError(key, f"an integer of {len(value)} digits", "must be of 64 bits") from None
        good_key = equals and _KEY.fullmatch(key.lstrip("+~"))
        raise UserError("override", override[:200], how_to_quote(override) if good_key else allowed) from None
    key = parsed.key_or_group
    if not _KEY.fullmatch(key):
        raise UserError("override", override[:200], allowed)
    if re.split(r"[./]", key)[0] == "hydra":
        raise UserError("override", override[:200], "Hydra's own settings have no effect here: leave it out")
    if parsed.is_sweep_override():
        raise UserError("override", override, "takes one value; a list is written key=[a,b]")
    is_group = parsed.package is not None or any((folder / parsed.key_or_group).is_dir() for folder in folders)
    plain_set = not (parsed.is_add() or parsed.is_force_add() or parsed.is_delete())
    option = parsed.value()
    an_option = isinstance(option, str | list) and not (isinstance(option, str) and ".." in option.split("/"))
    if is_group and not parsed.is_delete() and not an_option:
        options = ", ".join(group_options(key, folders))
        raise UserError(key, option, f"takes the name of one of its yaml files: {options}")
    return override if is_group or not plain_set else f"++{override}"


def _composition_error(error: Exception, folders: Sequence[Path]) -> UserError:
    """Say in one line, with the options, what Hydra says in many."""
    found = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    if found is None:
        return UserError("configuration", _first_line(error), "see conf/")
    group, _, option = found.group(1).rpartition("/")
    options = group_options(group, folders)
    return UserError(group or "configuration", option, f"{did_you_mean(option, options)}options: {', '.join(options)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _no_target(target: str, where: str) -> Any:
    raise UserError(where, target, "must be plain values")


@cache
def named_model(name: str, key: str = "model") -> ModelConfig:
    """Return the sizes that a yaml file of conf/model gives; raises UserError, naming `key`, if there is none."""
    options = group_options("model")
    if name not in options:
        raise UserError(key, name, f"{did_you_mean(name, options)}must be one of {', '.join(options)}")
    model = build_component(compose_plain([f"model={name}"])["model"])
    assert isinstance(model, ModelConfig)
    return model
