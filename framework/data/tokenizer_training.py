"""Training of a byte-level BPE tokenizer by DeepSeek's rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from framework.bounds import Bound, NonNegativeInt, PositiveInt, bounded, count_of

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
FIM_HOLE, FIM_BEGIN, FIM_END = "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"
SPECIAL_TOKENS = (BOS, EOS, PAD, USER, ASSISTANT, FIM_HOLE, FIM_BEGIN, FIM_END)

# V3's pre-tokenizer: digit runs, then CJK and kana runs, then words with one leading blank or punctuation, punctuation
# runs with the newlines behind them, and blanks.
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
@bounded
class TokenizerConfig:
    """Vocabulary with special tokens included; digits per token 3 (V3) or 1 (V1, V2: numbers digit by digit)."""

    vocab_size: Annotated[int, count_of(256 + len(SPECIAL_TOKENS), "256 bytes and special tokens")] = 128_815
    digits_per_token: Annotated[int, Bound(least=1, most=3)] = 3
    min_frequency: NonNegativeInt = 2
    train_documents: PositiveInt = 1_000_000  # drawn from all of them; enough for a vocabulary of 100,000 and more


def train_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, directory: Path, model_max_length: int, chat_template: str
) -> int:
    """Train on `texts`, write a fast tokenizer that transformers loads, return the number of tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(config.digits_per_token)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    fast.save_pretrained(directory)
    return len(fast)


def least_tokens(text: str, digits_per_token: int) -> int:
    """Fewest tokens that any tokenizer trained here can make of `text`: merges never cross the pre-tokenizer's cuts."""
    return len(pre_tokens(text, digits_per_token))


def pre_tokens(text: str, digits_per_token: int) -> list[str]:
    """Cut `text` where no token reaches across."""
    return [text[slice(*place)] for _, place in _pre_tokenizer(digits_per_token).pre_tokenize_str(text)]


def _pre_tokenizer(digits_per_token: int) -> Any:
    from tokenizers import Regex, pre_tokenizers

    splits = [Regex(rf"\p{{N}}{{1,{digits_per_token}}}"), Regex(_CJK), Regex(_WORDS)]
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*(pre_tokenizers.Split(pattern, "isolated") for pattern in splits), bytes_of])
