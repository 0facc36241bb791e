"""DeepSpeed AutoEP's mixture-of-experts layers as the learner needs them: fp32 gate, loads, bias update, names.

AutoEP replaces each Hugging Face MoE block by an `AutoEPMoELayer` that holds E / ep_size experts as w1, w2, w3
[E_local, ...] and a router. Dimensions: L MoE layers, E routed experts, T tokens, K experts per token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from framework.models.public_layout import public_name

BIAS = "e_score_correction_bias"
PLAIN_SWIGLU = "swiglu_eager"  # AutoEP's own "swiglu" takes a Triton kernel, which has no CPU version


def routed_experts(model_config: Any) -> int:
    """E of a Hugging Face model config; 0 for a dense model."""
    for key in ("n_routed_experts", "num_experts", "num_local_experts"):
        if value := getattr(model_config, key, None):
            return int(value)
    return 0


def autoep_section(model_config: Any, ep_size: int, on_gpu: bool) -> dict[str, Any]:
    """The `expert_parallel` section of DeepSpeed's config; the CPU runs grouped GEMMs with an eager SwiGLU."""
    section: dict[str, Any] = {"enabled": True, "autoep_size": ep_size, "use_grouped_mm": True}
    if model_config.model_type == "deepseek":  # DeepSeekMoE-16B, unknown to AutoEP, has V2's block
        section["preset_model"] = "deepseek_v2"
    if not on_gpu:
        from deepspeed.moe.ep_experts import EXPERT_ACTIVATIONS, register_expert_activation

        if PLAIN_SWIGLU not in EXPERT_ACTIVATIONS:
            register_expert_activation(
                PLAIN_SWIGLU, lambda gate, up, alpha, limit: functional.silu(gate) * up, gate_fn=functional.silu
            )
        section["expert_activation"] = PLAIN_SWIGLU
        section["combine_impl"] = "legacy_bmm"  # weighs and sums in one pass over memory, as its gradient does
    return section


@dataclass(frozen=True)
class ExpertNames:
    """What checkpoints call the parts that transformers holds under other names, or fused."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def of(self, name: str) -> str:
        """Return the name in checkpoints of what belongs to a block of experts."""
        return name.replace(".mlp.", f".{self.block}.")


def expert_names_of(model: nn.Module) -> ExpertNames:
    """Return the names of a model's family."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return ExpertNames("block_sparse_moe", "w1", "w3", "w2") if kind == "mixtral" else ExpertNames()


def has_expert_parallelism(model_config: Any) -> bool:
    """Whether AutoEP knows the model's block of experts; else each rank trains all of them where they are."""
    from deepspeed.module_inject.auto_ep_presets.registry import PRESET_MODELS

    known = {kind for preset in PRESET_MODELS.values() for kind in preset.hf_model_types}
    return model_config.model_type in known | {"deepseek"}


def moe_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return (name, AutoEPMoELayer) in depth order; empty for a dense model."""
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, AutoEPMoELayer)]


@contextlib.contextmanager
def gathered(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Make ZeRO-3 shards whole inside the block; free for ZeRO-1 and 2."""
    if any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield
    else:
        yield


@dataclass(frozen=True)
class Routes:
    """What one MoE layer's router decided for the tokens of a forward."""

    scores_TE: torch.Tensor  # affinities before the bias (sigmoid or softmax), float32, differentiable
    experts_TK: torch.Tensor  # int64
    n_groups: int  # of experts, one a device or node; 0: the router knows none
    groups_per_token: int


class ExpertRouting:
    """Watches and steers every router of a model through PyTorch's forward hooks.

    The gate runs in float32, as transformers' V3 router does (AutoEP's runs in the model's dtype, which flips the
    choice of 1% of the tokens in bfloat16). Counts are taken while `counting` is on: the caller switches it off
    for backward (recomputation would count twice) and for forwards that don't train.
    """

    def __init__(self, model: nn.Module, keep_routes: bool = False) -> None:
        self.layers = moe_layers(model)
        self.counting = False
        self.routes: list[Routes] = []  # L, of the last counted forward, when keep_routes
        self._scores_TE: torch.Tensor | None = None
        self._counts: list[torch.Tensor | None] = [None] * len(self.layers)
        for index, (_, layer) in enumerate(self.layers):
            router = layer.router
            # prepend: ZeRO-3 frees the gate's weight in its own post-forward hook
            if router.gate.weight.dtype != torch.float32:
                router.gate.register_forward_hook(_fp32_gate, prepend=True)
            if keep_routes:
                router.gate.register_forward_hook(self._score_hook(router.score_func))
            router.register_forward_hook(self._route_hook(index))

    def _route_hook(self, index: int) -> Any:
        def hook(router: Any, _args: Any, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
            if not self.counting:
                return
            counts_E = output[2].detach()
            so_far = self._counts[index]
            self._counts[index] = counts_E.clone() if so_far is None else so_far.add_(counts_E)
            if self._scores_TE is not None:
                groups = router.num_expert_groups or 0, router.num_limited_groups or 0
                self.routes.append(Routes(self._scores_TE, output[1], *groups))

        return hook

    def _score_hook(self, score_func: str) -> Any:
        def hook(_gate: nn.Module, _args: Any, logits_TE: torch.Tensor) -> None:
            if torch.is_grad_enabled():  # in recomputation as well, which must save the same tensors again
                logits = logits_TE.float()
                self._scores_TE = logits.sigmoid() if score_func == "sigmoid" else logits.softmax(-1)

        return hook

    @contextlib.contextmanager
    def count(self) -> Iterator[None]:
        """Count the forwards inside the block; routes start afresh."""
        self.counting, self.routes = True, []
        try:
            yield
        finally:
            self.counting = False

    def take_counts(self) -> torch.Tensor | None:
        """Tokens per expert [L, E] since the last call, summed over all ranks (a collective); None if dense."""
        if not self.layers:
            return None
        rows = [
            torch.zeros(layer.num_experts, device=layer.router.gate.weight.device) if counts is None else counts.float()
            for counts, (_, layer) in zip(self._counts, self.layers, strict=True)
        ]
        self._counts = [None] * len(self.layers)
        counts_LE = torch.stack(rows)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts_LE)
        return counts_LE

    def biases(self) -> list[tuple[str, torch.Tensor]]:
        """(name, correction bias [E]) of the layers that have one, under their Hugging Face names."""
        return [
            (f"{name}.gate.{BIAS}", getattr(layer.router, BIAS))
            for name, layer in self.layers
            if getattr(layer.router, BIAS, None) is not None
        ]


def _fp32_gate(gate: nn.Module, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> torch.Tensor:
    weight, bias = gate.weight, gate.bias
    assert isinstance(weight, torch.Tensor)
    return functional.linear(args[0].float(), weight.float(), bias.float() if isinstance(bias, torch.Tensor) else None)


def own_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's share of the model under Hugging Face names, experts split: what one publish sends.

    Each expert-parallel rank of the first replica yields its own experts, rank 0 everything else as well. Under
    ZeRO-3 every rank must exhaust the iterator (gathering is collective); a tensor is valid until the next one.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    expert_names, names = set[str](), expert_names_of(model)
    for name, layer in moe_layers(model):
        experts = layer.experts
        expert_names |= {f"{name}.experts.w1", f"{name}.experts.w2", f"{name}.experts.w3"}
        with gathered([experts.w1, experts.w2, experts.w3]):
            if rank < layer.ep_size:  # ranks 0 .. ep_size-1 are the first replica
                yield from _expert_tensors(
                    names, name, layer.ep_rank * layer.num_local_experts, experts.w1, experts.w2, experts.w3
                )
    yield from shared_tensors(model, expert_names, yield_them=rank == 0)


def shared_tensors(
    model: nn.Module, skip: set[str], prefix: str | tuple[str, ...] = "", yield_them: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything replicated over ranks (all but `skip`) whose name starts with (a) `prefix`, correction biases last."""
    tied, names = getattr(model, "_tied_weights_keys", None) or (), expert_names_of(model)
    for name, parameter in model.named_parameters():
        if name in skip or not name.startswith(prefix) or (name in tied and _is_tied(model)):
            continue
        with gathered([parameter]):
            if yield_them and ".experts." in name:  # fused, without AutoEP
                yield from _unfused(model, name, parameter.detach())
            elif yield_them:
                yield names.of(public_name(model, name.replace(".router.gate.", ".gate."))), parameter.detach()
    for name, layer in moe_layers(model):
        bias = getattr(layer.router, BIAS, None)
        if yield_them and bias is not None and name.startswith(prefix):
            yield names.of(f"{name}.gate.{BIAS}"), bias.detach().float()


def _unfused(model: nn.Module, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint that transformers holds as this one."""
    from transformers.core_model_loading import revert_weight_conversion

    yield from revert_weight_conversion(model, {name: tensor}).items()


def all_tensors(model: nn.Module, prefix: str | tuple[str, ...] = "") -> Iterator[tuple[str, torch.Tensor]]:
    """What begins with `prefix` (or one of several) under Hugging Face names, whole on every rank (a collective).

    One layer's experts are gathered at a time, and nothing that has another name.
    """
    expert_names, names = set[str](), expert_names_of(model)
    for name, layer in moe_layers(model):
        experts = layer.experts
        expert_names |= {f"{name}.experts.w1", f"{name}.experts.w2", f"{name}.experts.w3"}
        if not name.startswith(prefix):
            continue
        with gathered([experts.w1, experts.w2, experts.w3]):
            yield from _expert_tensors(
                names, name, 0, *(_gather_experts(layer, w) for w in (experts.w1, experts.w2, experts.w3))
            )
    yield from shared_tensors(model, expert_names, prefix)


def _is_tied(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))


def _gather_experts(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """[E_local, ...] of each expert-parallel rank -> [E, ...]; group rank order is the global expert order."""
    local = weight.detach().contiguous()
    if layer.ep_size == 1:
        return local
    whole = local.new_empty((layer.num_experts, *local.shape[1:]))
    dist.all_gather_into_tensor(whole, local, group=layer.ep_group)
    return whole


def _expert_tensors(
    names: ExpertNames, layer_name: str, first: int, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    for offset, (gate, down, up) in enumerate(zip(w1.detach(), w2.detach(), w3.detach(), strict=True)):
        prefix = names.of(f"{layer_name}.experts.{first + offset}")
        yield f"{prefix}.{names.gate}.weight", gate
        yield f"{prefix}.{names.up}.weight", up
        yield f"{prefix}.{names.down}.weight", down
