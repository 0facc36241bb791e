"""How far a policy has gone: log-ratios of its responses by hand, and the best of n of them by counting all draws."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import UserError
from framework.observe.collect import read_evaluation
from framework.rewards.base import RewardConfig
from framework.rewards.format import Format
from framework.stages import divergence
from framework.stages.divergence import with_divergence
from framework.stages.eval_numbers import JudgedGroup, best_of
from framework.stages.evaluate import EvaluateConfig, summarise
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup


def group(name: str, *components: dict[str, float], tokens: int = 3) -> JudgedGroup:
    ids = np.arange(tokens, dtype=np.int32)
    responses = tuple(Response(ids, ids.astype(np.float32), ids, "stop", "x") for _ in components)
    scores = tuple(RewardScore(0.0, found) for found in components)
    return JudgedGroup(ScoredGroup(ResponseGroup(Prompt(name, name, "t", "", token_ids=(1, 2)), responses), scores), ())


def test_each_response_gets_the_sum_of_its_tokens_log_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def logprobs(model: Path, samples: Any, temperature: float, *_: Any) -> list[Any]:
        asked.append((model.name, temperature, [list(sample.prompt_ids) for sample in samples]))
        each = -1.0 if model.name == "policy" else -1.5
        return [np.full(len(sample.response_ids), each, np.float32) for sample in samples]

    monkeypatch.setattr(divergence, "_logprobs", logprobs)
    groups = [group("a", {"r": 1.0}, {"r": 2.0}), group("b", {}, tokens=2)]
    found = with_divergence(groups, Path("policy"), Path("sft"), 0.7, cast(Any, None), cast(Any, None))
    assert asked == [(name, 0.7, [[1, 2]] * 3) for name in ("policy", "sft")]
    kept = [[dict(score.components) for score in one.scored.scores] for one in found]
    assert kept == [[{"r": 1.0, "kl": 1.5}, {"r": 2.0, "kl": 1.5}], [{"kl": 1.0}]]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1)), min_size=1, max_size=6, unique_by=lambda p: p[0]))
def test_the_best_of_n_is_the_mean_over_every_draw(pairs: list[tuple[int, int]]) -> None:
    one = group("a", *({"proxy": float(proxy), "rule": float(rule)} for proxy, rule in pairs))
    for n, scores in best_of([one], "proxy").items():
        draws = [max(drawn) for drawn in combinations(pairs, int(n))]
        assert scores["proxy"].mean == pytest.approx(np.mean([proxy for proxy, _ in draws]))
        assert scores["rule"].mean == pytest.approx(np.mean([rule for _, rule in draws]))


def test_the_best_of_n_by_hand_and_as_the_report_reads_it(tmp_path: Path) -> None:
    groups = [
        group("a", {"p": 1.0, "r": 1.0}, {"p": 3.0, "r": 0.0}),
        group("b", {"p": 0.0, "r": 1.0}, {"p": 2.0, "r": 1.0}),
    ]
    config = EvaluateConfig(k=2, reward=RewardConfig({"accuracy": Format(), "p": Format()}), best_by="p")
    result = summarise("sft", groups, config)
    assert {n: {name: value.mean for name, value in found.items()} for n, found in result.best_of.items()} == {
        "1": {"p": 1.5, "r": 0.75},
        "2": {"p": 2.5, "r": 0.5},
    }
    (tmp_path / "report.json").write_text(json.dumps(asdict(result)))
    assert read_evaluation(tmp_path / "report.json").best_of == result.best_of
    assert best_of([group("a", {})], "p") == {}
    with pytest.raises(UserError, match="best_by: got 'q'; must be a component of the rewards: accuracy, p"):
        EvaluateConfig(k=2, reward=config.reward, best_by="q")
    assert math.isclose(result.best_of["2"]["r"].error or 0.0, 0.5)
