"""The table of transformers: published counts, packed rows that equal transformers' own, first weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from framework.config import named_model
from framework.models.families.gpt2 import Gpt2
from framework.models.packed_attention import SegmentLayout, use_packed_attention
from framework.models.spec import build_model, empty_model, parameter_counts
from framework.models.student import copy_teacher
from framework.models.table.bert import Albert, Bert, MegatronBert, Roberta
from framework.models.table.distilbert import DistilBert

SIZES: dict[str, Any] = {
    "name": "tiny", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 34, "dtype": "float32", "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip

# model -> (as printed, whether without the heads of its pretraining). BERT section 3, RoBERTa's repository, ALBERT
# Table 1, DistilBERT Table 3, XLNet's released weights, GPT-2's repository (the paper's 117M was a slip), CTRL section
# 3.2, Megatron-LM Tables 1 and 4.
PUBLISHED = {
    "bert_base": ("110M", True), "roberta_base": ("125M", False), "albert_base": ("12M", True),
    "distilbert_base": ("66M", True), "xlnet_base": ("117M", False), "gpt2_small": ("124M", False),
    "ctrl": ("1.63B", False), "megatron_gpt2_8b": ("8.3B", False), "megatron_bert_4b": ("3.9B", False),
}  # fmt: skip


@pytest.mark.parametrize(("name", "printed"), PUBLISHED.items())
def test_parameters_are_the_published_ones(name: str, printed: tuple[str, bool]) -> None:
    """Within half a per cent; where fewer digits are printed than tell that, what they round to."""
    spec, (text, headless) = named_model(name), printed
    total = parameter_counts(spec).total
    if headless:
        with torch.device("meta"):
            model: Any = empty_model(spec.hf_config(), torch.bfloat16)
        total = sum(p.numel() for p in getattr(model, model.base_model_prefix).parameters())
    number, unit = float(text[:-1]), {"M": 1e6, "B": 1e9}[text[-1]]
    decimals = len(text[:-1].partition(".")[2])
    assert total == pytest.approx(number * unit, rel=0.005) or round(total / unit, decimals) == number


def encoders() -> list[Any]:
    return [Bert(**SIZES), Roberta(**SIZES | {"pad_token_id": 1}), Albert(**SIZES, embedding_size=16),
            DistilBert(**SIZES), MegatronBert(**SIZES)]  # fmt: skip


@pytest.mark.parametrize("spec", encoders(), ids=lambda spec: spec.model_type)
def test_a_packed_row_equals_transformers_own_forward(spec: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model = build_model(spec, 0).eval()
    assert type(model).__name__ == spec.architecture
    model.save_pretrained(tmp_path)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()  # what fill-mask loads
    use_packed_attention(model)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(5, 60, (n,), generator=generator) for n in (20, 7, 7, 12)]
    typed = getattr(spec, "type_vocab_size", 1) > 1
    types = [(torch.arange(len(part)) > 4).long() * typed for part in parts]
    lengths = torch.tensor([len(part) for part in parts])
    with torch.no_grad():
        output = model(
            input_ids=torch.cat(parts)[None],
            position_ids=torch.cat([torch.arange(len(part)) for part in parts])[None],
            token_type_ids=torch.cat(types)[None],
            predicted_K=torch.arange(int(lengths.sum())),
            first_S=lengths.cumsum(0) - lengths,
            segments=SegmentLayout.of_lengths(lengths.tolist()),
        )
        more = [{"token_type_ids": kind[None]} if hasattr(spec, "type_vocab_size") else {} for kind in types]
        alone = [plain(input_ids=part[None], **kind).logits[0] for part, kind in zip(parts, more, strict=True)]
    torch.testing.assert_close(output.logits_KV, torch.cat(alone), atol=2e-5, rtol=1e-4)
    if output.pair_logits_S2 is not None:
        import transformers

        whole = getattr(transformers, spec.architecture).from_pretrained(tmp_path).eval()
        with torch.no_grad():
            pairs = [whole(input_ids=part[None], **kind)[1] for part, kind in zip(parts, more, strict=True)]
        torch.testing.assert_close(output.pair_logits_S2, torch.cat(pairs), atol=2e-5, rtol=1e-4)


def test_gpt2_residual_weights_begin_smaller() -> None:
    """GPT-2 section 2.3: scaled by 1/sqrt(N), N residual layers, of which each block has two."""
    spec = Gpt2(**SIZES | {"num_hidden_layers": 8})
    weights = dict(build_model(spec, 0).named_parameters())
    spread = {
        part: float(weights[f"transformer.h.3.{part}.weight"].detach().std()) for part in ("mlp.c_fc", "mlp.c_proj")
    }
    assert spread["mlp.c_fc"] == pytest.approx(0.2, rel=0.05)
    assert spread["mlp.c_proj"] == pytest.approx(0.2 / 16**0.5, rel=0.05)


def test_a_student_begins_as_every_second_layer_of_its_teacher() -> None:
    teacher = build_model(Bert(**SIZES | {"num_hidden_layers": 4}), 0)
    student = build_model(DistilBert(**SIZES), 1)
    assert copy_teacher(dict(teacher.named_parameters()), 4, student) == len(list(student.parameters()))
    ours, theirs = student.distilbert, teacher.bert
    torch.testing.assert_close(
        ours.transformer.layer[1].ffn.lin1.weight, theirs.encoder.layer[2].intermediate.dense.weight
    )
    torch.testing.assert_close(student.vocab_projector.weight, theirs.embeddings.word_embeddings.weight)
    wider = build_model(Bert(**SIZES | {"hidden_size": 64}), 0)
    with pytest.raises(ValueError, match="the teacher has no distilbert"):
        copy_teacher(dict(wider.named_parameters()), 2, student)
