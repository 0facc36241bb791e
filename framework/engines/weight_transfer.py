"""Our weight transport inside vLLM: loads published weights into the running model. Imported by vLLM alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.models.deepseek_mtp import DeepSeekMTP
from vllm.platforms import current_platform

from framework.engines.share_reader import ShareReader
from framework.engines.update_progress import Progress
from framework.types import MemoryFile, PublishedWeights

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not type-checked
    """Nothing to set up: the shares come with each update."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Every learner rank's share of one version, and where this rank tells how far it has come."""

    shares: tuple[PublishedWeights, ...] = field(default_factory=tuple)
    board: MemoryFile | None = None


class PublishedWeightsTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """Loads the shares under Hugging Face names, as from a checkpoint; each tensor-parallel rank reads its own part.

    Kernels want weights in layouts of their own (a CPU's are repacked, the originals freed), so the model is first put
    back into the form that loads, and each layer is processed again once it is complete: vLLM's layerwise reload.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """No connection to make."""

    def start_weight_update(self) -> None:
        """Put every layer back into the form that checkpoints load into."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the shares; the base class does the same, but synchronizes a device that a CPU machine lacks."""
        self.receive_weights(self.parse_update_info(update_info))
        if not current_platform.is_cpu():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load the shares; raises RuntimeError if the model has a parameter that they lack: it would stay stale."""
        expected = {name for name, _ in self.model.named_parameters()}
        progress = Progress(update_info.board, self.parallel_config.rank)
        self._reader = ShareReader(update_info.shares)
        weights = _counted(self._reader.tensors(), progress)
        if isinstance(self.model, DeepSeekMTP):
            weights = _with_copies(weights, self.model.config)
        heads = _tied_heads(self.model)
        try:
            loaded = self.model.load_weights(_into_tied_heads(weights, heads))
        finally:
            progress.close()
        missing = sorted(expected - set(loaded) - heads.keys())
        if missing:
            raise RuntimeError(f"published weights lack {len(missing)} of the model's parameters, e.g. {missing[0]}")

    def finish_weight_update(self) -> None:
        """Process what is left and put the model back into the form that runs."""
        finalize_layerwise_reload(self.model, self.model_config)
        _pack_cpu_experts(self.model)
        self._reader.close()

    def shutdown(self) -> None:
        """No connection to close."""


def _counted(weights: Iterator[tuple[str, torch.Tensor]], progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass the weights on and count them."""
    for name, tensor in weights:
        progress.step()
        yield name, tensor


def _tied_heads(model: torch.nn.Module) -> dict[str, Any]:
    """Return the output heads that share the embedding's weights, by the name of their weights.

    The layerwise reload gives a tied head a parameter of its own, which vLLM's loading then passes over.
    """
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return {}
    return {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, ParallelLMHead)}


def _into_tied_heads(
    weights: Iterator[tuple[str, torch.Tensor]], heads: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass the weights on, the embedding to the heads tied to it as well."""
    for name, tensor in weights:
        if heads and name.endswith(EMBEDDINGS):
            for head in heads.values():
                head.weight.weight_loader(head.weight, tensor)
        yield name, tensor


def _with_copies(weights: Iterator[tuple[str, torch.Tensor]], config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Add what MTP modules share with the model under the names that it has in their layers."""
    copies = {"model.embed_tokens.weight": "embed_tokens.weight", "lm_head.weight": "shared_head.head.weight"}
    first = config.num_hidden_layers
    for name, tensor in weights:
        yield name, tensor
        if name in copies:
            for layer in range(first, first + config.num_nextn_predict_layers):
                yield f"model.layers.{layer}.{copies[name]}", tensor


def _pack_cpu_experts(model: torch.nn.Module) -> None:
    """Put reloaded experts into the layout of the CPU's kernels, which vLLM 0.32 does at the first load only.

    Without it every routed expert computes nonsense after an update.
    """
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        experts = getattr(kernel, "fused_experts", None)
        if isinstance(experts, CPUUnquantizedExperts):
            experts.process_weights_after_loading(layer)
