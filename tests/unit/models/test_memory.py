"""The plan's memory against what real ranks allocate, part by part; `framework bench memory` has larger cases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from framework.engines.deepspeed_engine import DeepSpeedConfig
from jobs.bench.memory import Case, Measured, families, measure_cases
from tests.distributed import run_ranks

BASE = DeepSpeedConfig(token_budget=768)
FAMILIES = families(hidden=192, layers=3, vocabulary=2048)
ALONE = {
    f"{name} {dtype} checkpointing {checkpointing}": Case(
        FAMILIES[name], replace(BASE, dtype=dtype, gradient_checkpointing=checkpointing), 192
    )
    for name, dtype, checkpointing in (
        ("v3", "float32", False), ("v3", "bfloat16", True), ("v2", "bfloat16", True),
        ("moe", "float32", False), ("dense", "float32", True), ("dense", "bfloat16", False),
        ("v3 mtp", "float32", False), ("v3 mtp", "bfloat16", True),
    )
}  # fmt: skip
ALONE["frozen MTP modules"] = Case(FAMILIES["v3 mtp"], replace(BASE, mtp_coef=0.0), 192)
for kind, dtype in (("v3 mtp", "bfloat16"), ("dense", "float32")):
    engine = replace(BASE, dtype=dtype, gradient_checkpointing=True)
    ALONE[f"{kind} {dtype}, logits in chunks"] = Case(replace(FAMILIES[kind], vocab_size=12_288), engine, 192)
ALONE["an attention without a kernel"] = Case(replace(FAMILIES["v3"], v_head_dim=32), BASE, 192)
PAIR = {
    f"ZeRO-{stage} EP {ep_size} {dtype}": Case(
        FAMILIES["v3"], replace(BASE, zero_stage=stage, ep_size=ep_size, dtype=dtype), 192
    )
    for stage, ep_size, dtype in ((1, 2, "float32"), (1, 2, "bfloat16"), (2, 1, "bfloat16"), (2, 2, "bfloat16"),
                                  (3, 1, "float32"), (3, 2, "bfloat16"))
}  # fmt: skip
SPREAD = families(hidden=256, layers=3, vocabulary=2048)  # with heads for both ranks of a row
for kind, dtype in (("v3", "bfloat16"), ("dense", "float32")):
    engine = replace(BASE, zero_stage=2, sp_size=2, dtype=dtype, token_budget=2 * BASE.token_budget)
    PAIR[f"{kind} {dtype}, rows over both"] = Case(SPREAD[kind], engine, 192)
PAIR["ZeRO-3 EP 2 MTP modules"] = Case(FAMILIES["v3 mtp"], replace(BASE, zero_stage=3, ep_size=2), 192)


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    """Of rank 0."""
    alone = run_ranks(measure_cases, 1, list(ALONE.values()))[0]
    pair = run_ranks(measure_cases, 2, list(PAIR.values()))[0]
    return dict(zip([*ALONE, *PAIR], alone + pair, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALONE, *PAIR])
def test_estimate_is_within_a_tenth(name: str, measured: dict[str, Measured]) -> None:
    case, found = {**ALONE, **PAIR}[name], measured[name]
    estimate = case.estimate(2 if name in PAIR else 1)
    assert estimate.total == pytest.approx(found.peak, rel=0.1)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(estimate, part) == pytest.approx(getattr(found, part), rel=0.02), part
    assert estimate.activations == pytest.approx(found.activations, rel=0.1)
