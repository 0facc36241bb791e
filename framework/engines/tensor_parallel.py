"""Tensor parallelism of GPT-2 by torch's DTensor, as Megatron-LM cuts it (1909.08053, section 3).

Column-parallel: the projections to queries, keys and values, and to the feed-forward part's width. Row-parallel: the
ones back. The embedding and its tied output head are cut over the vocabulary, and so is the cross-entropy
(`loss_parallel`): no rank holds a whole row of logits. Layer norms, positions and row-parallel biases are everyone's.

It has the verbs of `TrainingEngine`, which is DeepSpeed's and cuts the data: every rank here sees the whole batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from framework.engines import finite
from framework.engines.deepspeed_engine import (
    DeepSpeedConfig,
    StepStats,
    TrainingEngine,
    init_process_group,
)
from framework.engines.expert_parallel import ExpertRouting
from framework.errors import NotFinite, UserError
from framework.models.dropout import switch_dropout_off

COLUMNS = ("attn.c_attn", "mlp.c_fc")
ROWS = ("attn.c_proj", "mlp.c_proj")


class TensorParallelEngine(TrainingEngine):
    """One rank of a GPT-2 whose matrices are cut over all ranks. Every method is collective."""

    def __init__(self, model: nn.Module, config: DeepSpeedConfig) -> None:
        init_process_group(config.collective_timeout_s)
        self.config, self.rank, self.world = config, dist.get_rank(), dist.get_world_size()
        check_tensor_parallel(model.config, self.world)
        switch_dropout_off(model)
        device = next(model.parameters()).device
        cut_gpt2(model, init_device_mesh(device.type, (self.world,)))
        self.model, self.device = model, device
        self.routing = ExpertRouting(model, keep_routes=False)
        self.mtp_depths = self.steps = self.skipped = 0
        self._idle_depths = 0
        self._parameters = list(model.parameters())
        self._names = finite.parameter_names(model)
        matrices = [p for p in self._parameters if p.ndim > 1]
        others = [p for p in self._parameters if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        betas = (config.beta1, config.beta2)
        self._optimizer = torch.optim.AdamW(groups, config.schedule.at(0), betas, config.eps, foreach=False)

    def forward(self, *, counted: bool = True, **inputs: Any) -> Any:
        """The model's forward; its logits are cut over the vocabulary."""
        return self.model(**inputs)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss`, which all ranks have alike."""
        with loss_parallel():
            torch.autograd.backward(loss)

    def step(self, found: str = "") -> StepStats:
        """Clip by the norm of the whole gradient, then AdamW; as `TrainingEngine.step`."""
        lr, norm = self.config.schedule.at(self.steps), self._gradient_norm()
        self.steps += 1
        taken = bool(torch.isfinite(norm))
        if taken:
            scale = min(1.0, self.config.clip / (float(norm) + 1e-6)) if self.config.clip else 1.0
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
            self._optimizer.step()
        self._optimizer.zero_grad()
        if not taken:
            self.skipped += 1
            said = finite.report(self.steps, self.rank, self.world, found)
            finite.check_tolerated(said, self.skipped, self.config.skip_nonfinite)
            return StepStats(float("inf"), lr, None, taken=False)
        name = finite.first_bad_weight(list(zip(self._names.values(), self._local_weights(), strict=True)))
        bad = torch.tensor(float(bool(name)), device=self.device)
        dist.all_reduce(bad)
        if float(bad):
            raise NotFinite(f"{finite.report(self.steps, self.rank, self.world, weight=name)} after the step")
        return StepStats(float(norm), lr, None)

    def _gradient_norm(self) -> torch.Tensor:
        """Of the whole model: what is cut is summed over ranks, what is everyone's counts once."""
        squares = torch.zeros(2, device=self.device)
        for parameter in self._parameters:
            if (gradient := parameter.grad) is not None:
                squares[int(is_cut(gradient))] += local(gradient).float().square().sum()
        dist.all_reduce(squares[1:])
        return squares.sum().sqrt()

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Every rank has the whole batch's already."""
        return values

    def _local_weights(self) -> list[torch.Tensor]:
        return [local(parameter.data) for parameter in self._parameters]

    @contextlib.contextmanager
    def _borrowed(self, snapshot: Any) -> Iterator[None]:
        raise NotImplementedError("no objective of tensor parallelism keeps a reference")

    @property
    def native(self) -> Any:
        """What saves and loads a rank's state under DeepSpeed's names for it."""
        return _RankState(self.model, self._optimizer, self.rank)


class _RankState:
    """A rank's weights and moments as a file."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
        self._model, self._optimizer, self._rank = model, optimizer, rank

    def save_checkpoint(self, directory: str, tag: str, client_state: Any) -> None:
        """Write them."""
        (Path(directory) / tag).mkdir(parents=True, exist_ok=True)
        weights = {name: local(parameter.data) for name, parameter in self._model.named_parameters()}
        moments = [{key: local(value) for key, value in self._optimizer.state[p].items()} for p in self._optimized()]
        torch.save((weights, moments), self._file(directory, tag))

    def load_checkpoint(self, directory: str, tag: str) -> None:
        """Read what `save_checkpoint` wrote on as many ranks."""
        weights, moments = torch.load(self._file(directory, tag), weights_only=True)
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                local(parameter.data).copy_(weights[name])
        for parameter, saved in zip(self._optimized(), moments, strict=True):
            self._optimizer.state[parameter] = {
                key: like(value, parameter) if value.ndim else value for key, value in saved.items()
            }

    def _optimized(self) -> list[Any]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _file(self, directory: str, tag: str) -> Path:
        return Path(directory) / tag / f"rank{self._rank}.pt"


def check_tensor_parallel(config: Any, ranks: int, where: str = "engine.tensor_parallel") -> None:
    """Raise UserError for a model that is no GPT-2, or one whose heads, width or vocabulary the ranks do not divide."""
    if config.model_type != "gpt2":
        raise UserError(where, config.model_type, "must be false: of the models here GPT-2 alone is cut")
    for key in ("num_attention_heads", "vocab_size"):
        if getattr(config, key) % ranks:
            raise UserError(where, f"{ranks} ranks", f"must divide model.{key}={getattr(config, key)}")


def cut_gpt2(model: Any, mesh: DeviceMesh) -> None:
    """Replace the parameters of a GPT2LMHeadModel by this rank's parts, in place; all ranks hold the same whole."""
    ranks = mesh.size()
    for block in model.transformer.h:
        for name in (*COLUMNS, *ROWS):
            as_linear(block, name)
        attention = block.attn
        order = rank_order(attention.embed_dim, ranks)
        attention.c_attn.weight.data = attention.c_attn.weight.data[order]
        attention.c_attn.bias.data = attention.c_attn.bias.data[order]
        attention.split_size = attention.embed_dim // ranks
        plan: dict[str, ParallelStyle] = dict.fromkeys(COLUMNS, ColwiseParallel())
        plan |= dict.fromkeys(ROWS, RowwiseParallel())
        parallelize_module(block, mesh, plan)
    embedding = RowwiseParallel(input_layouts=Replicate())
    head = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(model, mesh, {"transformer.wte": embedding, "lm_head": head})
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight


def rank_order(width: int, ranks: int) -> torch.Tensor:
    """Return the rows of the fused projection so that each rank's part holds its own heads' queries, keys, values.

    Fused rows are all queries, all keys, all values: cut as they are, one rank would have queries alone.
    """
    rows = torch.arange(3 * width).view(3, ranks, width // ranks)
    return rows.transpose(0, 1).reshape(-1)


def as_linear(block: nn.Module, name: str) -> None:
    """Replace transformers' Conv1D by the nn.Linear that it is, whose weight lies the other way: [out, in]."""
    old: Any = block.get_submodule(name)
    new = nn.Linear(old.weight.shape[0], old.weight.shape[1], device="meta")
    new.weight, new.bias = nn.Parameter(old.weight.data.t().contiguous()), nn.Parameter(old.bias.data)
    block.set_submodule(name, new)


def whole_tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter whole, as transformers lays it out (a collective)."""
    width = model.config.hidden_size
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        part = name.split(".", 3)[-1]
        if part.startswith("attn.c_attn"):
            whole = whole[rank_order(width, dist.get_world_size()).argsort()]
        if part in {f"{key}.weight" for key in (*COLUMNS, *ROWS)}:
            whole = whole.t()
        yield name, whole.detach().contiguous()


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether each rank holds a part of it."""
    return isinstance(tensor, DTensor) and any(isinstance(place, Shard) for place in tensor.placements)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A rank's part as a tensor that is cut as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(part, parameter.device_mesh, parameter.placements)
