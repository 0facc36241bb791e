"""Sharding computed: how a model's learner and sampler are spread over a cluster's GPUs, from the plan's own estimates.

The first of these that leaves room is taken, cheapest first: one card for both roles, at once or in turns, before a
share of the cards each; ZeRO-1, 2, 3 (each sends more than the one before); experts spread inside a node, farther only
if they must; a row whole on a GPU, over those of a node only if it must; few GPUs a sampler. What memory is left then
holds longer micro-batches and more sequences. `placing` has the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.models.estimate import sampler_memory
from framework.models.families.base import ModelConfig
from framework.stages.placing import FREE, SEQUENCES, place_roles, place_trainer, widths

PROMPT_ROOM = 1024  # tokens of the context for a prompt, beside the longest response
SHORTEST = 4096  # tokens: rows are not cut further, where their length is free
MORE_NODES = (2, 4, 8, 16, 32)


def fit_rl(config: Any, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
    """Complete a stage of reinforcement learning (its `GrpoConfig`); it chooses how roles share the cluster."""
    rollout, learner = config.engine.rollout, config.engine.learner
    choices = _of_machine(cluster, given, "engine.rollout.", sampler=True)
    choices |= _of_machine(cluster, given, "engine.learner.", sampler=False)
    rollout, learner = _updated(rollout, choices, "engine.rollout."), _updated(learner, choices, "engine.learner.")
    context = _context(model, given, config.longest, rollout, "engine.rollout.max_model_len")
    free = not given("max_tokens") and not given("engine.rollout.max_model_len")
    if not cluster.gpus:
        lengths = {"engine.rollout.max_model_len": context, "max_tokens": _response(context, config.longest)}
        lengths["engine.learner.token_budget"] = max(learner.token_budget, context)
        return Fit(choices | _not_given(given, lengths))
    contexts = [context]
    while free and contexts[-1] // 2 >= SHORTEST:
        contexts.append(contexts[-1] // 2)
    turns = not config.max_staleness and not config.sample_only
    tried = [(tokens, *place_roles(model, cluster, given, rollout, learner, tokens, turns)) for tokens in contexts]
    context, place, fits = next((t for grade in (2, 1, 0) for t in tried if t[2] >= grade), tried[0])
    found: dict[str, Any] = {
        "cluster.colocate": place.colocate,
        "cluster.turns": place.turns,
        "cluster.learner_workers": place.learners,
        "cluster.rollout_workers": place.samplers,
        "max_tokens": _response(context, config.longest),
        "engine.rollout.max_model_len": context,
        "engine.rollout.tensor_parallel_size": place.sampler.tensor_parallel_size,
        "engine.rollout.max_num_seqs": place.sampler.max_num_seqs,
        "engine.rollout.kv_cache_gib": place.sampler.kv_cache_gib,
        "engine.learner.zero_stage": place.learner.zero_stage,
        "engine.learner.ep_size": place.learner.ep_size,
        "engine.learner.sp_size": place.learner.sp_size,
        "engine.learner.token_budget": place.learner.token_budget,
    }

    def fits_with(rows: int, cluster: ClusterConfig) -> bool:
        return place_roles(model, cluster, given, rollout, learner, rows, turns)[1] > 0

    needs = f"{place.describe(context)} of {cluster.gpu_memory_gib:g} GiB"
    misfit = "" if fits else _misfit(place.needed, cluster, context, _shorter_responses, fits_with)
    return Fit(choices | _not_given(given, found), needs, misfit)


def fit_sampling(config: Any, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
    """Complete a stage that samples alone (its `EvaluateConfig`)."""
    choices = _of_machine(cluster, given, "engine.", sampler=True)
    engine = _updated(config.engine, choices, "engine.")
    context = min(
        _context(model, given, config.max_tokens, engine, "engine.max_model_len"), model.max_position_embeddings
    )
    found: dict[str, Any] = {"engine.max_model_len": context, "max_tokens": _response(context, config.max_tokens)}
    if not cluster.gpus:
        return Fit(choices | _not_given(given, found))
    sizes = widths(model, cluster, given, engine, "engine.tensor_parallel_size")
    if given("cluster.rollout_workers"):
        cards = cluster.gpus if cluster.colocate else max(cluster.gpus - cluster.learner_workers, 1)
        sizes = [size for size in sizes if size * cluster.rollout_workers <= cards][-1:] or sizes[:1]
    for size in sizes:
        weights, sequence = sampler_memory(model, size, context).values()
        room = int((FREE * cluster.gpu_memory_gib - weights) // sequence)
        if room >= SEQUENCES[0]:
            break
    room = room if room > 0 else int((cluster.gpu_memory_gib - weights) // sequence)
    least = min(max(room, 1), SEQUENCES[-1])
    found |= {
        "cluster.rollout_workers": max(cluster.gpus // size, 1),
        "engine.tensor_parallel_size": size,
        "engine.max_num_seqs": least,
        "engine.kv_cache_gib": None,  # what is left
    }
    needs = f"TP {size}: weights {weights:.1f} + {least} sequences of {context:,} tokens"
    total = weights + sequence
    misfit = "" if room > 0 else f"weights and one sequence need {total:.1f} of {cluster.gpu_memory_gib:g} GiB a GPU"
    return Fit(choices | _not_given(given, found), needs, misfit)


def fit_rows(config: Any, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
    """Complete a stage that trains on rows of text, later on longer ones perhaps (its `PretrainConfig`)."""
    rows = (config.row_tokens, *(phase.row_tokens for phase in config.extend))
    return _fit_training(config, model, cluster, given, rows)


def fit_chats(config: Any, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
    """Complete a stage that trains on conversations (its `SftConfig`), whose longest are left out if they must be."""
    longest = min(config.max_tokens, model.max_position_embeddings)
    while cluster.gpus and not given("max_tokens") and longest // 2 >= SHORTEST:
        found = _fit_training(config, model, cluster, given, (longest,))
        if not found.misfit:
            return found
        longest //= 2
    return _fit_training(config, model, cluster, given, (longest,))


def _fit_training(config: Any, model: ModelConfig, cluster: ClusterConfig, given: Given, rows: tuple[int, ...]) -> Fit:
    choices = _of_machine(cluster, given, "engine.", sampler=False)
    engine = _updated(config.engine, choices, "engine.")
    if not cluster.gpus:
        return Fit(choices)
    found: dict[str, Any] = {"cluster.learner_workers": cluster.gpus}
    if not config.workers and given("cluster.learner_workers") and not cluster.colocate:
        found["workers"] = cluster.gpus  # all of them: samplers are away
    ranks = (
        config.workers
        or found.get("workers")
        or (cluster.learner_workers if given("cluster.learner_workers") else cluster.gpus)
    )
    placed = place_trainer(model, cluster, given, engine, ranks, rows)
    found |= {
        "engine.zero_stage": placed.engine.zero_stage,
        "engine.ep_size": placed.engine.ep_size,
        "engine.sp_size": placed.engine.sp_size,
        "engine.token_budget": placed.engine.token_budget,
    }

    def fits_with(longest: int, cluster: ClusterConfig) -> bool:
        more = config.workers or cluster.gpus
        tried = place_trainer(model, cluster, given, engine, more, (longest,))
        return tried.rows == longest

    misfit = ""
    if placed.rows < max(rows):
        least = place_trainer(model, cluster, given, engine, ranks, (max(rows),)).gib
        misfit = _misfit(least, cluster, max(rows), "rows of at most {:,} tokens".format, fits_with)
    choices |= {"workers": found.pop("workers")} if "workers" in found else {}
    return Fit(choices | _not_given(given, found), f"{placed.describe()} of {cluster.gpu_memory_gib:g} GiB", misfit)


def _misfit(
    needed: float,
    cluster: ClusterConfig,
    rows: int,
    described: Callable[[int], str],
    fits: Callable[[int, ClusterConfig], bool],
) -> str:
    """Say what a GPU lacks, and what would fit: shorter rows, more nodes, larger GPUs."""
    ways = []
    if shorter := _most_rows(rows, lambda tokens: fits(tokens, cluster)):
        ways.append(described(shorter))
    for more in MORE_NODES:
        larger = replace(cluster, num_nodes=more * cluster.num_nodes, cpus=more * cluster.cpus)
        if fits(rows, larger):
            ways.append(f"cluster.num_nodes={larger.num_nodes}")
            break
    ways.append(f"GPUs of {needed / FREE:.0f} GiB")
    text = f"rows of {rows:,} tokens need {needed:.1f} GiB of each GPU, which has {cluster.gpu_memory_gib:g}"
    return f"{text}; would fit: {', or '.join(ways)}"


def _shorter_responses(rows: int) -> str:
    return f"max_tokens={_response(rows, rows)} with engine.rollout.max_model_len={rows}"


def _most_rows(rows: int, fits: Callable[[int], bool]) -> int:
    """The longest rows, to a thousand tokens, that fit; 0: none do."""
    low, high = 0, -(-rows // 1024)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * 1024) else (low, middle)
    return low * 1024


def _of_machine(cluster: ClusterConfig, given: Given, prefix: str, sampler: bool) -> dict[str, Any]:
    """What the machine alone says of an engine: precision, kernels, the cache of a CPU."""
    found: dict[str, Any] = {"dtype": "bfloat16" if cluster.gpus else "float32"}
    if sampler and cluster.gpus:
        found["enforce_eager"] = False
    elif sampler:  # vLLM's MLA kernels on a CPU want a latent of 512
        found |= {"mla": False, "kv_cache_gib": 0.5}
    elif cluster.gpus:
        found["gradient_checkpointing"] = True
    return _not_given(given, {f"{prefix}{key}": value for key, value in found.items()})


def _not_given(given: Given, found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if not given(key)}


def _updated(engine: Any, choices: Mapping[str, Any], prefix: str) -> Any:
    return replace(engine, **{key.removeprefix(prefix): value for key, value in choices.items()
                              if key.startswith(prefix)})  # fmt: skip


def _context(model: ModelConfig, given: Given, longest: int, engine: VllmConfig, key: str) -> int:
    """Tokens of a prompt and its response: as given, else what the longest response needs, as far as the model goes."""
    return engine.max_model_len if given(key) else min(model.max_position_embeddings, longest + PROMPT_ROOM)


def _response(context: int, longest: int) -> int:
    """Tokens of the longest response that leaves room for a prompt."""
    return min(longest, max(context - PROMPT_ROOM, context * 3 // 4))
