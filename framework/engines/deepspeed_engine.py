"""DeepSpeed (ZeRO 1-3, AutoEP) as one object with a few verbs: forward, backward, step, snapshots of the weights.

What the policy learner and the pretraining trainer share. Dimensions: L MoE layers, E routed experts.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from framework.bounds import (
    Bound,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seconds,
    bounded,
    check_divides,
)
from framework.engines import expert_parallel, finite
from framework.engines.cpu.tuning import tune_training
from framework.engines.device import DEVICE, on_gpu
from framework.engines.lr_schedule import LrSchedule, StepwiseValue, value_at
from framework.engines.offload import Turn
from framework.errors import NotFinite, UserError
from framework.models.dropout import switch_dropout_off
from framework.models.estimate import REDUCE_BUCKET
from framework.models.sequence_parallel import sequence_group

# Detached MTP modules train on so much of their loss, with as much of Adam's epsilon: the same updates, but gradients
# that are nothing in the global norm, or the policy would be clipped by them. A power of 2 rounds nothing.
DETACHED_SCALE = 2.0**-20


@dataclass(frozen=True)
@bounded
class DeepSpeedConfig:
    """Optimizer, precision and sharding.

    Defaults: AdamW as DeepSeek-V3 §4.2 (betas, weight decay, clipping).
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    zero_stage: Literal[1, 2, 3] = 1  # 0 gives wrong gradient norms with expert parallelism
    ep_size: PositiveInt = 1
    tensor_parallel: bool = False  # all ranks share each matrix of a GPT-2, and see the same rows: no ZeRO
    sp_size: PositiveInt = 1  # ranks that a row's tokens are spread over
    schedule: LrSchedule = field(default_factory=LrSchedule)
    beta1: Annotated[float, Bound(least=0, below=1)] = 0.9
    beta2: Annotated[float, Bound(least=0, below=1)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1  # on matrices; norms and biases are not decayed
    clip: NonNegativeFloat = 1.0  # global gradient norm; 0 switches clipping off
    token_budget: PositiveInt = 4096  # tokens of a micro-batch; each of `sp_size` ranks runs on its part
    # gamma of the auxiliary-loss-free balancing; 0 freezes the bias
    bias_update_speed: NonNegativeFloat | StepwiseValue = 0.0
    balance_alpha: NonNegativeFloat = 0.0  # weight of the sequence-wise (V2: expert-level) balance loss
    device_alpha: NonNegativeFloat = 0.0  # V2's device-level balance loss; devices are the router's expert groups
    communication_alpha: NonNegativeFloat = 0.0  # V2's communication balance loss
    # lambda of multi-token prediction, where the model has such modules; 0 freezes them (V3 section 4.2: 0.3, then 0.1)
    mtp_coef: NonNegativeFloat | StepwiseValue = 0.3
    # The modules learn, what they share with the main model does not, as RL wants it: nor do they count for `clip`.
    mtp_detached: bool = False
    gradient_checkpointing: bool = False
    skip_nonfinite: NonNegativeInt = 0  # steps with a loss or gradient that is not finite left out before the run stops
    compile: bool = False
    threads: NonNegativeInt = 0  # torch threads of this process; 0 leaves them as they are
    keep_versions: NonNegativeInt = 0  # published versions kept, besides the newest, to recompute logprobs under
    collective_timeout_s: Seconds = 300.0

    @property
    def balance_losses(self) -> bool:
        """Whether the routes of a forward are needed for its loss."""
        return self.balance_alpha > 0 or self.device_alpha > 0 or self.communication_alpha > 0

    def check_topology(self, world: int, experts: int, where: str = "engine", heads: int = 0) -> None:
        """Raise UserError unless `ep_size` divides world size and routed experts, `sp_size` world size and heads.

        `where` is the configuration's place, for the error; `heads`: of attention, 0 if not known.
        """
        if self.ep_size > 1 and not experts:
            raise UserError(f"{where}.ep_size", self.ep_size, "1: this model has no routed experts")
        experts, heads = experts or self.ep_size, heads or self.sp_size
        check_divides(f"{where}.ep_size", self.ep_size, {"learner ranks": world, "routed experts": experts})
        check_divides(f"{where}.sp_size", self.sp_size, {"learner ranks": world, "attention heads": heads})


@dataclass(frozen=True)
class Snapshot:
    """A copy of this rank's weights and correction biases, in `parameters()` and layer order."""

    parameters: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did."""

    grad_norm: float  # before clipping, without detached MTP modules; inf where the step was left out
    lr: float
    expert_load_LE: torch.Tensor | None
    taken: bool = True  # False: a loss or gradient was not finite, the weights are as they were


def init_process_group(timeout_s: float) -> None:
    """Join the group that RANK, WORLD_SIZE and MASTER_* describe; alone, a group of one. Idempotent."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.setdefault(DEVICE, "cpu")
    import deepspeed
    from deepspeed import ops

    # Otherwise DeepSpeed compiles its shared-memory collectives at start-up: half a minute, and needs a compiler.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu() else "gloo",
        timeout=timedelta(seconds=timeout_s),
        auto_mpi_discovery=False,
        verbose=False,
    )


class TrainingEngine:
    """One rank of a model under DeepSpeed. Every method is collective unless it says otherwise."""

    sequence_group: Any = None  # of the ranks that share this one's rows; None: it has them for itself

    def __init__(self, model: nn.Module, config: DeepSpeedConfig) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        init_process_group(config.collective_timeout_s)
        self.config = config
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        experts = expert_parallel.routed_experts(model.config)
        config.check_topology(self.world, experts, heads=getattr(model.config, "num_attention_heads", 0))
        self.sequence_group = sequence_group(self.rank, self.world, config.sp_size)
        modules = list(getattr(model, "mtp_modules", ()))
        self.mtp_depths = len(modules) if config.mtp_coef else 0  # D of the modules that train
        self._idle_depths = len(modules) - self.mtp_depths
        for module in modules:
            module.requires_grad_(self.mtp_depths > 0)
        switch_dropout_off(model)
        tune_training(model)
        spread = experts > 0 and expert_parallel.has_expert_parallelism(model.config)
        if config.ep_size > 1 and not spread:
            allowed = f"must be 1: experts of {model.config.model_type} cannot be spread"  # type: ignore[union-attr]
            raise UserError("engine.ep_size", config.ep_size, allowed)
        self._engine = _initialize(model, config, spread)
        self.model: nn.Module = self._engine.module
        self.device = next(self.model.parameters()).device
        self.routing = expert_parallel.ExpertRouting(self.model, keep_routes=config.balance_losses)
        for alpha in ("device_alpha", "communication_alpha"):
            if getattr(config, alpha) and not all(layer.router.num_expert_groups for _, layer in self.routing.layers):
                raise UserError(f"engine.{alpha}", getattr(config, alpha), "0: this model's experts have no groups")
        if config.bias_update_speed and len(self.routing.biases()) < len(self.routing.layers):
            allowed = "0: this model's routers have no correction bias; engine.balance_alpha balances them"
            raise UserError("engine.bias_update_speed", config.bias_update_speed, allowed)
        self._parameters = list(self.model.parameters())
        self._names = finite.parameter_names(self.model)
        self.steps = 0
        self.skipped = 0  # of them, left out because something was not finite
        self.turn = Turn(self._engine)

    def forward(self, *, counted: bool = True, **inputs: Any) -> Any:
        """The model's forward for training; call `backward` on a loss made from it next.

        Routed tokens are counted unless `counted` is off: for placeholders that only keep ranks in step.
        """
        with self.routing.count() if counted else contextlib.nullcontext():
            return self._engine(**inputs)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate the gradient of the *sum over ranks* of `loss`; `last` for the step's final micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world, scale_wrt_gas=False)  # DeepSpeed takes the mean over ranks

    def step(self, found: str = "") -> StepStats:
        """Clip, AdamW with the schedule's learning rate, then move the correction biases by the loads.

        `found` names what on this rank was not finite already; the loss was `finite.poisoned` then. Raises NotFinite if
        that or a gradient of any rank is not, more than `skip_nonfinite` times, and if a weight has become so.
        """
        from framework.algorithms.balance import bias_update

        lr, speed = self.config.schedule.at(self.steps), value_at(self.config.bias_update_speed, self.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        gradient = self._native_step()
        self.steps += 1
        load_LE = self.routing.take_counts()
        if self._engine.optimizer.overflow:
            self.skipped += 1
            said = finite.report(self.steps, self.rank, self.world, found, gradient)
            finite.check_tolerated(said, self.skipped, self.config.skip_nonfinite)
            print(f"{said}; step left out, {self.skipped} of {self.config.skip_nonfinite} allowed", flush=True)
            return StepStats(math.inf, lr, None, taken=False)
        self._check_weights()
        if load_LE is not None and speed:
            delta_LE = bias_update(load_LE, speed)
            for (_, bias_E), delta_E in zip(self.routing.biases(), delta_LE, strict=True):
                bias_E += delta_E.to(bias_E.device)
        return StepStats(float(self._engine.get_global_grad_norm()), lr, self._without_idle(load_LE))

    def _native_step(self) -> str:
        """DeepSpeed's step, left out where the gradient norm is not finite; this rank's first such gradient then."""
        optimizer, found = self._engine.optimizer, ""
        verb = "clear_hp_grads" if hasattr(optimizer, "clear_hp_grads") else "zero_grad"
        clear = getattr(optimizer, verb)

        def look_and_clear(*args: Any, **kwargs: Any) -> None:
            nonlocal found
            if optimizer.overflow and not found:
                found = finite.first_bad_gradient(optimizer, self._names)
            clear(*args, **kwargs)

        setattr(optimizer, verb, look_and_clear)  # called while the gradients are still there
        try:
            self._engine.step()
        finally:
            delattr(optimizer, verb)
        return found

    def _check_weights(self) -> None:
        """Raise NotFinite on every rank if a weight of any rank is not finite after the step."""
        weights = list(zip(self._names.values(), self._local_weights(), strict=True))
        name = finite.first_bad_weight(weights)
        if float(self.sum_over_ranks(torch.tensor(float(bool(name)), device=self.device))):
            said = finite.report(self.steps, self.rank, self.world, weight=name)
            raise NotFinite(f"{said} after the step; the newest checkpoint was saved before it")

    def _without_idle(self, load_LE: torch.Tensor | None) -> torch.Tensor | None:
        """Leave out MTP modules that are switched off: nothing is routed in them."""
        return load_LE if load_LE is None else load_LE[: load_LE.shape[0] - self._idle_depths]

    @property
    def mtp_coef(self) -> float:
        """Lambda of the step that comes next."""
        return value_at(self.config.mtp_coef, self.steps)

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """All-reduce a small tensor."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def snapshot(self) -> Snapshot:
        """Copy this rank's weights (under ZeRO-3: its shards) to host memory: a second set may not fit the device."""
        return Snapshot(
            tuple(weights.detach().to("cpu", copy=True) for weights in self._local_weights()),
            tuple(bias.detach().to("cpu", copy=True) for _, bias in self.routing.biases()),
        )

    @contextlib.contextmanager
    def weights_of(self, snapshot: Snapshot | None) -> Iterator[None]:
        """Run the forwards inside the block under `snapshot`; None: the current weights. No second model needed.

        Where the weights live in host memory, as snapshots do, the model borrows the snapshot's; else they are copied.
        """
        if snapshot is None:
            yield
            return
        if self.config.zero_stage < 3 and self.device.type == "cpu":
            with self._borrowed(snapshot):
                yield
            return
        live = self.snapshot()
        self._place(snapshot)
        try:
            yield
        finally:
            self._place(live)

    @contextlib.contextmanager
    def _borrowed(self, snapshot: Snapshot) -> Iterator[None]:
        """Let parameters and biases be the snapshot's tensors inside the block."""
        tensors = [*self._parameters, *(bias for _, bias in self.routing.biases())]
        live = [tensor.data for tensor in tensors]
        for tensor, borrowed in zip(tensors, (*snapshot.parameters, *snapshot.biases), strict=True):
            tensor.data = borrowed
        try:
            yield
        finally:
            for tensor, own in zip(tensors, live, strict=True):
                tensor.data = own

    def _local_weights(self) -> list[torch.Tensor]:
        """What this rank holds of each parameter: all of it, or under ZeRO-3 its shard."""
        if self.config.zero_stage < 3:
            return [parameter.data for parameter in self._parameters]
        return [parameter.ds_tensor for parameter in self._parameters]

    @torch.no_grad()
    def _place(self, weights: Snapshot) -> None:
        if self.config.zero_stage == 3:
            self._engine.empty_partition_cache()  # or a parameter still gathered would keep its old values
        for target, tensor in zip(self._local_weights(), weights.parameters, strict=True):
            target.data.copy_(tensor)
        for (_, bias), tensor in zip(self.routing.biases(), weights.biases, strict=True):
            bias.copy_(tensor)

    @property
    def native(self) -> Any:
        """The deepspeed.DeepSpeedEngine, for checkpoints."""
        return self._engine


def _initialize(model: nn.Module, config: DeepSpeedConfig, moe: bool) -> Any:
    import logging

    import deepspeed
    from deepspeed.moe.utils import configure_moe_param_groups
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    for parameter in model.parameters():  # not Module.to: rotary frequencies and correction biases stay float32
        parameter.data = parameter.data.to(getattr(torch, config.dtype))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    gpu = on_gpu()
    section: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # accumulation is done by hand
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": gpu,
            # A fresh contiguous buffer each step costs page faults on a CPU, but without one ZeRO-2 refuses experts,
            # and ZeRO-1 silently reduces expert-parallel gradients over the wrong group.
            "contiguous_gradients": gpu or config.zero_stage > 1 or config.ep_size > 1,
            # DeepSpeed allocates the whole bucket: its default of 5e8 elements is 2 GB of float32 for a tiny model too.
            "reduce_bucket_size": min(REDUCE_BUCKET, sum(math.prod(shape_of(p)) for p in model.parameters())),
            "stage3_param_persistence_threshold": 0,  # every parameter is a shard between two forwards
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    if config.dtype == "bfloat16":
        section["bf16"] = {"enabled": True, "check_grad_overflow": True}  # as float32 does without being asked
        section["data_types"] = {"grad_accum_dtype": "fp32"}
    if moe:
        section["expert_parallel"] = expert_parallel.autoep_section(model.config, config.ep_size, gpu)

    def adamw(all_parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        parameters = list(all_parameters)
        modules = getattr(model, "mtp_modules", ()) if config.mtp_detached else ()
        detached = {p for module in modules for p in module.parameters()}
        groups = []
        for apart, matrix in product((False, True), (True, False)):
            found = [
                p for p in parameters if p.requires_grad and (p in detached, len(shape_of(p)) > 1) == (apart, matrix)
            ]
            group = {
                "name": f"{'detached' if apart else 'main'} {'matrices' if matrix else 'others'}",
                "params": found,
                "weight_decay": config.weight_decay if matrix else 0.0,
                "eps": config.eps * (DETACHED_SCALE if apart else 1),
            }
            groups += [group] if found else []
        return torch.optim.AdamW(
            configure_moe_param_groups(groups) if moe else groups,
            lr=config.schedule.at(0),
            betas=(config.beta1, config.beta2),
            fused=True,
        )

    # No `model_parameters`: DeepSpeed takes the model's after AutoEP, or it would keep the experts that it replaced.
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=section)
    if config.compile:
        engine.compile()
    engine.train()
    return engine


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Of the whole parameter, though ZeRO-3 may have left a shard of it here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
