"""Encoders with the heads of their pretraining: transformers' classes, whose heads run only where a packed row asks.

On disk and in transformers it is that class as it is. transformers' own forward projects every position onto the
vocabulary, though one in seven is predicted, and pools the first token of a row, where a packed row has many
sequences. So the forward here takes the positions to predict and the first position of each sequence.

Dimensions: T tokens of a packed row, K predicted positions, S sequences of the row, H hidden, V vocabulary.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch


class MaskedOutput(NamedTuple):
    """What the objectives of encoders read."""

    logits_KV: torch.Tensor
    pair_logits_S2: torch.Tensor | None  # is the second part the one that comes next; None: no such head
    hidden_TH: torch.Tensor  # behind the last layer


def _bert(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.cls.predictions(hidden)  # type: ignore[no-any-return]


def _bert_pair(model: Any, first_S1H: torch.Tensor) -> torch.Tensor:
    return model.cls.seq_relationship(model.bert.pooler(first_S1H))  # type: ignore[no-any-return]


def _albert_pair(model: Any, first_S1H: torch.Tensor) -> torch.Tensor:
    pooled = model.albert.pooler_activation(model.albert.pooler(first_S1H[:, 0]))
    return model.sop_classifier(pooled)  # type: ignore[no-any-return]


def _distilbert(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    hidden = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    return model.vocab_projector(hidden)  # type: ignore[no-any-return]


# class -> (its vocabulary head, its head of pairs)
HEADS: dict[str, tuple[Any, Any]] = {
    "BertForPreTraining": (_bert, _bert_pair),
    "MegatronBertForPreTraining": (_bert, _bert_pair),
    "RobertaForMaskedLM": (lambda model, hidden: model.lm_head(hidden), None),
    "AlbertForPreTraining": (lambda model, hidden: model.predictions(hidden), _albert_pair),
    "DistilBertForMaskedLM": (_distilbert, None),
}


class _PackedHeads:
    """Comes before transformers' class: another forward, nothing else."""

    def forward(
        self: Any,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        predicted_K: torch.Tensor,
        first_S: torch.Tensor,
        **inputs: Any,
    ) -> MaskedOutput:
        """The first three [1, T], positions from 0 in each sequence; `predicted_K`, `first_S`: int64, in the row."""
        predict, pair = HEADS[type(self).__name__]
        body = getattr(self, self.base_model_prefix)
        types = getattr(body.embeddings, "token_type_embeddings", None)
        if types is not None and types.num_embeddings > 1:
            inputs["token_type_ids"] = token_type_ids
        if not self._supports_attention_backend:  # Megatron's BERT, which takes a mask instead
            del inputs["segments"]
            inputs["attention_mask"] = segment_mask(first_S, input_ids.shape[1], self.dtype)
        positions = position_ids + first_position(body)
        hidden_TH = body(input_ids, position_ids=positions, **inputs).last_hidden_state[0]
        pairs = None if pair is None else pair(self, hidden_TH[first_S][:, None])
        return MaskedOutput(predict(self, hidden_TH[predicted_K]), pairs, hidden_TH)


def first_position(body: Any) -> int:
    """The position of a sequence's first token: RoBERTa counts from behind the padding token's."""
    padding = getattr(body.embeddings.position_embeddings, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def segment_mask(first_S: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, 1, T, T] to be added to attention's logits: 0 within a sequence of the row, else the least number."""
    starts_T = torch.zeros(length, dtype=torch.long, device=first_S.device)
    starts_T[first_S] = 1
    of_T = starts_T.cumsum(0)
    mask_TT = torch.zeros(length, length, dtype=dtype, device=first_S.device)
    return mask_TT.masked_fill_(of_T[:, None] != of_T, torch.finfo(dtype).min)[None, None]


def masked_head_class(name: str) -> Any:
    """Return the class to train: transformers' of that name, with the forward above."""
    import transformers

    return _derived(getattr(transformers, name))


@cache
def _derived(kind: Any) -> Any:
    return type(kind.__name__, (_PackedHeads, kind), {"__module__": kind.__module__})
