"""The numbers of an evaluation from its scored groups: pass@k, majority votes, denominators. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from framework.stored import Scored
from framework.types import EvalTask, Measured, ScoredGroup

RESAMPLES = 2000
COLUMNS = ("level", "difficulty", "subject", "type", "category", "high-level domain", "subdomain")
MOST_VALUES = 100


@dataclass(frozen=True)
class JudgedGroup:
    """A scored group with its votes: for each response the first one whose answer says the same; -1: no answer."""

    scored: ScoredGroup
    votes: tuple[int, ...]  # G


@dataclass(frozen=True)
class JudgedStored:
    """The same of a group whose responses may be somewhere else."""

    scored: Scored
    votes: tuple[int, ...]  # G


Judged = JudgedGroup | JudgedStored


def judged(scored: ScoredGroup) -> JudgedGroup:
    """Return the group with the votes that its scores carry; without any where none were counted."""
    return JudgedGroup(scored, votes_of(scored))


def votes_of(scored: Scored) -> tuple[int, ...]:
    """The votes that a group's scores carry."""
    return tuple(score.vote for score in scored.scores if score.vote is not None)


def pass_at(right: int, total: int, k: int) -> float:
    """Chance that one of k responses, drawn without replacement from `total`, is right: unbiased for k <= total.

    Source: Chen et al., Evaluating Large Language Models Trained on Code, eq. 1: 1 - C(total - right, k) / C(total, k).
    """
    k = min(k, total)
    return 1.0 - comb(total - right, k) / comb(total, k)


def verdicts(group: Scored, names: Sequence[str]) -> list[float | None]:
    """Of each response the first of these components that scored it; None where none was asked, or it failed."""
    return [next((s.components[name] for name in names if name in s.components), None) for s in group.scores]


def majority_is_right(group: Judged, right_by: Sequence[str]) -> bool | None:
    """Whether the most frequent answer is right; of equally frequent ones the first given. No answer is no vote.

    It is right if most of the responses that give it and could be scored are. None: none of them could be scored, or
    no votes were counted.
    """
    if not group.votes:
        return None
    votes = Counter(vote for vote in group.votes if vote >= 0)  # in the order in which they were first given
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]
    found = verdicts(group.scored, right_by)
    members = [found[place] for place, vote in enumerate(group.votes) if vote == winner]
    known = [value >= 1 for value in members if value is not None]
    return 2 * sum(known) > len(known) if known else None


def right_shares(groups: Sequence[Judged], right_by: Sequence[str]) -> dict[str, float]:
    """The share of right ones of each prompt's responses with a verdict; prompts without any stay out."""
    shares = {}
    for group in groups:
        known = [float(value >= 1) for value in verdicts(group.scored, right_by) if value is not None]
        if known:
            shares[group.scored.group.prompt.id] = float(np.mean(known))
    return shares


def bootstrap(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% percentile interval of the mean over prompts, from RESAMPLES draws with replacement.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3. None for fewer than two values.
    """
    if len(values) < 2:
        return None
    values_N, rng = np.asarray(values, float), np.random.default_rng(0)
    means = [float(values_N[rng.integers(0, len(values_N), len(values_N))].mean()) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def by_columns(groups: Sequence[JudgedGroup]) -> dict[str, list[JudgedGroup]]:
    """Share prompts out by level, subject and the like: "level 5" -> its groups, in the order of their values.

    A column counts where every prompt has it and it takes 2 to MOST_VALUES values.
    """
    found: dict[str, list[JudgedGroup]] = {}
    rows = [{str(key).lower(): value for key, value in g.scored.group.prompt.columns.items()} for g in groups]
    for column in COLUMNS:
        values = [row.get(column) for row in rows]
        if all(isinstance(value, str | int) for value in values) and 2 <= len(set(values)) <= MOST_VALUES:
            for value in sorted(set(values), key=_natural):
                word = "" if str(value).lower().startswith(column) else f"{column} "
                found[f"{word}{value}"] = [g for g, own in zip(groups, values, strict=True) if own == value]
    return found


def _natural(value: object) -> tuple[int, float, str]:
    """Numbers in their order, and before texts."""
    number = isinstance(value, int) or (isinstance(value, str) and value.isdigit())
    return (0, float(str(value)), "") if number else (1, 0.0, str(value))


def task_numbers(name: str, groups: Sequence[Judged], right_by: Sequence[str], form: str) -> EvalTask:
    """Each number is over what it can be told of: responses that failed, or whose prompt asks for less, stay out."""
    k = max(len(group.scored.scores) for group in groups)
    counts = []  # of each prompt that has a verdict: right ones, known ones
    majorities: list[bool] = []
    for group in groups:
        known = [value >= 1 for value in verdicts(group.scored, right_by) if value is not None]
        if known:
            counts.append((sum(known), len(known)))
            majority = majority_is_right(group, right_by)
            majorities += [] if majority is None else [majority]
    responses = [response for group in groups for response in group.scored.group.responses]
    formats = [value for group in groups for value in verdicts(group.scored, (form,)) if value is not None]
    pass_N = [right / total for right, total in counts]
    sizes = sorted({k, *(size for size in (4**power for power in range(12)) if size <= k)})
    passes = {size: float(np.mean([pass_at(*count, size) for count in counts])) for size in sizes if counts}
    return EvalTask(
        task=name,
        n_prompts=len(groups),
        k=k,
        pass_at_1=_mean(pass_N),
        pass_at_1_se=_standard_error(pass_N),
        cons_at_k=_mean(majorities),
        pass_at_k=passes.get(k),
        format_rate=_mean(formats),
        mean_response_tokens=float(np.mean([response.outline.length for response in responses])),
        truncated_share=float(np.mean([response.outline.finish_reason == "length" for response in responses])),
        failed_samples=sum(bool(score.error) for group in groups for score in group.scored.scores),
        n_judged=len(counts),
        pass_at_1_interval=bootstrap(pass_N),
        cons_at_k_interval=bootstrap([float(value) for value in majorities]),
        pass_at={str(size): value for size, value in passes.items()},
        scores=component_scores(groups),
    )


def component_scores(groups: Sequence[Judged]) -> dict[str, Measured]:
    """Reward component -> its mean over the prompts that it scored, for all components of these groups."""
    found: dict[str, list[float]] = {}
    for group in groups:
        scores = group.scored.scores
        for name in dict.fromkeys(name for score in scores for name in score.components):
            values = [score.components[name] for score in scores if name in score.components]
            found.setdefault(name, []).append(float(np.mean(values)))
    return {name: Measured(float(np.mean(v)), _standard_error(v), len(v)) for name, v in found.items()}


def best_of(groups: Sequence[JudgedGroup], by: str) -> dict[str, dict[str, Measured]]:
    """n -> component -> its mean if of n responses the one of the highest `by` were given, for n = 1, 2, 4, … k.

    Over all ways to draw n of a prompt's k responses without replacement: the one of rank i (from 1, by rising `by`) is
    the best of comb(i - 1, n - 1) of the comb(k, n) draws. Its KL to the sampled policy is log n - (n - 1) / n at most
    (2009.01325, appendix G.3; 2401.01879). Prompts of which `by` scored no response stay out.
    """
    ranked = [[s for s in group.scored.scores if by in s.components] for group in groups]
    ranked = [sorted(scores, key=lambda score: score.components[by]) for scores in ranked if scores]
    if not ranked:
        return {}
    most = min(map(len, ranked))
    names = dict.fromkeys(name for scores in ranked for score in scores for name in score.components)
    found: dict[str, dict[str, Measured]] = {}
    for n in (2**power for power in range(most.bit_length())):
        values: dict[str, list[float]] = {name: [] for name in names}
        for scores in ranked:
            weights = np.array([comb(place, n - 1) for place in range(len(scores))], float) / comb(len(scores), n)
            for name in names:
                if all(name in score.components for score in scores):
                    values[name].append(float(weights @ [score.components[name] for score in scores]))
        found[str(n)] = {
            name: Measured(float(np.mean(v)), _standard_error(v), len(v)) for name, v in values.items() if v
        }
    return found


def _standard_error(values_N: Sequence[float]) -> float | None:
    """Of the mean over prompts; None: fewer than two."""
    return float(np.std(values_N, ddof=1) / np.sqrt(len(values_N))) if len(values_N) > 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
