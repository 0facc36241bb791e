"""Checkpoint directories in the public layout, read a tensor at a time: shards, one tensor an expert, FP8 block scales.

Everything that headers can tell is checked before the first weight is read: each tensor that the model has is there in
its shape, and nothing else. FP8 weights are multiplied by their scales as they are read (V3's report, section 3.3.2,
and its published `weight_scale_inv`: one float32 for each 128 x 128 block, cut off at the edges). transformers'
own dequantisation wants blocks that divide the weight, which V3's latent projection of 576 rows does not.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from framework.artifacts import MANIFEST, check_safetensors_file, read_json
from framework.errors import UserError, did_you_mean
from framework.models.masked_heads import HEADS
from framework.models.scalar_head import HEAD
from framework.models.sizes import check_sizes
from framework.models.spec import model_class

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SCALE = "_scale_inv"  # after the name of an FP8 weight
FP8 = "F8_E4M3"
MTP_COPIES = ("embed_tokens.weight", "shared_head.head.weight")  # of the model's own, in every MTP module's layer
PLAIN = ("F32", "BF16", "F16")
EXPERT = re.compile(r"(.*\.mlp\.experts)\.\d+\.(?:gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
MIXTRAL_BLOCK = ".block_sparse_moe."  # what transformers calls .mlp., its w1, w3 and w2 gate, up and down
# What old checkpoints hold besides weights: Llama's frequencies, the causal masks of GPT-2 and GPT-NeoX.
OLD_BUFFER = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)$")
Block = tuple[int, int]
log = logging.getLogger("framework")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a shard; `[...]` reads it, as transformers does with what a state dict holds."""

    shard: str  # file name
    stored: Any  # safetensors' slice
    scale: Any | None
    block: Block

    @property
    def shape(self) -> tuple[int, ...]:
        """From the shard's header."""
        return tuple(self.stored.get_shape())

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read, dequantise to float32 if it is FP8, and index."""
        if self.scale is None:
            found: torch.Tensor = self.stored[index]
            return found
        return dequantise(self.stored[...], self.scale[...], self.block)[index]


@dataclass(frozen=True)
class LocalExperts:
    """A layer's experts fused as transformers holds them, [E, ...], of which only `local` are read and have values.

    The memory of the others is never touched, so the machine never provides it.
    """

    parts: tuple[tuple[StoredTensor | torch.Tensor, ...], ...]  # of each expert: gate and up, or down
    local: range
    dtype: torch.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read the local experts, one tensor at a time."""
        rows = [part.shape[0] for part in self.parts[0]]
        fused = torch.empty(len(self.parts), sum(rows), self.parts[0][0].shape[1], dtype=self.dtype)
        for expert in self.local:
            for part, place in zip(self.parts[expert], torch.split(fused[expert], rows), strict=True):
                place.copy_(part[...])
        return fused[index]


def dequantise(weight_MN: torch.Tensor, scale_mn: torch.Tensor, block: Block) -> torch.Tensor:
    """Return float32 [M, N]: each block of FP8 weights times its scale; m = ceil(M / rows), n = ceil(N / columns)."""
    out_MN, (rows, columns) = weight_MN.float(), block
    for index, scale_n in enumerate(scale_mn.float()):
        scale_N = scale_n.repeat_interleave(columns)[: out_MN.shape[1]]
        out_MN[index * rows : (index + 1) * rows] *= scale_N
    return out_MN


def read_config(directory: Path) -> Any:
    """Return the Hugging Face config of the dequantised model.

    Raises UserError if it is missing, damaged or of an unknown model_type.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    import framework.models.deepseek_moe  # noqa: F401  registers a family that transformers lacks

    file = directory / "config.json"
    written = read_json(file)
    kind = written.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = did_you_mean(str(kind), CONFIG_MAPPING) if kind else ""
        raise UserError(str(file), f"model_type={kind}", f"{near}model_type must be a family that transformers knows")
    check_sizes(file, written)
    named = next(iter(written["architectures"] if isinstance(written.get("architectures"), list) else ()), "")
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING and named not in HEADS:
        raise UserError(str(file), f"model_type={kind}", "must be a causal language model's")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # each config class raises its own
        raise UserError(str(file), str(error), f"must be a config of {kind}") from error
    for key in ("quantization_config", "auto_map"):  # not true of what is exported later: no FP8, no code beside it
        if hasattr(config, key):
            delattr(config, key)
    config._attn_implementation = None  # its writer's kernels: ours are chosen by the engine
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value < 0:  # how early Llamas say that there is none
            setattr(config, key, None)
    _check_rope(config, str(file))
    return config


def _check_rope(config: Any, where: str) -> None:
    """Raise UserError for a rotary embedding of a kind that transformers does not build."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found = getattr(config, "rope_parameters", None) or {}
    known = ("default", *ROPE_INIT_FUNCTIONS)
    for part in (found, *(value for value in found.values() if isinstance(value, Mapping))):
        if part.get("rope_type", "default") not in known:
            raise UserError(where, f"rope_type={part['rope_type']}", f"must be one of {', '.join(known)}")


def savable_generation_config(directory: Path) -> Any:
    """Return the directory's GenerationConfig, mended so that transformers saves it again with the trained weights.

    Published ones set a temperature without `do_sample` (Llama 2's first), which loads with a warning and is refused
    when it is saved: after the training. Sampling is switched on for these; from any other only token ids are kept.
    """
    from transformers import GenerationConfig

    file, reason = directory / "generation_config.json", ""
    settings = read_json(file)
    for change in ({}, {"do_sample": True}):
        try:
            found = GenerationConfig(**settings | change)
            found.validate(strict=True)
        except (ValueError, TypeError, AttributeError) as error:
            reason = reason or " ".join(str(error).split())[:300]
        else:
            return found
    log.warning("%s: only its token ids are kept: %s", file, reason)
    return GenerationConfig(**{key: settings.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")})


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every tensor by its name, none of them read yet; scales are folded into the weights that they belong to.

    Raises UserError that names the file or tensor: a shard that is missing, cut off or unreadable, a tensor that is
    not where the index says, a weight without its scale or with one of another block size, an unknown format.
    """
    slices = _slices(directory)
    config = directory / "config.json"
    block = _block(config)
    tensors = {}
    for name, (file, stored) in slices.items():
        kind, where = stored.get_dtype(), f"{file}: {name}"
        if name.endswith(SCALE) and name.removesuffix(SCALE) in slices:
            name = name.removesuffix(SCALE)
            if (of := slices[name][1].get_dtype()) != FP8:
                raise UserError(where, f"a scale of a {of} weight", f"only {FP8} weights have scales")
        elif kind == FP8:
            if block is None:
                raise UserError(str(config), "no quantization_config", f"{name} is FP8, so its block size must be told")
            _, scale = slices.get(name + SCALE, (None, None))
            if scale is None:
                raise UserError(f"{where}{SCALE}", "no such tensor", f"the FP8 weight {name} needs its scales")
            grid = [-(-size // b) for size, b in zip(stored.get_shape(), block, strict=False)]
            if scale.get_shape() != grid:
                allowed = f"must be {grid}: blocks of {block} over {stored.get_shape()}"
                raise UserError(f"{where}{SCALE}", scale.get_shape(), allowed)
            tensors[name] = StoredTensor(file.name, stored, scale, block)
        elif kind in PLAIN:
            tensors[name] = StoredTensor(file.name, stored, None, (1, 1))
        else:
            raise UserError(where, kind, f"must be one of {', '.join((*PLAIN, FP8))}")
    return tensors


def model_tensors(directory: Path, config: Any) -> dict[str, StoredTensor]:
    """Return the tensors of the model, checked against it; copies in MTP modules (V3 section 2.2) are left out.

    `config.num_nextn_predict_layers` becomes 0 if the modules are not there: fresh V3 configs of transformers say 1.
    Raises UserError as `stored_tensors`, and for the first tensor that is missing, of another shape, or unknown.
    """
    found, modules = stored_tensors(directory), getattr(config, "num_nextn_predict_layers", None) or 0
    first = getattr(config, "num_hidden_layers", 0)
    if modules and not any(name.startswith(f"model.layers.{first}.") for name in found):
        config.num_nextn_predict_layers = modules = 0
    copies = {f"model.layers.{first + k}.{name}" for k in range(modules) for name in MTP_COPIES}
    found = {name: tensor for name, tensor in found.items() if name not in copies and not OLD_BUFFER.search(name)}
    expected, optional = _expected_shapes(config)
    found = _with_prefix(found, expected)
    where = f"{directory}: "
    for name, shape in expected.items():
        if name not in found:
            if name not in optional:
                raise UserError(where + name, "no such tensor", f"config.json's {config.model_type} model has it")
        elif found[name].shape != shape:
            raise UserError(where + name, found[name].shape, f"must be {shape} by config.json")
    for name in found:
        if name not in expected:
            raise UserError(where + name, "an unknown tensor", f"config.json's {config.model_type} model has none such")
    return found


def with_new_head(
    tensors: Mapping[str, StoredTensor], config: Any, seed: int
) -> dict[str, StoredTensor | torch.Tensor]:
    """Return a causal model's tensors as those of the same model with a fresh scalar head, which `config` is of.

    The head is N(0, 1 / (H + 1)) (Stiennon et al., 2009.01325, appendix B.1), by the seed alone.
    """
    expected, _ = _expected_shapes(config)
    width = expected[HEAD][1]
    head = torch.randn(expected[HEAD], generator=torch.Generator().manual_seed(seed)) / (width + 1) ** 0.5
    return {**{name: tensors[name] for name in expected if name != HEAD}, HEAD: head}


def _with_prefix(found: dict[str, StoredTensor], expected: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Add the name of the decoder ("transformer.") where a checkpoint is of the decoder alone, as GPT-2's are."""
    prefix = next(iter(expected)).partition(".")[0] + "."
    if not found or any(name in expected for name in found):
        return found
    return {prefix + name: tensor for name, tensor in found.items()}


def public_name(model: Any, name: str) -> str:
    """Return what a checkpoint calls a parameter that is not fused: GPT-NeoX's `lm_head` is `embed_out` there."""
    known: dict[str, str] = model.__dict__.setdefault("_public_names", {})
    if name not in known:
        from transformers.core_model_loading import revert_weight_conversion

        (known[name],) = revert_weight_conversion(model, {name: torch.empty(0, device="meta")})
    return known[name]


def local_experts(
    tensors: Mapping[str, StoredTensor | torch.Tensor], ep_rank: int, ep_size: int, dtype: torch.dtype
) -> dict[str, StoredTensor | torch.Tensor | LocalExperts]:
    """Replace each layer's experts by fused ones, of which expert-parallel rank `ep_rank` reads its share alone."""
    tensors = {name.replace(MIXTRAL_BLOCK, ".mlp."): tensor for name, tensor in tensors.items()}
    found: dict[str, StoredTensor | torch.Tensor | LocalExperts] = {}
    found |= {name: tensor for name, tensor in tensors.items() if not EXPERT.fullmatch(name)}
    for layer in dict.fromkeys(match[1] for name in tensors if (match := EXPERT.fullmatch(name))):
        gate, up, down = (
            ("w1", "w3", "w2") if f"{layer}.0.w1.weight" in tensors else ("gate_proj", "up_proj", "down_proj")
        )
        n_experts = sum(name.startswith(f"{layer}.") and name.endswith(f".{down}.weight") for name in tensors)
        local = range(n_experts * ep_rank // ep_size, n_experts * (ep_rank + 1) // ep_size)
        for fused, names in (("gate_up_proj", (gate, up)), ("down_proj", (down,))):
            parts = [tuple(tensors[f"{layer}.{e}.{name}.weight"] for name in names) for e in range(n_experts)]
            found[f"{layer}.{fused}"] = LocalExperts(tuple(parts), local, dtype)
    return found


def dequantised(directory: Path, copy: Path) -> Path:
    """Return `directory`, or if its weights are FP8 `copy`: the same checkpoint in bfloat16, MTP modules included.

    For engines that receive new weights, which FP8 ones do not take. Written once, a shard at a time, the index last.
    Raises UserError as `stored_tensors`.
    """
    if _block(directory / "config.json") is None:
        return without_stale_copies(directory, copy)
    if not (copy / INDEX).is_file():
        _write_dequantised(directory, copy)
    return copy


def without_stale_copies(directory: Path, copy: Path) -> Path:
    """Return `directory`, or `copy` without them if its shards hold tensors that the index places elsewhere.

    vLLM, unlike transformers and ourselves, would load whichever copy it reads last.
    """
    if not _has_stale_copies(directory):
        return directory
    if not (copy / INDEX).is_file():
        _write_dequantised(directory, copy)
    return copy


def save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file, readable as the umask says: safetensors itself makes it its owner's alone."""
    from safetensors.torch import save_file

    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    save_file(tensors, str(file), metadata={"format": "pt"})
    file.chmod(mode)


def _has_stale_copies(directory: Path) -> bool:
    """Whether a shard holds a tensor that the index places in another one."""
    from safetensors import safe_open

    if not (directory / INDEX).is_file():
        return False
    weight_map = read_json(directory / INDEX).get("weight_map", {})
    for shard in sorted(set(weight_map.values())):
        if not (directory / shard).is_file():
            continue  # which whoever reads it says
        with safe_open(directory / shard, framework="pt") as opened:
            if any(weight_map.get(name, shard) != shard for name in opened.keys()):  # noqa: SIM118  not a dict
                return True
    return False


def _write_dequantised(directory: Path, copy: Path) -> None:
    copy.mkdir(parents=True, exist_ok=True)
    tensors = stored_tensors(directory)
    for shard in sorted({tensor.shard for tensor in tensors.values()}):
        of_shard = {name: tensor for name, tensor in tensors.items() if tensor.shard == shard}
        plain = {name: t[...] if t.scale is None else t[...].bfloat16() for name, t in of_shard.items()}
        save_tensors(plain, copy / shard)
    config = read_json(directory / "config.json")
    config.pop("quantization_config", None)
    (copy / "config.json").write_text(json.dumps(config, indent=1))
    ours = {"config.json", INDEX, MANIFEST}
    for file in directory.iterdir():
        if file.is_file() and file.name not in ours and file.suffix != ".safetensors":
            shutil.copy(file, copy)
    index = {"metadata": {}, "weight_map": {name: tensor.shard for name, tensor in tensors.items()}}
    temporary = copy / (INDEX + ".tmp")
    temporary.write_text(json.dumps(index, indent=1))
    temporary.replace(copy / INDEX)


def _slices(directory: Path) -> dict[str, tuple[Path, Any]]:
    """Name -> (shard, safetensors' slice) of every tensor of the checkpoint, scales too."""
    from safetensors import SafetensorError, safe_open

    index, slices = directory / INDEX, dict[str, tuple[Path, Any]]()
    weight_map: Mapping[str, str] | None = read_json(index).get("weight_map", {}) if index.is_file() else None
    for shard in [SINGLE] if weight_map is None else sorted(set(weight_map.values())):
        file = directory / shard
        if not file.is_file():
            allowed = f"{INDEX} names it" if weight_map is not None else f"a checkpoint has this or {INDEX}"
            raise UserError(str(file), "no such file", allowed)
        check_safetensors_file(file)
        try:
            opened: Any = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise UserError(str(file), str(error), "must be a whole safetensors file") from None
        # Where a shard holds an old copy of a tensor, the index says which shard has the one that counts.
        held = list(opened.keys())
        names = [name for name in held if weight_map is None or weight_map.get(name, shard) == shard]
        slices |= {name: (file, opened.get_slice(name)) for name in names}
    for name, shard in (weight_map or {}).items():
        if name not in slices:
            raise UserError(f"{directory / shard}: {name}", "no such tensor", f"{INDEX} says that it is there")
    return slices


def _block(config: Path) -> Block | None:
    """Rows and columns that share a scale, by config.json; None if it is not quantised."""
    quantization = read_json(config).get("quantization_config")
    if quantization is None:
        return None
    method, size = quantization.get("quant_method"), quantization.get("weight_block_size")
    if method != "fp8" or quantization.get("fmt", "e4m3") != "e4m3":
        allowed = "only block-scaled fp8 in e4m3 is read; convert other formats first"
        raise UserError(str(config), f"quantization_config={quantization}", allowed)
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)):
        raise UserError(str(config), f"weight_block_size={size}", "must be rows and columns, such as [128, 128]")
    return size[0], size[1]


def _expected_shapes(config: Any) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes by the names of a checkpoint, and the names that may be absent because they are tied to others."""
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = model_class(config)(config)
    shapes = {n: tuple(t.shape) for n, t in revert_weight_conversion(model, model.state_dict()).items()}
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    return shapes, tied
