"""Which metrics of a stage share a chart. What no chart asks for gets its own, so nothing recorded stays unseen."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from framework.observe.charts import Series, heat_map, line_chart
from framework.observe.metrics import StageHistory

PHASES = ("time/generate_s", "time/score_s", "time/train_s", "time/sync_s", "time/wait_s")
STEP_TIME = "time/step_s"
MAX_LAYERS = 8  # drawn; of more, evenly spaced ones


@dataclass(frozen=True)
class Curves:
    """One chart: the metrics it draws, by name or pattern, in this order."""

    title: str
    metrics: tuple[str, ...]
    group: str  # one of GROUPS
    expect: str  # how it looks where all is well
    unit: str = ""
    zero: bool = False  # keep zero on the axis
    smooth: bool = True  # draw a moving mean over the noise
    most: int | None = None  # lines; of more, evenly spaced ones are drawn


@dataclass(frozen=True)
class DrawnCharts:
    """Charts of one stage as HTML."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]  # title of each group, and its charts
    heat_maps: tuple[str, ...]

    @property
    def curves(self) -> tuple[str, ...]:
        """The charts of all groups."""
        return tuple(chart for _, charts in self.groups for chart in charts)


LEARNED, STABLE, FAST, SAMPLED, OTHER = GROUPS = (
    "what is learned",
    "how stable it is",
    "how fast it is",
    "what is sampled",
    "what else was recorded",
)

CURVES = (
    Curves("Loss", ("train/loss", "validation/loss"), LEARNED, "falls, steeply at first; validation stays beside it",
           "nats per token"),
    Curves("Reward", ("reward/mean", "reward/*"), LEARNED, "rises, each component on its own; flat: nothing is learned",
           "mean over responses", zero=True),
    Curves("Held-out prompts",
           ("evaluation/pass_at_1", "evaluation/cons_at_k", "evaluation/pass_at_k", "evaluation/format_rate"), LEARNED,
           "pass@1 rises with the reward, cons@k above it; if it falls meanwhile, prompts are learned by heart",
           "share", zero=True, smooth=False),
    Curves("Reward on held-out prompts", ("evaluation/reward",), LEARNED, "rises beside the reward",
           "mean over responses", zero=True, smooth=False),
    Curves("KL divergence", ("kl/reference",), LEARNED, "grows slowly from 0: how far the policy has gone",
           "to the reference, nats per token", zero=True),
    Curves("KL divergence of a response", ("kl/sequence",), LEARNED, "grows slowly from 0; to its target",
           "to the reference, nats", zero=True),
    Curves("Critic", ("critic/value", "critic/return"), LEARNED, "what is expected comes near to what is earned",
           "reward still to come", zero=True),
    Curves("Entropy", ("train/entropy",), LEARNED, "sinks slowly; at 0 the policy tries nothing new any more",
           "nats per token", zero=True),
    Curves("Gradient norm", ("train/grad_norm",), STABLE, "steady, without spikes", zero=True),
    Curves("Learner–sampler mismatch, mean", ("mismatch/mean_abs",), STABLE, "small and flat: both compute one policy",
           "nats per token", zero=True),
    Curves("Learner–sampler mismatch, maximum", ("mismatch/max_abs",), STABLE, "flat; single tokens may stand out",
           "nats", zero=True),
    Curves("Learner–sampler mismatch, k3 KL", ("mismatch/k3",), STABLE, "near 0 and flat", "nats per token", zero=True),
    Curves("KL divergence, old policy", ("kl/old", "kl/*"), STABLE, "near 0: steps within one batch stay small",
           "nats per token", zero=True),
    Curves("Clipped tokens", ("clip/low", "clip/high", "clip/*"), STABLE, "a percent or less", "share", zero=True),
    Curves("KL coefficient", ("kl/coef",), STABLE, "flat, or on its way to the KL's target", zero=True, smooth=False),
    Curves("Critic's loss", ("critic/loss",), STABLE, "falls, then follows the rewards", zero=True),
    Curves("Policy loss", ("loss/policy", "loss/*"), STABLE, "around 0: it says little by itself"),
    Curves("Learning rate", ("train/lr",), STABLE, "as the schedule was given", zero=True, smooth=False),
    Curves("Staleness", ("staleness/mean", "staleness/max"), STABLE, "at most max_staleness", "policy versions",
           zero=True),
    Curves("Expert load, maximum over mean", ("experts/max_over_mean",), STABLE, "sinks towards 1",
           "mean of layers, 1 is even"),
    Curves("Expert load of each MoE layer", ("experts/layer_*",), STABLE, "every layer towards 1",
           "maximum over mean, 1 is even", most=MAX_LAYERS),
    Curves("Throughput", ("sampled_tokens_per_s", "trained_tokens_per_s", "train/tokens_per_s"), FAST,
           "flat after the first steps", "tokens per second", zero=True),
    Curves("Time by phase", (*PHASES, STEP_TIME), FAST, "phases overlap: the step takes less than their sum",
           "seconds per step", zero=True),
    Curves("Response length", ("response/length_mean", "response/length_max"), SAMPLED,
           "grows as reasoning does; at the limit answers are cut off", "tokens", zero=True),
    Curves("Spoiled responses and groups", ("response/truncated_share", "reward/failed_share", "groups/*"), SAMPLED,
           "low; groups of equal rewards teach nothing", "share", zero=True),
    Curves("Held-out responses: length", ("evaluation/response_tokens",), SAMPLED, "as that of the trained ones",
           "tokens", zero=True, smooth=False),
    Curves("Held-out responses: cut off", ("evaluation/truncated_share",), SAMPLED, "low", "share", zero=True,
           smooth=False),
    Curves("Evaluation time", ("time/evaluate_s",), FAST, "flat; it comes on top of the steps", "seconds", zero=True),
)  # fmt: skip


def stage_charts(stage: StageHistory) -> DrawnCharts:
    """Draw everything that the stage has recorded."""
    left = {name: Series(name, list(v), list(v.values())) for name, v in stage.series.items()}
    apart = {name for curves in CURVES for name in curves.metrics if "*" not in name}  # a pattern takes none of these
    drawn: dict[str, list[str]] = {group: [] for group in GROUPS}
    for curves in CURVES:
        chosen = [left.pop(name) for pattern in curves.metrics for name in _matches(pattern, left, apart)]
        if curves.most is not None:
            chosen = [chosen[index] for index in _spread(len(chosen), curves.most)]
        if chosen:
            chart = line_chart(curves.title, chosen, curves.unit, curves.zero, curves.smooth, curves.expect)
            drawn[curves.group].append(chart)
    if against := _against_kl(stage):
        note = "all rise together; where one falls while what is trained for rises, the reward model is fooled"
        unit = "mean over responses, by hundredths of a nat a response"
        drawn[LEARNED].append(line_chart("Rewards against KL", against, unit, zero=True, note=note))
    drawn[OTHER] = [line_chart(name, [series]) for name, series in sorted(left.items())]
    groups = tuple((group, tuple(charts)) for group, charts in drawn.items() if charts)
    return DrawnCharts(groups, tuple(_heat_maps(stage)))


def _against_kl(stage: StageHistory) -> list[Series]:
    """Every reward over the KL to the reference, as over-optimisation is looked for (2210.10760)."""
    kl, found = stage.series.get("kl/sequence", {}), list[Series]()
    for name, values in stage.series.items():
        if fnmatchcase(name, "reward/*") and name != "reward/failed_share":
            points = sorted((round(100 * kl[step]), value) for step, value in values.items() if step in kl)
            if points:
                found.append(Series(name, [x for x, _ in points], [y for _, y in points]))
    return found


def _matches(pattern: str, names: dict[str, Series], apart: set[str]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in names else []
    return sorted((name for name in names if fnmatchcase(name, pattern) and name not in apart), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer_2 before layer_10."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return [(int(digits[0]) if digits else -1, name)]


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of range(count), evenly spaced."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


def _heat_maps(stage: StageHistory) -> list[str]:
    if not stage.expert_load:
        return []
    shape = next(reversed(stage.expert_load.values())).shape  # a changed model would change it: keep the last shape
    steps = [step for step, load in stage.expert_load.items() if load.shape == shape]
    load_NLE = np.stack([stage.expert_load[step] for step in steps])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_NLE = load_NLE / load_NLE.mean(axis=2, keepdims=True)
    layers = _spread(shape[0], MAX_LAYERS)
    return [heat_map(f"MoE layer {layer}", steps, ratio_NLE[:, layer].T) for layer in layers]
