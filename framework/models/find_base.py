"""The model that a run starts from: a checkpoint directory, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from framework.artifacts import check_json_files
from framework.data.hub import hub_id, reachable
from framework.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WITHOUT_WEIGHTS = ("*.json", "tokenizer*", "*.jinja", "merges.txt", "*.model", "LICENSE*", "README*")
WEIGHTS = ("*.safetensors",)
OTHER_WEIGHTS = ("*.bin", "*.gguf", "*.pt", "*.pth", "adapter_*")


def find_base(name: str, weights: bool = True) -> Path:
    """Return the directory of a base model; a hub id is fetched into Hugging Face's cache, with its token.

    Without `weights` only what `plan` reads is fetched. Raises UserError for what is neither, or cannot be fetched.
    """
    name = hub_id(name) if "://" in name else name
    path = Path(name).expanduser()
    if path.is_dir():
        _check_kind(path, name)
        check_json_files(path)
        return path.absolute()
    if not HUB_ID.fullmatch(name) or path.parent.is_dir():
        found = "is a file" if path.is_file() else "no such directory"
        raise UserError("base", name, f"{found}: must be a checkpoint directory or a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    patterns = [*WITHOUT_WEIGHTS, *(WEIGHTS if weights else ())]
    ignored = [] if weights else ["*.index.json"]  # which would name weights that are not there
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignored))
    except Exception as error:  # its own, requests' and the file system's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not reachable():
            reason = "it cannot be reached, and the model is not in its cache"
        raise UserError("base", name, f"no such directory, and the hub could not give it ({reason})") from error


def _check_kind(directory: Path, name: str) -> None:
    """Raise UserError for what is no whole model in Hugging Face's layout, but can be made one."""
    if (directory / "config.json").is_file():
        return
    if (directory / "adapter_config.json").is_file():
        allowed = "holds an adapter alone: merge it into its model first (peft: merge_and_unload, then save_pretrained)"
        raise UserError("base", name, allowed)
    for file in directory.glob("*.gguf"):
        allowed = f"holds {file.name}: load it with transformers (gguf_file=) and save_pretrained model and tokenizer"
        raise UserError("base", name, allowed)


def check_weights(directory: Path) -> None:
    """Raise UserError for weights that are not there, cut off, or not those of the model in config.json.

    Only headers are read. Of a hub's model that was fetched without weights nothing is asked.
    """
    from framework.models import public_layout

    if not any(directory.glob("*.safetensors")):
        if "snapshots" in directory.parts:
            return
        others = sorted(file.name for kind in OTHER_WEIGHTS for file in directory.glob(kind))
        found = f"no *.safetensors file, but {others[0]}" if others else "no *.safetensors file"
        allowed = "must hold its weights as safetensors: load the model with transformers and save_pretrained it"
        raise UserError(f"base: {directory}", found, allowed)
    public_layout.model_tensors(directory, public_layout.read_config(directory))
