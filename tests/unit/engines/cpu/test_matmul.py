"""oneDNN's products against float64, for every layout that training makes, and their place in PyTorch's dispatcher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.profiler import profile

from framework.engines.cpu import matmul as cpu_matmul
from tests.distributed import run_ranks

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
LAYOUTS = {
    "rows": lambda m, n: torch.randn(m, n),
    "columns": lambda m, n: torch.randn(n, m).t(),
    "part of a larger one": lambda m, n: torch.randn(m + 1, 2 * n)[1:, n:],
    "every second": lambda m, n: torch.randn(2 * m, 2 * n)[::2, ::2],
    "one row, expanded": lambda m, n: torch.randn(1, n).expand(m, n),
    "one column, expanded": lambda m, n: torch.randn(m, 1).expand(m, n),
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from(list(LAYOUTS)),
)
def test_products_are_those_of_float64(m: int, k: int, n: int, a: str, b: str) -> None:
    a_MK, b_KN = LAYOUTS[a](m, k), LAYOUTS[b](k, n)
    expected_MN = a_MK.double() @ b_KN.double()
    found_MN = cpu_matmul.onednn_mm(a_MK, b_KN)
    assert found_MN.shape == (m, n)
    assert found_MN.is_contiguous()  # as aten::mm's are: kernels that take strides for granted follow
    scale = (a_MK.double().abs() @ b_KN.double().abs()).clamp_min(1e-6)
    assert ((found_MN - expected_MN).abs() / scale).max() < 1e-5


@pytest.mark.parametrize(("m", "k", "n"), [(512, 9001, 256), (256, 9001, 512), (9001, 256, 512)])
def test_products_too_large_to_pad(m: int, k: int, n: int) -> None:
    assert m * n * k >= cpu_matmul.ALWAYS_NEW
    a_MK, b_KN = torch.randn(k, m).t(), torch.randn(k, n)
    found_MN = cpu_matmul.onednn_mm(a_MK, b_KN)
    assert found_MN.is_contiguous()
    torch.testing.assert_close(found_MN, (a_MK.double() @ b_KN.double()).float(), rtol=1e-4, atol=1e-3)


def _dispatched() -> dict[str, object]:
    """In a process of its own: what is registered stays."""
    cpu_matmul.blas_is_slow = lambda: True  # type: ignore[assignment]  # also where BLAS is fast
    assert cpu_matmul.use_fast_matmul()
    assert cpu_matmul.use_fast_matmul()  # a second time changes nothing
    linear = torch.nn.Linear(256, 192, bias=False)
    x_BTH = torch.randn(3, 333, 256, requires_grad=True)
    with profile(use_cpu=True) as fast:
        linear(x_BTH).pow(2).sum().backward()
    gradients = [linear.weight.grad.clone(), x_BTH.grad.clone()]
    linear.weight.grad = x_BTH.grad = None
    with cpu_matmul.stock_matmul(), profile(use_cpu=True) as stock:
        linear(x_BTH).pow(2).sum().backward()
    for found, expected in zip(gradients, [linear.weight.grad, x_BTH.grad], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    a, b = torch.randn(300, 256), torch.randn(256, 200)
    out, empty = torch.empty(300, 200), torch.empty(0)
    torch.mm(a, b, out=out)
    torch.mm(a, b, out=empty)
    torch.testing.assert_close(out, torch.mm(a, b), rtol=0, atol=0)
    torch.testing.assert_close(empty, out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.mm(a.double(), b.double()).float(), out, rtol=1e-4, atol=1e-4)
    errors = []
    for wrong in (b[:-1], b.double()):
        with pytest.raises(RuntimeError) as error:
            torch.mm(a, wrong)
        errors.append(str(error.value))

    def calls(profiler: object) -> int:
        return sum(event.count for event in profiler.key_averages() if event.key == "mkldnn::_linear_pointwise")  # type: ignore[attr-defined]

    return {"fast": calls(fast), "stock": calls(stock), "errors": errors}


def test_linear_layers_take_them_forward_and_backward() -> None:
    found = run_ranks(_dispatched, 1)[0]
    assert (found["fast"], found["stock"]) == (3, 0)
    assert "mat1 and mat2" in found["errors"][0]
    assert "dtype" in found["errors"][1]


def test_only_for_processors_that_blas_neglects(monkeypatch: pytest.MonkeyPatch) -> None:
    neglected = cpu_matmul.blas_is_slow.__wrapped__
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not neglected()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for vendor, expected in (("GenuineIntel", False), ("AuthenticAMD", torch.backends.mkl.is_available())):
        monkeypatch.setattr(Path, "read_text", lambda _, vendor=vendor: f"vendor_id : {vendor}\n")
        assert neglected() == (expected and Path("/proc/cpuinfo").exists())
