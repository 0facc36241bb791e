"""Float32 matrix products by oneDNN where PyTorch's BLAS leaves half of a CPU idle.

MKL, the BLAS of PyTorch's x86 builds, runs its AVX2 kernels on other makers' processors: 100 GFLOP/s a core of a Zen 5,
where oneDNN's AVX-512 kernels, which PyTorch brings too and takes for bfloat16, reach 240.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

SMALLEST = 2**22  # multiply-adds; below it the overhead of a call is what counts
ALWAYS_NEW = 2**26  # ... and from here on a new shape's kernels (0.5 to 1 ms to compile) cost less than padding
TOKENS = 64  # what smaller products are padded to a multiple of: an expert's tokens differ in every micro-batch

_enabled = True


@cache
def blas_is_slow() -> bool:
    """Whether this CPU has AVX-512 and is not Intel's, under a PyTorch with MKL and oneDNN."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    described = Path("/proc/cpuinfo")
    return described.exists() and "GenuineIntel" not in described.read_text()


@cache
def use_fast_matmul() -> bool:
    """Let oneDNN multiply float32 matrices in this process where BLAS is slow; say whether it does."""
    if not blas_is_slow():
        return False
    blas_mm, blas_mm_out = (torch.library.get_kernel(name, "CPU") for name in ("aten::mm", "aten::mm.out"))

    def mm(keys: Any, a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
        if _worth_it(a_MK, b_KN):
            return onednn_mm(a_MK, b_KN)
        return blas_mm.call_boxed(keys, a_MK, b_KN)  # type: ignore[no-any-return]

    def mm_out(keys: Any, a_MK: torch.Tensor, b_KN: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        if _worth_it(a_MK, b_KN) and out.dtype is torch.float32 and out.shape == (a_MK.shape[0], b_KN.shape[1]):
            return out.copy_(onednn_mm(a_MK, b_KN))
        return blas_mm_out.call_boxed(keys, a_MK, b_KN, out=out)  # type: ignore[no-any-return]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch notes that kernels are replaced
        _library().impl("mm", mm, "CPU", with_keyset=True, allow_override=True)
        _library().impl("mm.out", mm_out, "CPU", with_keyset=True, allow_override=True)
    return True


def _worth_it(a_MK: torch.Tensor, b_KN: torch.Tensor) -> bool:
    fits = a_MK.ndim == b_KN.ndim == 2 and a_MK.shape[1] == b_KN.shape[0]  # BLAS's kernel says what is wrong
    both_float = a_MK.dtype is b_KN.dtype is torch.float32
    return _enabled and fits and both_float and a_MK.numel() * b_KN.shape[1] >= SMALLEST


@cache
def _library() -> Any:
    library: Any = torch.library.Library  # untyped in PyTorch
    return library("aten", "IMPL")  # what it registers lasts as long as it does


@contextlib.contextmanager
def stock_matmul() -> Iterator[None]:
    """Products by PyTorch's own choice of library, for comparisons."""
    global _enabled
    _enabled = False
    try:
        yield
    finally:
        _enabled = True


def onednn_mm(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """Return [M, N] in float32, contiguous as `aten::mm`'s results are.

    Small products' tokens are padded, or each new count would compile its own kernels.
    """
    (m, k), n = a_MK.shape, b_KN.shape[1]
    small = m * n * k < ALWAYS_NEW
    if k > max(m, n):  # a weight's gradient: tokens are summed over, and the longer side is fastest last
        if small and k % TOKENS:
            a_MK, b_KN = functional.pad(a_MK, (0, -k % TOKENS)), functional.pad(b_KN, (0, 0, 0, -k % TOKENS))
        return _linear(b_KN.t(), a_MK).t().contiguous() if m > n else _linear(a_MK, b_KN.t())
    if small and m % TOKENS:
        return _linear(functional.pad(a_MK, (0, 0, 0, -m % TOKENS)), b_KN.t())[:m]
    return _linear(a_MK, b_KN.t())


def _linear(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x_MK, weight_NK, None, "none", [], "")
    return product
