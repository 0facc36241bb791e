"""Multi-token prediction for DeepSeek-V3 (section 2.2): D further modules behind the decoder, in transformers' model.

Module k reads the hidden states of module k-1 and the embedding of the token k places ahead, and predicts the token
after that. It sits at `model.layers[L + k - 1]`, where its public name says: the decoder runs its first L layers only,
and whatever walks the layers (AutoEP, ZeRO, export, publishing) treats it as one of them.

Exactly as vLLM drafts: module 1 reads the decoder's output *after* its final norm, module k the states of module k-1
after `shared_head.norm`; positions are those of the hidden states; at position 0 the embedding is zero.

Dimensions: B rows, T tokens of a row, H hidden size, V vocabulary, D depths, K positions whose logits are wanted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm


@dataclass
class MtpOutput(MoeCausalLMOutputWithPast):  # type: ignore[misc]
    """The main model's logits and those of each depth, [K, V] at given positions; scores if asked (`output_head`)."""

    mtp_logits: tuple[torch.Tensor, ...] | None = None


class SharedHead(nn.Module):
    """The norm before the output head; the head itself is the main model's."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.norm = DeepseekV3RMSNorm(hidden_size, eps=eps)


class MtpModule(DeepseekV3DecoderLayer):  # type: ignore[misc]  # transformers is not type-checked
    """M_k and TRM_k of eq. 21-22: two normalised halves projected to H, then one decoder block."""

    def __init__(self, config: transformers.DeepseekV3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = DeepseekV3RMSNorm(hidden, eps=eps)
        self.hnorm = DeepseekV3RMSNorm(hidden, eps=eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)  # embedding first, as the released weights have it
        self.shared_head = SharedHead(hidden, eps)

    def forward(self, hidden_BTH: torch.Tensor, embeddings_BTH: torch.Tensor, **block: Any) -> torch.Tensor:
        """Return h^k [B, T, H], normalised: what the head projects and the next module reads."""
        joined = torch.cat([self.enorm(embeddings_BTH), self.hnorm(hidden_BTH)], dim=-1)
        states: torch.Tensor = self.shared_head.norm(super().forward(self.eh_proj(joined), **block))
        return states


class DeepseekV3ForCausalLM(transformers.DeepseekV3ForCausalLM):  # type: ignore[misc]
    """transformers' class of this name with its `config.num_mtp_layers` modules; `from_pretrained` loads them too."""

    def __init__(self, config: transformers.DeepseekV3Config) -> None:
        super().__init__(config)
        first = config.num_hidden_layers
        self.model.layers.extend(MtpModule(config, first + k) for k in range(config.num_mtp_layers))
        self.post_init()

    @property
    def mtp_modules(self) -> nn.ModuleList:
        """The D modules, in depth order."""
        modules: nn.ModuleList = self.model.layers[self.config.num_hidden_layers :]
        return modules

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mtp_positions: Sequence[torch.Tensor] | None = None,
        mtp_detached: bool = False,
        mtp_ahead: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers'; given `mtp_positions`, also run the modules (training only, without a cache).

        `mtp_positions[k-1]` (int64 [K], into the flattened [B * T] tokens) is where depth k's logits are computed.
        `mtp_detached` lets no gradient of theirs reach the decoder, the embedding or the output head. `mtp_ahead`
        (int64 [B, D]): the tokens behind `input_ids`, where these are a part of a row.
        """
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        if mtp_positions is None:
            return super().forward(**given, logits_to_keep=logits_to_keep, **kwargs)
        hidden_BTH = self.model(**given, **kwargs).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_BTH[:, kept])
        shared = [self.model.embed_tokens.weight, self.lm_head.weight]
        with _frozen(shared if mtp_detached else []):
            read_BTH = hidden_BTH.detach() if mtp_detached else hidden_BTH
            states = self._depths(read_BTH, **given, mtp_ahead=mtp_ahead, **kwargs)
            wanted = [h_BTH.flatten(0, 1)[at_K] for h_BTH, at_K in zip(states, mtp_positions, strict=True)]
            return MtpOutput(logits=logits, mtp_logits=tuple(self.lm_head(h_KH) for h_KH in wanted))

    def _depths(
        self,
        hidden_BTH: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        mtp_ahead: torch.Tensor | None,
        **kwargs: Any,
    ) -> Iterator[torch.Tensor]:
        """Yield h^1 .. h^D [B, T, H]. The last k positions of a row read embeddings of its start: nobody uses them."""
        tokens = hidden_BTH.shape[1]
        if position_ids is None:
            position_ids = torch.arange(hidden_BTH.shape[1], device=hidden_BTH.device)[None]
        block = {
            "position_embeddings": self.model.rotary_emb(hidden_BTH, position_ids),
            "attention_mask": create_causal_mask(
                config=self.config,
                inputs_embeds=hidden_BTH,
                attention_mask=attention_mask,
                past_key_values=None,
                position_ids=position_ids,
            ),
            "position_ids": position_ids,
        }
        read = input_ids if mtp_ahead is None else torch.cat([input_ids, mtp_ahead], 1)
        embeddings_BNH = self.model.embed_tokens(read)
        starts = (position_ids == 0)[..., None]
        for k, module in enumerate(self.mtp_modules, 1):
            ahead_BTH = embeddings_BNH.roll(-k, dims=1)[:, :tokens].masked_fill(starts, 0.0)
            hidden_BTH = module(hidden_BTH, ahead_BTH, **block, **kwargs)
            yield hidden_BTH


@contextlib.contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Record no gradient to `parameters` inside the block."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
