import math

import numpy as np
import pytest

from framework.algorithms.mismatch import (
    Mismatch,
    MismatchConfig,
    check_mismatch,
    measure_mismatch,
    merge_mismatches,
)
from framework.errors import MismatchTooLarge, UserError
from framework.types import Float32, TrainSample


def sample(name: str, logprobs: list[float], versions: list[int] | None = None) -> TrainSample:
    n = len(logprobs)
    return TrainSample(
        prompt_id=name,
        prompt_ids=np.array([1], np.int32),
        response_ids=np.arange(10, 10 + n, dtype=np.int32),
        advantage=0.0,
        sampler_logprobs=np.array(logprobs, np.float32),
        weight_versions=np.array(versions or [0] * n, np.int32),
    )


def floats(*values: float) -> Float32:
    return np.array(values, np.float32)


SAMPLES = [sample("a", [-1.0, -2.0]), sample("b", [-1.0, -0.5, -3.0], [4, 5, 6])]
LEARNER = [floats(-1.0, -1.5), floats(-1.0, -1.25, -3.0)]


def test_hand_worked() -> None:
    found = measure_mismatch(SAMPLES, LEARNER)
    assert found.tokens == 5
    assert found.mean_abs == pytest.approx((0.5 + 0.75) / 5)
    assert found.max_abs == pytest.approx(0.75)
    # k3 of the sampler's KL to the learner: e^gap - gap - 1
    k3_kl = (math.exp(0.5) - 0.5 - 1 + math.exp(-0.75) + 0.75 - 1) / 5
    assert found.k3_kl == pytest.approx(k3_kl)
    assert found.worst is not None
    assert (found.worst.prompt_id, found.worst.sample_index, found.worst.position) == ("b", 1, 1)
    assert (found.worst.token_id, found.worst.learner_logprob, found.worst.sampler_logprob) == (11, -1.25, -0.5)


def test_only_tokens_of_the_asked_version_count() -> None:
    found = measure_mismatch(SAMPLES, LEARNER, version=5)
    assert (found.tokens, found.mean_abs) == (1, pytest.approx(0.75))
    assert found.worst is not None
    assert found.worst.position == 1
    assert measure_mismatch(SAMPLES, LEARNER, version=9) == Mismatch()


def test_merging_parts_is_measuring_at_once() -> None:
    parts = [measure_mismatch([s], [values]) for s, values in zip(SAMPLES, LEARNER, strict=True)]
    merged, whole = merge_mismatches([*parts, Mismatch()]), measure_mismatch(SAMPLES, LEARNER)
    for name in ("mean_abs", "max_abs", "k3_kl", "tokens"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name))


def test_gate_names_the_worst_token() -> None:
    found = measure_mismatch(SAMPLES, LEARNER)
    check_mismatch(found, MismatchConfig(stop_above=0.26))
    with pytest.raises(MismatchTooLarge) as caught:
        check_mismatch(found, MismatchConfig(stop_above=0.24))
    message = str(caught.value)
    for part in ("0.25 nats", "stop_above=0.24", "prompt 'b'", "response position 1", "-1.2500", "-0.5000"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("measure", ["mean_abs", "max_abs", "k3_kl"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_gate_stops_on_what_is_not_a_number(measure: str, bad: float) -> None:
    found = measure_mismatch(SAMPLES, [LEARNER[0], floats(-1.0, -0.5, bad)])
    with pytest.raises(MismatchTooLarge, match=r"prompt 'b', sample 1, response position 2"):
        check_mismatch(found, MismatchConfig(stop_above=1e6, measure=measure))


def test_nothing_measured_passes() -> None:
    check_mismatch(measure_mismatch([], []), MismatchConfig())


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="sample 0"):
        measure_mismatch(SAMPLES[:1], [floats(-1.0)])
    with pytest.raises(ValueError, match="shorter"):
        measure_mismatch(SAMPLES, LEARNER[:1])


@pytest.mark.parametrize("bar", [0.0, -1.0, math.nan])
def test_bar_must_be_positive(bar: float) -> None:
    with pytest.raises(UserError, match=r"MismatchConfig\.stop_above"):
        MismatchConfig(stop_above=bar)
