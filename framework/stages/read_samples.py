"""Responses that a stage reads itself instead of having them scored: answers to compare, and a judge's replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

from framework.artifacts import Checkpoint
from framework.data.chat_template import TemplateConfig
from framework.data.reasoning import Reasoned, split_reasoning
from framework.data.selection import Drop
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import RoleEstimate, StageEstimate
from framework.models.families.base import ModelConfig
from framework.rewards.unscored import unscored
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import Sampling, SamplingConfig
from framework.types import Prompt, ResponseGroup

SAMPLING_ASSUMPTION = (
    "sampling hours: 2 FLOPs per active parameter and token at GRPO's utilisation, every response at its limit; "
    "how many prompts there will be is a guess (expected_prompts, most_prompts)"
)


def sampled_groups(
    config: SamplingConfig,
    engine: VllmConfig,
    template: TemplateConfig,
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    runtime: Runtime,
) -> list[ResponseGroup]:
    """Return a group for each prompt, in their order; those of a killed attempt are not sampled again."""
    sampling = Sampling(config, engine, unscored(), template)
    asked = [replace(prompt, rewards=()) for prompt in prompts]
    with SampleFile(runtime.work_dir / f"{config.purpose}.jsonl") as kept:
        groups = {
            group.scored.group.prompt.id: group.scored.group
            for group in sampling.run(checkpoint.path, asked, runtime, kept)
        }
    return [groups[prompt.id] for prompt in prompts]


def finished_answers(group: ResponseGroup, dropped: list[Drop]) -> Iterator[tuple[int, Reasoned]]:
    """Place and parts of each response that ended by itself and has reasoning; `dropped` learns of the others."""
    for place, response in enumerate(group.responses):
        found = split_reasoning(group.prompt.opened + response.text)
        if found is None or response.finish_reason != "stop":
            dropped.append(Drop(f"{group.prompt.id}#{place}", "no_reasoning" if found is None else "unfinished"))
        else:
            yield place, found


def fit_engine(engine: VllmConfig, longest: int, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
    """Compute what is not given of a sampling stage's engine, for responses of up to `longest` tokens."""
    from framework.stages.fit import fit_sampling

    # how long responses are is said by the stage's samplings, not to be chosen here
    stage = SimpleNamespace(engine=engine, max_tokens=longest)
    return fit_sampling(stage, model, cluster, lambda key: key == "max_tokens" or given(key))


def check_sampling(name: str, config: SamplingConfig, engine: VllmConfig) -> None:
    """Raise UserError, naming `name`, for responses that leave no room for a prompt, or that would all be alike."""
    if config.temperature == 0 and config.n > 1:
        raise UserError(f"{name}.n", config.n, "must be 1 at temperature 0: all responses would be alike")
    if config.max_tokens >= engine.max_model_len:
        allowed = f"must leave room for the prompt in engine.rollout.max_model_len={engine.max_model_len}"
        raise UserError(f"{name}.max_tokens", config.max_tokens, allowed)


def sampling_estimate(
    cluster: ClusterConfig,
    engine: VllmConfig,
    batch: dict[str, str | int | float],
    model: ModelConfig | None,
    tokens: float,
) -> StageEstimate:
    """The estimate of a stage that only samples: so many response tokens, counted at their limit, of a `model`."""
    from framework.models.estimate import sampling_hours

    gpus, hours = cluster.rollout_workers * engine.tensor_parallel_size if cluster.gpus else 0, 0.0
    if model is not None:
        hours = sampling_hours(model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus)
    role = RoleEstimate("rollout", cluster.rollout_workers, gpus)
    return StageEstimate(batch, (role,), hours, (SAMPLING_ASSUMPTION,) if hours else ())
