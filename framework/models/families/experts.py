"""Checks that families with a mixture of experts share."""

from __future__ import annotations

from typing import Any

from framework.bounds import divisors
from framework.errors import UserError

Family = Any  # a ModelConfig with the fields of a mixture of experts


def check_choice(spec: Family, reachable: int, among: str = "") -> None:
    """Raise UserError unless a router can choose its experts among `reachable` ones."""
    if not 1 <= spec.num_experts_per_tok <= reachable:
        raise UserError("model.num_experts_per_tok", spec.num_experts_per_tok, f"must be 1 to {reachable}{among}")


def check_groups(spec: Family, least: int = 1) -> None:
    """The same for DeepSeek's routers, which first choose among groups of experts (V2 section 2.1.3)."""
    if spec.n_routed_experts % spec.n_group:
        sizes = ", ".join(map(str, divisors(spec.n_routed_experts)))
        allowed = f"must divide n_routed_experts={spec.n_routed_experts}: {sizes}"
        raise UserError("model.n_group", spec.n_group, allowed)
    if not 1 <= spec.topk_group <= spec.n_group:
        raise UserError("model.topk_group", spec.topk_group, f"must be 1 to n_group={spec.n_group}")
    per_group = spec.n_routed_experts // spec.n_group
    if per_group < least:
        raise UserError("model.n_group", spec.n_group, f"must leave at least {least} routed experts in each group")
    reachable = spec.topk_group * per_group
    check_choice(spec, reachable, f", the experts of topk_group={spec.topk_group} groups")
    if not 0 <= spec.first_k_dense_replace <= spec.num_hidden_layers:
        allowed = f"must be 0 to num_hidden_layers={spec.num_hidden_layers}"
        raise UserError("model.first_k_dense_replace", spec.first_k_dense_replace, allowed)


def softmax_keys(spec: Family) -> dict[str, Any]:
    """What the configs of DeepSeekMoE and V2 are told of their routers; raises UserError for a normalised softmax."""
    return group_keys(spec) | {
        "topk_method": "group_limited_greedy" if spec.n_group > 1 else "greedy",
        "scoring_func": "softmax",
    }


def check_softmax(spec: Family) -> None:
    """Raise UserError for a softmax that is normalised again, which no released model has."""
    check_groups(spec)
    if spec.norm_topk_prob:
        raise UserError("model.norm_topk_prob", True, f"must be false: {spec.model_type} scores by softmax alone")


def group_keys(spec: Family) -> dict[str, Any]:
    """What all of DeepSeek's configs are told of their experts."""
    names = (
        *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob"),
        *("moe_intermediate_size", "first_k_dense_replace", "routed_scaling_factor"),
    )
    return {name: getattr(spec, name) for name in names} | {"moe_layer_freq": 1}
