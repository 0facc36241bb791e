"""A random checkpoint whose response lengths are set by hand, so that two frameworks sample the same distribution.

Two coordinates of the hidden state are flags that say what the last token was: one of the lower half of the vocabulary
("short", as all prompts are) or of the upper half ("long"). The layers don't read them; the output layer does, and so
gives each token the probabilities wanted: of the end after a short token, of passing from one half to the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from framework.models.families.base import ModelConfig
from jobs.bench._checkpoints import save_checkpoint

SHORT, LONG = 0, 1  # coordinates of the flags
FLAG = 2.0  # in the embedding; the other coordinates have a standard deviation of 0.02
NEVER = 1e-12


@dataclass(frozen=True)
class Lengths:
    """What follows a short token: the end with probability `stop`, a long one with `switch`; after a long one, never
    the end, and a short one with `back`.
    """

    stop: float = NEVER
    switch: float = 0.5
    back: float = 0.5


EQUAL = Lengths()  # every response runs to the limit
SKEWED = Lengths(stop=0.16, switch=0.003, back=0.002)  # mean about 13 with a limit of 128; a few get there


@torch.no_grad()
def save_with_lengths(spec: ModelConfig, lengths: Lengths, directory: Path) -> Path:
    """Write a random model of these sizes whose responses have these lengths."""
    from transformers import AutoModelForCausalLM

    save_checkpoint(spec, directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    half = spec.vocab_size // 2
    embedding = model.model.embed_tokens.weight
    embedding[:, [SHORT, LONG]] = 0.0
    embedding[:half, SHORT] = embedding[half:, LONG] = FLAG
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[[SHORT, LONG]] = 0.0
    tokens = torch.arange(spec.vocab_size)[None]
    hidden_TD = model.model(tokens).last_hidden_state[0]
    output = model.lm_head.weight
    output[:, [SHORT, LONG]] = 0.0
    for flag, strength, stop, other in (
        (SHORT, hidden_TD[:half, SHORT].mean(), lengths.stop, lengths.switch),
        (LONG, hidden_TD[half:, LONG].mean(), NEVER, lengths.back),
    ):
        own, others = (slice(half), slice(half, None)) if flag == SHORT else (slice(half, None), slice(half))
        output[own, flag] = math.log((1 - stop - other) / half) / strength
        output[others, flag] = math.log(other / half) / strength
        output[spec.eos_token_id, flag] = math.log(stop) / strength
    model.save_pretrained(directory)
    return directory
