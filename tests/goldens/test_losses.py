"""The training that is checked in, trained again."""

from __future__ import annotations

import json

import pytest

from tests.goldens.losses import FILE, STEPS, train

pytestmark = pytest.mark.slow
# The same machine repeats every bit; kernels for another one (SSE instead of AVX) change 2e-6, absolute in the losses
# and relative in the rest. A changed formula, schedule or order of operations changes more than this.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


def test_losses_are_those_checked_in() -> None:
    expected, found = json.loads(FILE.read_text()), train()
    assert found.keys() == expected.keys()
    for training, curves in expected.items():
        assert found[training].keys() == curves.keys()
        for name, values in curves.items():
            assert len(values) == STEPS
            assert found[training][name] == pytest.approx(values, rel=RELATIVE, abs=ABSOLUTE), f"{training} {name}"
