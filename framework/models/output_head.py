"""A causal model's output head that answers with logprobs of given tokens, where the forward is asked for them.

The head is called inside the model's own forward, where ZeRO-3 has gathered its weight: what to score reaches it by a
forward hook, and every caller, DeepSpeed's engine too, passes it as one more keyword of the model.

Dimensions: K positions that are scored, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from framework.algorithms.logprobs import TokenScores, token_scores
from framework.algorithms.projected_logprobs import projected_scores

# Settings by which models of some families change the head's logits: there they are scored as they leave the model.
AFTERWARDS = (
    "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "logit_scale", "logits_scaling",
    "lm_head_multiplier",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Tokens to score in one call of the head."""

    targets_K: torch.Tensor  # int64
    temperature: float = 1.0


def scores_of(found: torch.Tensor) -> TokenScores:
    """Return what a forward that was asked gave as its logits, [..., K, 3], flattened to [K] each."""
    logprobs_K, entropy_K, first_K = found.flatten(0, -2).unbind(-1)
    return TokenScores(logprobs_K, entropy_K.detach(), first_K.detach())


class OutputHead(nn.Linear):
    """transformers' linear head: [..., K, H] to logits [..., K, V], or if asked to TokenScores, stacked [..., K, 3]."""

    scores_logits = False  # those that leave the model, by the hook
    waiting: Sequence[Asked] = ()  # of the forward under way: one a call, in order

    @classmethod
    def of(cls, linear: nn.Linear) -> OutputHead:
        """Return the head with another's parameters."""
        with torch.device("meta"):
            head = cls(linear.in_features, linear.out_features, linear.bias is not None)
        head.weight, head.bias = linear.weight, linear.bias
        return head.train(linear.training)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score the next of the asked targets; without any, return logits."""
        if not self.waiting or self.scores_logits:
            return super().forward(hidden)
        asked, *self.waiting = self.waiting
        rows_KH = hidden.flatten(0, -2)
        found = projected_scores(rows_KH, self.weight, self.bias, asked.targets_K, asked.temperature)
        return torch.stack(found, -1).view(*hidden.shape[:-1], 3)


def use_output_head(model: Any, cut: bool = False) -> None:
    """Let the model's forward take `asked`, a list of `Asked`: its `logits` (`mtp_logits`) are for `scores_of` then.

    Does nothing for a model without an output head. `cut`: tensor parallelism will spread the vocabulary over ranks.
    """
    linear = model.get_output_embeddings()
    if linear is None or isinstance(linear, OutputHead):
        return
    head = OutputHead.of(linear)
    head.scores_logits = cut or any(getattr(model.config, name, None) not in (None, 1) for name in AFTERWARDS)
    model.set_output_embeddings(head)
    model.register_forward_pre_hook(_ask, with_kwargs=True)
    model.register_forward_hook(_score_logits)


def _ask(model: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    model.get_output_embeddings().waiting = inputs.pop("asked", ())
    return args, inputs


def _score_logits(model: Any, _args: tuple[Any, ...], output: Any) -> None:
    head = model.get_output_embeddings()
    if head.waiting and head.scores_logits:
        found = token_scores(output.logits.flatten(0, 1), head.waiting[0].targets_K, head.waiting[0].temperature)
        output.logits = torch.stack(found, -1)[None]
    head.waiting = ()
