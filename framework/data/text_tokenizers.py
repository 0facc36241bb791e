"""Tokenizers of the models of `job=transformers`: BERT's WordPiece, and byte-level BPE with RoBERTa's or GPT-2's marks.

All are trained by the tokenizers library and load in transformers as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.bounds import NonNegativeInt, PositiveInt, bounded
from framework.data.masking import Vocabulary
from framework.data.sequences import Markers

Kind = Literal["wordpiece", "byte_bpe", "gpt2"]
WORDPIECE = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
GPT2 = "<|endoftext|>"


@dataclass(frozen=True)
@bounded
class TextTokenizerConfig:
    """Defaults: BERT's vocabulary (30,522, lower case); RoBERTa's has 50,265 tokens, GPT-2's 50,257."""

    kind: Kind = "wordpiece"
    vocab_size: PositiveInt = 30_522
    codes: bool = False  # a control code for each domain of the text
    lowercase: bool = True  # WordPiece alone
    min_frequency: NonNegativeInt = 2
    train_documents: PositiveInt = 1_000_000  # drawn from all of them


def train_text_tokenizer(
    texts: Iterable[str], config: TextTokenizerConfig, directory: Path, longest: int, codes: Sequence[str] = ()
) -> int:
    """Train on `texts` and write a fast tokenizer; returns how many tokens it has.

    `codes`: control codes, a token each (CTRL, 1909.05858, section 3). `longest`: the model's context.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    kind = config.kind
    marks = {"wordpiece": WORDPIECE, "byte_bpe": ROBERTA}.get(kind, {})
    tokenizer, trainer = (_wordpiece if kind == "wordpiece" else _byte_bpe)(config, [*marks.values()] or [GPT2], codes)
    tokenizer.train_from_iterator(texts, trainer)
    names: dict[str, Any] = {f"{name}_token": token for name, token in marks.items()}
    if kind == "byte_bpe":
        names |= {"bos_token": ROBERTA["cls"], "eos_token": ROBERTA["sep"]}
        names["mask_token"] = AddedToken(ROBERTA["mask"], lstrip=True, special=True)
    elif kind == "gpt2":
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), GPT2)
    if marks:
        tokenizer.post_processor = _template(tokenizer, marks["cls"], marks["sep"], both=kind == "byte_bpe")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=list(codes),
        **names,
    )
    fast.save_pretrained(directory)
    return len(fast)


def control_code(domain: str) -> str:
    """The token that stands for a domain of the text."""
    return f"<|{domain}|>"


def markers(tokenizer: Any) -> Markers:
    """The tokens around the parts of a sequence."""
    return Markers(tokenizer.cls_token_id, tokenizer.sep_token_id)


def masking_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """What masking must know of a tokenizer."""
    return Vocabulary(size, tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)))


def separator(tokenizer: Any) -> int:
    """The token behind a document in a stream of them."""
    found: int | None = tokenizer.eos_token_id
    return tokenizer.sep_token_id if found is None else found


def _wordpiece(config: TextTokenizerConfig, special: Sequence[str], codes: Sequence[str]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=WORDPIECE["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[*special, *codes],
        show_progress=False,
    )
    return tokenizer, trainer


def _byte_bpe(config: TextTokenizerConfig, special: Sequence[str], codes: Sequence[str]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[*special, *codes],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer


def _template(tokenizer: Any, begin: str, end: str, both: bool) -> Any:
    """[CLS] A [SEP] B [SEP]; RoBERTa puts two marks between the parts, and knows no types."""
    from tokenizers import processors

    pair = f"{begin} $A {end} {end} $B {end}" if both else f"{begin} $A {end} $B:1 {end}:1"
    special = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    return processors.TemplateProcessing(single=f"{begin} $A {end}", pair=pair, special_tokens=special)
