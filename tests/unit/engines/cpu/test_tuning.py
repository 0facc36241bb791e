"""Each thing done for CPUs is still asked for: by the version that it was found in, and by trying the fault."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

from framework.engines.cpu.environment import worker_environment
from framework.engines.cpu.rms_norm import FastRMSNorm
from framework.engines.cpu.tuning import TUNINGS, sampler_arguments


@pytest.mark.parametrize("name", TUNINGS)
def test_the_dependency_is_the_one_that_was_looked_at(name: str) -> None:
    """A new version may have mended it: try, drop the tuning or raise its version here."""
    tuning = TUNINGS[name]
    found = next(
        importlib.metadata.version(package)
        for package in (tuning.package, f"{tuning.package}-cpu")
        if any(importlib.metadata.distributions(name=package))
    )
    assert found.split("+")[0] == tuning.version, f"{name} was found with {tuning.package} {tuning.version}: look again"


def kept_for_backward(norm: torch.nn.Module, x_TD: torch.Tensor) -> int:
    """Bytes that a norm saves between forward and backward, its input and weight aside."""
    known = {x_TD.data_ptr(), *(p.data_ptr() for p in norm.parameters())}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in known:
            saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x_TD)
    return sum(saved.values())


def test_rms_norm_transformers_keeps_more() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs, x_TD = LlamaRMSNorm(64), torch.randn(32, 64, requires_grad=True)
    ours = FastRMSNorm(theirs.weight, 1e-6)
    assert kept_for_backward(ours, x_TD) <= 32 * 4
    assert kept_for_backward(theirs, x_TD) >= x_TD.nbytes


def test_environment_ray_brings_jemalloc() -> None:
    assert worker_environment(2, on_gpu=False)["LD_PRELOAD"].endswith("libjemalloc.so")
    assert "LD_PRELOAD" not in worker_environment(2, on_gpu=True)


@pytest.mark.slow
class TestVllm:
    """Its own code, faults and all."""

    def test_draft_kernels_lose_temperatures(self) -> None:
        from vllm.platforms import current_platform
        from vllm.utils.cpu_triton_utils import _expand_kernel_impl

        from framework.engines.cpu.draft_kernels import expand_values

        current_platform.import_kernels()
        temperatures, ends = torch.tensor([0.5, 0.25]), torch.tensor([2, 5], dtype=torch.int32)
        found, ours = torch.full((5,), 9.0), torch.full((5,), 9.0)
        _expand_kernel_impl(found, temperatures, ends, 0, 0, MAX_NUM_TOKENS=4)
        expand_values(ours, temperatures, ends, 0, 0)
        assert ours.tolist() == [0.5, 0.5, 0.25, 0.25, 0.25]
        assert found.tolist() != ours.tolist(), "vLLM's own kernel is right now: drop ours"

    def test_arguments_differ_on_cpus_alone(self) -> None:
        assert set(sampler_arguments(False, False, "float32")) == {"scheduler_cls"}
        on_cpu = sampler_arguments(True, False, "float32")
        assert (on_cpu["block_size"], on_cpu["enable_chunked_prefill"]) == (32, False)
        assert sampler_arguments(True, True, "bfloat16")["block_size"] is None
        assert "attention_backend" not in sampler_arguments(True, True, "bfloat16")
        assert sampler_arguments(True, True, "float32")["attention_backend"] == "CPU_MLA"

    @pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="needs a CPU with AMX")
    def test_latent_attention_packs_no_float32(self) -> None:
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        with pytest.raises(RuntimeError, match="expect weight to be bfloat16"):
            torch.ops._C.convert_weight_packed(torch.randn(2, 32, 32))
