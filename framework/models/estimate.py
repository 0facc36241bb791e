"""Memory and time that a model needs, before any of it exists, for `framework plan`; right to tens of per cent."""

from __future__ import annotations

from dataclasses import dataclass

from framework.models.spec import MLA, ModelConfig, parameter_counts

GIB = 2**30
# Share of the dense bf16 peak that DeepSeek reached, FLOPs counted as 6 per active parameter and token.
# V3 Table 1: 2.664M H800 hours for 14.8T tokens.
PRETRAIN_UTILISATION = 0.351
# R1 v2 B.4.4: 101K H800 hours for 10,400 steps x 512 responses, here of 8,000 tokens on average, sampling included.
RL_UTILISATION = 0.0267
# A CPU core, in FLOP/s, same counting, tiny models: a 3.8M-parameter V3 model trains at 2,700 tokens/s on one core.
CPU_CORE_FLOPS = 6.2e10
CPU_RL_CORE_FLOPS = 2.4e10
ASSUMPTIONS = (
    "6 FLOPs per active parameter and token; pretraining at 35% of the dense bf16 peak, as DeepSeek-V3 (Table 1)",
    "GRPO, sampling included, at 2.7% of the peak: R1-Zero's 101K H800 hours (R1 v2, B.4.4) at 8,000 tokens a response",
    "CPU: 62 GFLOP/s a core in training, 24 in GRPO (a 3.8M-parameter V3 model: 2,700 tokens/s a core)",
)


@dataclass(frozen=True)
class TrainingMemory:
    """GiB per GPU of a DeepSpeed learner."""

    weights: float
    gradients: float
    optimizer: float  # fp32 master weights and both moments, sharded over all ranks
    activations: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def parts(self) -> dict[str, float]:
        """As `RoleEstimate.memory_gib` takes it."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
        }


def training_memory(
    spec: ModelConfig,
    zero_stage: int,
    ep_size: int,
    world: int,
    micro_tokens: int,
    checkpointing: bool = True,
) -> TrainingMemory:
    """Estimate a learner's memory: `world` ranks, routed experts spread over `ep_size` of them, no pipeline.

    `micro_tokens` are the tokens of one packed micro-batch. ZeRO-1 shards the optimizer over all ranks, ZeRO-2 the
    gradients too, ZeRO-3 the weights too.
    """
    counts = parameter_counts(spec)
    size = 4 if spec.dtype == "float32" else 2
    resident = counts.total - counts.routed_experts + counts.routed_experts / ep_size
    sharded = counts.total / world
    # ZeRO-3 gathers one layer's own weights at a time; its experts stay spread over ep_size ranks.
    layer = (counts.total - counts.routed_experts) / spec.num_hidden_layers
    expert_layer = counts.routed_experts / max(spec.num_moe_layers, 1) / ep_size
    weights = sharded + layer + expert_layer if zero_stage == 3 else resident
    return TrainingMemory(
        weights=weights * size / GIB,
        gradients=(sharded if zero_stage >= 2 else resident) * size / GIB,
        optimizer=sharded * 12 / GIB,
        activations=_activation_bytes(spec, micro_tokens, size, checkpointing) / GIB,
    )


def sampler_memory(spec: ModelConfig, gpus: int, cached_tokens: int) -> dict[str, float]:
    """Estimate GiB per GPU of one vLLM engine over `gpus` GPUs with room for `cached_tokens` in its KV cache."""
    size = 4 if spec.dtype == "float32" else 2
    if spec.architecture in MLA:  # the latent and the rotary key, the same for all heads: whole on every GPU
        per_token_layer: float = spec.kv_lora_rank + spec.qk_rope_head_dim
    else:
        heads = spec.num_key_value_heads or spec.num_attention_heads
        per_token_layer = 2 * max(heads / gpus, 1) * (spec.hidden_size // spec.num_attention_heads)
    kv = cached_tokens * spec.num_hidden_layers * per_token_layer * size
    return {"weights": parameter_counts(spec).total * size / gpus / GIB, "KV cache": kv / GIB}


def pretraining_hours(spec: ModelConfig, tokens: float, gpus: int, gpu_tflops: float, cores: int) -> float:
    """Wall-clock hours to train on `tokens` with all GPUs (without one: all cores)."""
    speed = gpus * gpu_tflops * 1e12 * PRETRAIN_UTILISATION if gpus else cores * CPU_CORE_FLOPS
    return _training_flops(spec, tokens) / speed / 3600


def rl_hours(spec: ModelConfig, response_tokens: float, gpus: int, gpu_tflops: float, cores: int) -> float:
    """Wall-clock hours to sample, score and train on `response_tokens`, all roles together."""
    speed = gpus * gpu_tflops * 1e12 * RL_UTILISATION if gpus else cores * CPU_RL_CORE_FLOPS
    return _training_flops(spec, response_tokens) / speed / 3600


def _training_flops(spec: ModelConfig, tokens: float) -> float:
    return 6.0 * parameter_counts(spec).active * tokens


def _activation_bytes(spec: ModelConfig, tokens: int, size: int, checkpointing: bool) -> float:
    """Layer inputs kept for the backward pass, one layer's inner activations, and the logits."""
    if spec.architecture in MLA:
        heads = spec.num_attention_heads * (2 * (spec.qk_nope_head_dim + spec.qk_rope_head_dim) + 2 * spec.v_head_dim)
        moe_width = (spec.num_experts_per_tok + spec.n_shared_experts) * (3 * spec.moe_intermediate_size)
        inner = heads + max(3 * spec.intermediate_size, moe_width + spec.num_experts_per_tok * 2 * spec.hidden_size)
    else:
        inner = 4 * spec.hidden_size + 3 * spec.intermediate_size
    inner += 6 * spec.hidden_size  # residual stream, norms and projections
    logits = spec.vocab_size * 2 * size  # and their gradient; algorithms/logprobs makes no fp32 copy
    kept = spec.num_hidden_layers * spec.hidden_size * size
    if checkpointing:  # the logits are gone by the time the first layer is computed again
        return float(tokens) * (kept + max(inner * size, logits))
    return float(tokens) * (kept + spec.num_hidden_layers * inner * size + logits)
