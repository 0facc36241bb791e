"""Memory and time that a model needs, before any of it exists, for `framework plan`.

Training memory to a tenth, as measured on CPU ranks (`framework bench memory`); the rest to tens of per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

from framework.algorithms.logprobs import CHUNK_ELEMENTS
from framework.algorithms.projected_logprobs import KEPT_ELEMENTS, chunk_size
from framework.models.families.base import ModelConfig, RankLayout, norm_bytes, size_of
from framework.models.spec import parameter_counts

GIB = 2**30
PARTS = ("weights", "gradients", "optimizer", "activations")
REDUCE_BUCKET = 500_000_000  # gradient elements that DeepSpeed reduces at a time: its default
LIVE_PARAMETERS = 1_000_000_000  # that ZeRO-3 holds whole at a time: its default
# Share of the dense bf16 peak that DeepSeek reached, FLOPs counted as 6 per active parameter and token.
# V3 Table 1: 2.664M H800 hours for 14.8T tokens.
PRETRAIN_UTILISATION = 0.351
# The same of context extension, attention's own FLOPs counted too: 119K H800 hours for V3's two phases (Table 1).
EXTENSION_UTILISATION = 0.25
# R1 v2 B.4.4: 101K H800 hours for 10,400 steps x 512 responses, here of 8,000 tokens on average, sampling included.
RL_UTILISATION = 0.0267
# A CPU core, in FLOP/s, same counting, tiny models: a 3.8M-parameter V3 model trains at 2,700 tokens/s on one core.
CPU_CORE_FLOPS = 6.2e10
CPU_RL_CORE_FLOPS = 2.4e10
EXTENSION_ASSUMPTION = "context extension: attention's own FLOPs on top, at V3's utilisation (119K H800 hours, Table 1)"
ASSUMPTIONS = (
    "6 FLOPs per active parameter and token; pretraining at 35% of the dense bf16 peak, as DeepSeek-V3 (Table 1)",
    "GRPO, sampling included, at 2.7% of the peak: R1-Zero's 101K H800 hours (R1 v2, B.4.4) at 8,000 tokens a response",
    "CPU: 62 GFLOP/s a core in training, 24 in GRPO (a 3.8M-parameter V3 model: 2,700 tokens/s a core)",
)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per rank when it is highest: in the second of several micro-batches, gradients of the first at hand."""

    weights: float
    gradients: float
    optimizer: float  # fp32 master weights and both moments, sharded over all ranks
    activations: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def gib(self) -> dict[str, float]:
        """As `RoleEstimate.memory_gib` takes it."""
        return {name: getattr(self, name) / GIB for name in PARTS}


def training_memory(spec: ModelConfig, layout: RankLayout) -> TrainingMemory:
    """Estimate a learner's memory: routed experts spread over `ep_size` ranks, no pipeline.

    ZeRO-1 shards the optimizer over all ranks (experts over those that hold the same ones, which comes to the same
    number), ZeRO-2 the gradients too, ZeRO-3 the weights too. Checked against measured memory by
    `framework bench memory`.
    """
    counts, size = parameter_counts(spec), size_of(layout.dtype)
    total, experts = _parameters(spec, layout.mtp)
    everything = counts.total + counts.mtp
    resident = total - experts + experts / layout.ep_size
    idle = 0 if layout.mtp else counts.mtp - counts.mtp_experts + counts.mtp_experts / layout.ep_size
    shard = total / layout.world
    bucket = min(REDUCE_BUCKET, everything) * size * (1 + layout.on_gpu)  # a second one where it overlaps
    weights, gradients, passing = (resident + idle) * size, 4 * shard, bucket
    if layout.zero_stage == 1:
        # bfloat16: DeepSpeed keeps its own next to the float32 sum. float32: it never gives its bucket back.
        spare = 0 if layout.dtype == "bfloat16" or not (layout.on_gpu or layout.ep_size > 1) else bucket
        gradients, passing = resident * (6 if layout.dtype == "bfloat16" else 4) + spare, 0
    if layout.zero_stage == 3:
        gradients, passing = gradients + min(REDUCE_BUCKET, everything) * size, 0
        weights = (everything / layout.world + _gathered(spec, layout)) * size
    return TrainingMemory(weights, gradients, 12 * shard, _activations(spec, layout, passing))


def _parameters(spec: ModelConfig, mtp: bool) -> tuple[int, int]:
    """(All, those of routed experts) of the model, with its MTP modules or without."""
    counts = parameter_counts(spec)
    return counts.total + mtp * counts.mtp, counts.routed_experts + mtp * counts.mtp_experts


def _gathered(spec: ModelConfig, layout: RankLayout) -> float:
    """Parameters that ZeRO-3 holds whole at a time: as many as it may, but at least a layer; none of a sole owner."""
    total, routed = _parameters(spec, layout.mtp)
    modules = layout.mtp * spec.num_nextn_predict_layers
    experts = routed / layout.ep_size if layout.world > layout.ep_size else 0
    spread = total - routed if layout.world > 1 else 0
    layer = spread / (spec.num_hidden_layers + modules) + experts / max(spec.num_moe_layers + modules, 1)
    return min(spread + experts, max(LIVE_PARAMETERS, layer))


def describe_parameters(spec: ModelConfig) -> str:
    """Total and active parameters in one line, for people."""
    counts = parameter_counts(spec)
    text = f"{_count(counts.total)} parameters"
    if counts.active < counts.total:
        text += f", {_count(counts.active)} active ({_count(counts.active - counts.embedding)} without input embedding)"
    text += f"; MTP modules {_count(counts.mtp)}" if counts.mtp else ""
    return text + ("; of a family without a file of its own: estimates are rough" if spec.rough else "")


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"


def sampler_memory(spec: ModelConfig, gpus: int, cached_tokens: int) -> dict[str, float]:
    """Estimate GiB per GPU of one vLLM engine over `gpus` GPUs with room for `cached_tokens` in its KV cache."""
    size = size_of(spec.dtype)
    kv = cached_tokens * spec.num_hidden_layers * spec.cache_elements(gpus) * size
    return {"weights": parameter_counts(spec).total * size / gpus / GIB, "KV cache": kv / GIB}


def pretraining_hours(spec: ModelConfig, tokens: float, gpus: int, gpu_tflops: float, cores: int) -> float:
    """Wall-clock hours to train on `tokens` with all GPUs (without one: all cores)."""
    speed = _speed(gpus * gpu_tflops, PRETRAIN_UTILISATION, cores, CPU_CORE_FLOPS)
    return _training_flops(spec, tokens) / speed / 3600


def extension_hours(
    spec: ModelConfig, tokens: float, row_tokens: int, gpus: int, gpu_tflops: float, cores: int
) -> float:
    """Wall-clock hours to train on `tokens` in rows of `row_tokens`, whose attention is no small part of it."""
    speed = _speed(gpus * gpu_tflops, EXTENSION_UTILISATION, cores, CPU_CORE_FLOPS)
    return (_training_flops(spec, tokens) + attention_flops(spec, tokens, row_tokens)) / speed / 3600


def attention_flops(spec: ModelConfig, tokens: float, row_tokens: int) -> float:
    """FLOPs of causal attention itself, forward and backward: a token looks at half its row on average."""
    return 3.0 * tokens * row_tokens * spec.num_hidden_layers * spec.num_attention_heads * spec.attention_width()


def rl_hours(spec: ModelConfig, response_tokens: float, gpus: int, gpu_tflops: float, cores: int) -> float:
    """Wall-clock hours to sample, score and train on `response_tokens`, all roles together."""
    speed = _speed(gpus * gpu_tflops, RL_UTILISATION, cores, CPU_RL_CORE_FLOPS)
    return _training_flops(spec, response_tokens) / speed / 3600


def sampling_hours(spec: ModelConfig, response_tokens: float, gpus: int, gpu_tflops: float, cores: int) -> float:
    """Wall-clock hours to sample `response_tokens` alone: a third of what GRPO's FLOPs take for them."""
    return rl_hours(spec, response_tokens, gpus, gpu_tflops, cores) / 3


def _speed(tflops: float, utilisation: float, cores: int, core_flops: float) -> float:
    """FLOP/s of all GPUs at that share of their peak, or without one of all cores."""
    return tflops * 1e12 * utilisation if tflops else cores * core_flops


def _training_flops(spec: ModelConfig, tokens: float) -> float:
    return 6.0 * parameter_counts(spec).active * tokens


def _activations(spec: ModelConfig, layout: RankLayout, bucket: float) -> float:
    """Tensors kept for the backward pass, at its start (the output head) or in its widest layer.

    `bucket`: bytes of gradients on their way between ranks. Every width below is what transformers' modules and
    AutoEP's experts keep for a token.
    """
    size, tokens, hidden = size_of(layout.dtype), layout.micro_tokens, spec.hidden_size
    norm, modules = norm_bytes(hidden, layout), layout.mtp * spec.num_nextn_predict_layers
    layers = [spec.layer_bytes(layout, moe=False)] * (spec.num_hidden_layers - spec.num_moe_layers)
    layers += [spec.layer_bytes(layout, moe=True)] * spec.num_moe_layers
    inputs = spec.num_hidden_layers * hidden * size
    logits, waiting = _head(spec, layout, modules)
    if modules:  # a layer behind two norms and before one
        saved, short = spec.layer_bytes(layout, moe=True)
        layers += [(saved + 3 * norm, short + waiting)] * modules
        inputs += 2 * modules * hidden * size
    logits += tokens * norm
    if layout.checkpointing:
        return tokens * inputs + max(logits, tokens * max(saved + short for saved, short in layers) + bucket)
    everything = sum(saved for saved, _ in layers)
    return tokens * everything + max(logits, tokens * layers[-1][1] + bucket)


def _head(spec: ModelConfig, layout: RankLayout, modules: int) -> tuple[float, float]:
    """(Bytes of the output head at their most, those a token that wait for the main model's backward).

    As algorithms/projected_logprobs: few logits are kept, beside their gradient; of many, only chunks ever exist.
    """
    size, tokens, vocabulary = size_of(layout.dtype), layout.micro_tokens, spec.vocab_size
    device, upcast = "cuda" if layout.on_gpu else "cpu", 4 if layout.dtype == "float32" else 8
    if tokens * vocabulary <= KEPT_ELEMENTS[device]:
        chunk = min(CHUNK_ELEMENTS[device], tokens * vocabulary)
        return tokens * (2 + modules) * vocabulary * size + chunk * upcast, vocabulary * size
    rows, columns = chunk_size(tokens, vocabulary, device), chunk_size(vocabulary, tokens, device)
    narrow = 0 if layout.dtype == "float32" else size
    forward = rows * vocabulary * (20 + narrow)  # scaled, below the highest, their exponentials, two products
    # The weight's gradient; a module's is waiting to be added to it, and in bfloat16 the sum is copied to float32.
    weight = vocabulary * spec.hidden_size * (size * (3 if modules else 1) + (4 if narrow else 0))
    gradients = tokens * spec.hidden_size * (4 + size) + weight
    return max(forward, columns * tokens * (4 + narrow) + gradients), 0.0
