from __future__ import annotations

import pytest

from framework.errors import RunFailed
from framework.roles.reward import check_failed_share


@pytest.mark.parametrize(("failed", "total", "share"), [(0, 0, 0.0), (5, 100, 0.05), (100, 100, 1.0), (0, 8, 0.0)])
def test_a_share_up_to_the_limit_is_accepted(failed: int, total: int, share: float) -> None:
    check_failed_share(failed, total, share, "e")


@pytest.mark.parametrize(("failed", "total", "share"), [(6, 100, 0.05), (1, 8, 0.0), (8, 8, 0.99)])
def test_a_larger_share_stops_the_run_and_shows_an_error(failed: int, total: int, share: float) -> None:
    with pytest.raises(RunFailed) as caught:
        check_failed_share(failed, total, share, "reward accuracy raised KeyError:\n'x'")
    message = str(caught.value)
    assert f"{failed} of {total}" in message
    assert "for example: reward accuracy raised KeyError: 'x'" in message
    assert "\n" not in message
