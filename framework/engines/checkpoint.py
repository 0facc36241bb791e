"""What a learner writes to disk: its own state for an exact resume, and Hugging Face checkpoints for everyone else.

Engine state is DeepSpeed's native checkpoint plus random states and older weights. It resumes exactly on the same
topology, and through a conversion (`universal`) on other ranks and expert-parallel sizes: given native state of another
size, DeepSpeed would load it without complaint and corrupt the optimizer.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from framework.artifacts import Checkpoint
from framework.engines import expert_parallel
from framework.engines.deepspeed_engine import Snapshot, TrainingEngine
from framework.engines.device import on_gpu
from framework.engines.tensor_parallel import whole_tensors
from framework.engines.universal import Topology, load_universal, reshard, topology
from framework.errors import DamagedState, UserError
from framework.files import clear_way, quick_digests, shares, text_digest, write_atomically
from framework.models import public_layout
from framework.models.scalar_head import has_scalar_head, with_scalar_head
from framework.models.spec import decoder_layers, model_class

TAG = "native"
STATE = "learner"  # the folder of engine state inside a checkpoint that others write to as well
BIASES = "biases.pt"
CONTENTS = "engine.json"  # written last, by rank 0


def save_state(
    engine: TrainingEngine, directory: Path, counters: Mapping[str, int], snapshots: Mapping[str, Snapshot]
) -> None:
    """Write engine state, `counters` and `snapshots` to `directory`/learner (all ranks).

    The directory is one that all ranks share, or each rank's own if they are merged afterwards. `engine.json` goes last
    and lists every file of every rank with its size, so a torn checkpoint is seen on load.
    """
    directory = directory / STATE
    if engine.rank == 0:
        clear_way(directory)
        directory.mkdir(parents=True)
    dist.barrier()
    engine.native.save_checkpoint(str(directory), tag=TAG, client_state={"steps": engine.steps})
    torch.save(_random_states(), directory / f"random_rank{engine.rank}.pt")
    if engine.rank < topology(engine).snapshot_files():
        tensors = {name: (snap.parameters, snap.biases) for name, snap in snapshots.items()}
        torch.save(tensors, directory / f"snapshots_{engine.rank}.pt")
    if engine.rank == 0:
        torch.save([bias for _, bias in engine.routing.biases()], directory / BIASES)
    dist.barrier()
    written = {
        p.relative_to(directory).as_posix(): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()
    }
    of_ranks: list[dict[str, int]] = [{}] * engine.world
    dist.all_gather_object(of_ranks, written)
    files = {name: size for found in of_ranks for name, size in found.items()}
    holders = {name: [rank for rank, found in enumerate(of_ranks) if name in found] for name in files}
    digests = _merged(quick_digests(directory, shares(files, holders).get(engine.rank, ())), engine.world)
    if engine.rank == 0:
        contents: dict[str, Any] = {"topology": asdict(topology(engine)), "counters": dict(counters)}
        contents |= {"files": files, "digests": dict(sorted(digests.items()))}
        contents["digest"] = _own_digest(contents)
        write_atomically(directory / CONTENTS, json.dumps(contents, indent=1))
    dist.barrier()


def _own_digest(contents: Mapping[str, Any]) -> str:
    """Of everything in `engine.json` but this digest itself."""
    return text_digest(json.dumps({key: contents[key] for key in sorted(contents) if key != "digest"}, sort_keys=True))


def _merged(found: dict[str, str], world: int) -> dict[str, str]:
    """Every rank's entries."""
    of_ranks: list[dict[str, str]] = [{}] * world
    dist.all_gather_object(of_ranks, found)
    return {name: value for one in of_ranks for name, value in one.items()}


def load_state(engine: TrainingEngine, directory: Path) -> tuple[dict[str, int], dict[str, Snapshot]]:
    """Restore what `save_state` wrote; return the counters and snapshots.

    State of another world or expert-parallel size is converted; ranks that it did not have take over the random states
    of those it had. Raises UserError that names the file if one is missing or damaged, or the field (ZeRO stage, dtype)
    in which the topology differs beyond conversion. Damage is seen before anything is restored: each rank reads its
    share of the files and holds it against the digests.
    """
    contents = check_state(directory)
    directory = directory / STATE
    _check_digests(engine, directory, contents)
    old, ours = Topology(**contents["topology"]), topology(engine)
    for key in ("zero_stage", "dtype"):
        if getattr(old, key) != getattr(ours, key):
            allowed = f"this run has {key}={getattr(ours, key)}; resume with the same"
            raise UserError(str(directory), f"{key}={getattr(old, key)}", allowed)
    try:
        if old == ours:
            engine.native.load_checkpoint(str(directory), tag=TAG)
            tensors = _load(directory / f"snapshots_{engine.rank % ours.snapshot_files()}.pt")
            snapshots = {name: Snapshot(*pair) for name, pair in tensors.items()}
        else:
            load_universal(engine, directory / TAG, _load(directory / BIASES))
            files = [_load(directory / f"snapshots_{index}.pt", mmap=True) for index in range(old.snapshot_files())]
            snapshots = {n: reshard(engine, [Snapshot(*file[n]) for file in files], old) for n in files[0]}
        _restore_random_states(_load(directory / f"random_rank{engine.rank % old.world}.pt"))
    except (RuntimeError, EOFError, UnpicklingError, OSError) as error:
        raise UserError(str(directory), str(error).splitlines()[0], "must be an undamaged engine state") from error
    engine.steps = int(contents["counters"]["steps"])
    engine.skipped = int(contents["counters"]["skipped"])
    return contents["counters"], snapshots


def _check_digests(engine: TrainingEngine, directory: Path, contents: Mapping[str, Any]) -> None:
    """Raise DamagedState on all ranks if a file differs from its digest."""
    expected: dict[str, str] = contents["digests"]
    sizes = {name: contents["files"][name] for name in expected}
    share = shares(sizes, dict.fromkeys(sizes, range(engine.world))).get(engine.rank, ())
    try:
        found = quick_digests(directory, share)
    except OSError as error:
        found = {str(error.filename): f"{error.strerror}"}
    wrong = {name: digest for name, digest in found.items() if digest != expected.get(name)}
    if everyones := sorted(_merged(wrong, engine.world).items()):
        name, digest = everyones[0]
        others = f" (and {len(everyones) - 1} more files)" if len(everyones) > 1 else ""
        allowed = f"was saved with digest {expected.get(name, 'of another name')[:12]}{others}: damaged since"
        raise DamagedState(str(directory / name), digest[:12] if name in expected else digest, allowed)


def check_state(directory: Path) -> dict[str, Any]:
    """Return the contents of an engine state; raises DamagedState naming a missing or truncated file."""
    directory = directory / STATE
    file = directory / CONTENTS
    try:
        contents: dict[str, Any] = json.loads(file.read_text())
        files = contents["files"].items()
        if contents["digest"] != _own_digest(contents):
            raise DamagedState(str(file), f"digest {_own_digest(contents)[:12]}", f"says {contents['digest'][:12]}")
    except FileNotFoundError:
        raise DamagedState(str(file), "no such file", "a finished engine state has one") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedState(str(file), str(error), "must be JSON as the learner writes it") from None
    for name, size in files:
        path = directory / name
        present = path.stat().st_size if path.is_file() else None
        if present != size:
            raise DamagedState(
                str(path), f"{present} bytes" if present is not None else "no such file", f"{size} bytes"
            )
    return contents


def load_hf(directory: Path, dtype: str, ep_size: int = 1, head_seed: int | None = None) -> Any:
    """Build the model of a Hugging Face checkpoint, FP8 weights dequantised, with its MTP modules if it has any.

    With `head_seed` it ends in a scalar head: a new one by that seed, unless the checkpoint has one. Raises UserError
    that names the file or tensor of a damaged, incomplete or mismatched checkpoint. Where there is a manifest, contents
    are held against its digests. Weights are read one at a time, so no second copy is made; with `ep_size` above 1 only
    the experts of this rank (RANK) have values, which are all that AutoEP takes.
    """
    from transformers.utils import logging

    config, stored = checked_tensors(directory, head_seed)
    tensors: dict[str, Any] = dict(stored)
    if ep_size > 1:
        rank = int(os.environ.get("RANK", "0"))
        tensors = dict(public_layout.local_experts(stored, rank % ep_size, ep_size, getattr(torch, dtype)))
    logging.disable_progress_bar()
    try:
        model = model_class(config).from_pretrained(
            None, config=config, state_dict=tensors, dtype=getattr(torch, dtype)
        )
        if (directory / "generation_config.json").is_file() and not has_scalar_head(config):
            model.generation_config = public_layout.savable_generation_config(directory)
    except Exception as error:  # safetensors, transformers and json each raise their own
        raise UserError(str(directory), str(error).splitlines()[0], "must be a whole checkpoint") from error
    return model


def checked_tensors(
    directory: Path, head_seed: int | None = None
) -> tuple[Any, dict[str, public_layout.StoredTensor | torch.Tensor]]:
    """Return the config and the tensors of a checkpoint, not read yet; arguments and errors as `load_hf`'s."""
    # Each rank its share: one alone would read for longer than the others wait in their first collective.
    Checkpoint(directory).verify(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    config = public_layout.read_config(directory)
    tensors = public_layout.model_tensors(directory, config)
    if head_seed is None or has_scalar_head(config):
        return config, dict(tensors)
    return with_scalar_head(config), public_layout.with_new_head(tensors, config, head_seed)


def export_hf(engine: TrainingEngine, directory: Path) -> None:
    """Write a Hugging Face checkpoint: one safetensors file a layer, per-expert names, biases in float32.

    All ranks take part (one layer's experts are gathered at a time), rank 0 writes.
    """
    model: Any = engine.model
    writes = engine.rank == 0
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob("model*.safetensors*"):
            stale.unlink()
    weight_map, total = dict[str, str](), 0
    sections = _sections(model)
    for index, section in enumerate(sections):
        file = f"model-{index + 1:05d}-of-{len(sections):05d}.safetensors"
        tensors = {}
        found = (
            (pair for pair in whole_tensors(model) if pair[0].startswith(section))
            if engine.config.tensor_parallel
            else expert_parallel.all_tensors(model, section)
        )
        for name, tensor in chain(found, _mtp_copies(model, index)):
            if writes:
                tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if writes:
            public_layout.save_tensors(tensors, directory / file)
            weight_map |= dict.fromkeys(tensors, file)
            total += sum(t.numel() * t.element_size() for t in tensors.values())
    if writes:
        index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=1))
        config = model.config
        config.architectures, config.dtype = [type(model).__name__], getattr(torch, engine.config.dtype)
        config.save_pretrained(directory)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(directory)
    dist.barrier()


def _sections(model: Any) -> list[str | tuple[str, ...]]:
    """What the names in each file begin with: one decoder layer, then everything outside the layers."""
    path, layers = decoder_layers(model)
    rest = tuple(name for name, _ in model.named_parameters() if not name.startswith(f"{path}."))
    return [*(f"{path}.{index}." for index in range(len(layers))), rest]


def _mtp_copies(model: Any, index: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The shared embedding and output head under the names that a layer has for them if it is an MTP module."""
    if model.config.num_hidden_layers <= index < len(decoder_layers(model)[1]):
        shared = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        for name, weight in zip(public_layout.MTP_COPIES, shared, strict=True):
            with expert_parallel.gathered([weight]):
                yield f"model.layers.{index}.{name}", weight


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if on_gpu():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and on_gpu():
        torch.cuda.set_rng_state(states["cuda"])


def _load(file: Path, mmap: bool = False) -> Any:
    return torch.load(file, map_location="cpu", mmap=mmap, weights_only=False)  # our own file: more than tensors
