"""The one way to load a tokenizer: as its tokenizer.json says, whatever class its configuration or neighbours name.

`transformers.AutoTokenizer` chooses a class by `tokenizer_class` and by the `model_type` of a config.json beside it;
several of those classes keep the vocabulary but put a pre-tokenizer of their own in place of the file's: blanks and
Chinese vanish (LlamaTokenizerFast over a byte-level file), numbers are cut otherwise (every qwen2). So nothing here
asks it, and copies are written so that it, and vLLM which uses it, load the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from framework.artifacts import read_json
from framework.errors import UserError

# What tokenizers differ on: cases, runs of blanks, line ends, digits, CJK, accents, code, emoji, apostrophes.
PROBE = (
    "Hello  world, don't panic!\n\n  x = 1234567 + 89.5; f(x)[0] != 'y_z'\t# naïve café\r\n"
    "中文 汉字、日本語とカタカナ 한국어 Ünïcödé e\u0301 🙂👩‍👩‍👧 ٣٤٥ <b>bold</b> \\frac{1}{2} http://a.b/c?d=e   \n"
)
_COPIED = ("tokenizer", "special_tokens", "chat_template", "added_tokens", "vocab.", "merges.txt")
_GENERIC = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is


def load_tokenizer(directory: Path) -> Any:
    """Return the Hugging Face tokenizer (`PreTrainedTokenizerFast`) of a directory's tokenizer.json.

    Raises UserError if the file is missing or damaged, or what is loaded encodes the probe otherwise than the file.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = directory / "tokenizer.json"
    if not file.is_file():
        allowed = "a tokenizer needs it: save it with transformers' save_pretrained, which converts other kinds"
        raise UserError(str(file), "no such file", allowed)
    try:
        reference = Tokenizer.from_file(str(file))
        loaded = PreTrainedTokenizerFast.from_pretrained(directory)
        found = _encode(loaded, PROBE)
    except Exception as error:  # the library's own: a plain Exception for a damaged file
        raise UserError(str(file), " ".join(str(error).split())[:200], "must be a tokenizer of `tokenizers`") from None
    known = reference.get_vocab_size()
    for name in ("bos_token", "eos_token"):
        if (token := getattr(loaded, f"{name}_id", None)) is not None and reference.id_to_token(token) is None:
            allowed = f"must be one of the {known} tokens of {file}: a new one was never trained"
            raise UserError(f"{directory / 'tokenizer_config.json'}: {name}", getattr(loaded, name), allowed)
    reference.no_truncation()
    expected = reference.encode(PROBE, add_special_tokens=False).ids
    if found != expected:
        place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0)
        allowed = f"must encode as {file} says, but differs at token {place} of {PROBE[:24]!r}…"
        raise UserError(str(directory / "tokenizer_config.json"), found[place : place + 4], allowed)
    return loaded


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id: ids may have gaps, so that there are fewer tokens than that."""
    return 1 + max(int(token) for token in tokenizer.get_vocab().values())


def copy_tokenizer(source: Path, checkpoint: Path) -> None:
    """Copy a tokenizer's files beside a checkpoint's config.json, so that plain transformers and vLLM load it alike.

    Raises UserError if no spelling of its configuration makes them do so.
    """
    copy_files(source, checkpoint)
    file = checkpoint / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    plain = {key: value for key, value in config.items() if key != "auto_map"}
    # Every qwen2 gets Qwen's own class, whatever is written, but where `auto_map` says that there is code of its own;
    # without trust_remote_code that is then not used.
    for changed in (
        config,
        {**plain, "tokenizer_class": _GENERIC},
        {**plain, "tokenizer_class": _GENERIC, "auto_map": {"AutoTokenizer": [None, None]}},
    ):
        if changed != config:
            file.write_text(json.dumps(changed, indent=2, ensure_ascii=False))
        if loads_alike(checkpoint):
            return
    found = "a tokenizer that transformers loads otherwise"
    raise UserError(str(checkpoint), found, "must load as tokenizer.json says")


def copy_files(source: Path, directory: Path) -> None:
    """Copy a tokenizer's files as they are."""
    for file in source.iterdir():
        if file.is_file() and file.name.startswith(_COPIED):
            shutil.copyfile(file, directory / file.name)


def write_template(directory: Path, source: str) -> None:
    """Give a tokenizer's files this chat template in place of the one that they have."""
    file = directory / "tokenizer_config.json"
    if file.is_file():
        config = {key: value for key, value in read_json(file).items() if key != "chat_template"}
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False))
    (directory / "chat_template.jinja").write_text(source)


def loads_alike(checkpoint: Path) -> bool:
    """Whether plain `AutoTokenizer` encodes as `load_tokenizer` does, special tokens included."""
    from transformers import AutoTokenizer

    ours = load_tokenizer(checkpoint)
    text = PROBE + "".join(token.content for token in ours.added_tokens_decoder.values())
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    try:
        theirs = AutoTokenizer.from_pretrained(checkpoint)
        found = _encode(theirs, text), theirs(PROBE)["input_ids"], [getattr(theirs, name) for name in names]
    except Exception:  # whatever its classes raise over a vocabulary that is not theirs
        return False
    return found == (_encode(ours, text), ours(PROBE)["input_ids"], [getattr(ours, name) for name in names])


def servable_tokenizer(checkpoint: Path) -> Path:
    """Return a directory from which vLLM loads the tokenizer right: the checkpoint, or else a mended copy."""
    if loads_alike(checkpoint):
        return checkpoint
    files = [file for file in sorted(checkpoint.iterdir()) if file.name.startswith((*_COPIED, "config.json"))]
    digest = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()[:16]
    copy = Path(tempfile.gettempdir()) / f"framework-tokenizer-{digest}"
    if not copy.is_dir():
        building = Path(tempfile.mkdtemp(prefix="framework-tokenizer-"))
        shutil.copyfile(checkpoint / "config.json", building / "config.json")
        copy_tokenizer(checkpoint, building)
        try:
            building.rename(copy)
        except OSError:  # another worker was faster
            shutil.rmtree(building)
    return copy


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
