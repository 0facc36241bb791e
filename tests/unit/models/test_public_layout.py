"""Checkpoints in DeepSeek-V3's public layout: dequantised exactly; damage is one line that names the place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from framework.artifacts import Checkpoint, write_manifest
from framework.config import CONF, build_component
from framework.engines.checkpoint import load_hf
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.errors import UserError
from framework.models.public_layout import (
    StoredTensor,
    dequantise,
    dequantised,
    local_experts,
    model_tensors,
    read_config,
)
from framework.models.spec import build_model
from tests.unit.models.test_spec import TINY

Tensors = dict[str, torch.Tensor]
LAYERS = 2
# Neither 192, 320 nor the 150 of the latents' projection are multiples of 128, and 192 is one of 2 blocks of 96.
SPEC = replace(
    TINY, hidden_size=192, intermediate_size=320, moe_intermediate_size=136, kv_lora_rank=142, q_lora_rank=130,
    qk_nope_head_dim=24, initializer_range=0.2, rope_factor=4.0, original_max_position_embeddings=16,
)  # fmt: skip
BLOCK = 128
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SCALED = ("_proj.weight", "kv_a_proj_with_mqa.weight")
# The keys of the published config.json, with these sizes.
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 192, "initializer_range": 0.02,
    "intermediate_size": 320, "kv_lora_rank": 142, "max_position_embeddings": 64, "model_type": "deepseek_v3",
    "moe_intermediate_size": 136, "moe_layer_freq": 1, "n_group": 2, "n_routed_experts": 4, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 2, "num_experts_per_tok": 2, "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2, "num_nextn_predict_layers": 1, "q_lora_rank": 130, "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8, "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK],
    }, "rms_norm_eps": 1e-06, "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16, "type": "yarn",
    }, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 16,
    "vocab_size": 64,
}  # fmt: skip


def quantise(weight_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 weights and the scale of each block, amax / 448."""
    rows, columns = ([*range(0, size, BLOCK)] for size in weight_MN.shape)
    out, scale = torch.empty_like(weight_MN, dtype=torch.float8_e4m3fn), torch.empty(len(rows), len(columns))
    for m, row in enumerate(rows):
        for n, column in enumerate(columns):
            block = weight_MN[row : row + BLOCK, column : column + BLOCK]
            scale[m, n] = block.abs().max() / 448
            out[row : row + BLOCK, column : column + BLOCK] = (block / scale[m, n]).to(torch.float8_e4m3fn)
    return out, scale


def restore(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The scale of every single weight looked up by its position."""
    rows, columns = (torch.arange(size) // BLOCK for size in weight.shape)
    return weight.float() * scale[rows[:, None], columns[None, :]]


def published() -> Tensors:
    """A whole model with an MTP layer under the published names, weights in bfloat16, correction biases in float32."""
    from transformers.core_model_loading import revert_weight_conversion

    model = build_model(replace(SPEC, num_hidden_layers=LAYERS + 1, dtype="bfloat16"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    tensors = dict(revert_weight_conversion(model, model.state_dict()))
    shapes = {"enorm": 192, "hnorm": 192, "eh_proj": (192, 384), "shared_head.norm": 192}
    for name, shape in shapes.items():
        tensors[f"model.layers.{LAYERS}.{name}.weight"] = torch.randn(shape, generator=generator).bfloat16()
    for name, shared in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
        tensors[f"model.layers.{LAYERS}.{name}.weight"] = tensors[f"{shared}.weight"].clone()
    return tensors


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    """A directory in the public layout, and what its tensors are once dequantised."""
    directory, shards = tmp_path_factory.mktemp("published"), (Tensors(), Tensors())
    values, weight_map = Tensors(), dict[str, str]()
    for index, (name, tensor) in enumerate(sorted(published().items())):
        shard = index % 2
        if name.endswith(SCALED) and "eh_proj" not in name:
            shards[shard][name], scale = quantise(tensor.float())
            shards[index // 2 % 2][name + "_scale_inv"] = scale  # not always beside its weight
            values[name] = restore(shards[shard][name], scale)
        else:
            shards[shard][name] = values[name] = tensor.contiguous()
    for file, shard_tensors in zip((FIRST, SECOND), shards, strict=True):
        save_file(shard_tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard_tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6}))
    return directory, values


def of_the_model(values: Tensors) -> Tensors:
    return {name: tensor for name, tensor in values.items() if not name.startswith(f"model.layers.{LAYERS}.")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_weights_are_dequantised_exactly(dtype: str, stored: tuple[Path, Tensors], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory, values = stored
    save_file(of_the_model(values), tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in CONFIG.items() if key != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, plain = load_hf(directory, dtype), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    ours, theirs = model.state_dict(), plain.state_dict()
    module = f"model.layers.{LAYERS}."
    assert {name for name in ours if not name.startswith(module)} == theirs.keys()
    for name in (
        "eh_proj.weight",
        "self_attn.o_proj.weight",
        "shared_head.norm.weight",
        "mlp.shared_experts.up_proj.weight",
    ):
        assert torch.equal(ours[module + name], values[module + name].to(getattr(torch, dtype))), name
    experts = [values[f"{module}mlp.experts.{e}.down_proj.weight"] for e in range(4)]
    assert torch.equal(ours[f"{module}mlp.experts.down_proj"], torch.stack(experts).to(getattr(torch, dtype)))
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)
    bias = f"model.layers.{LAYERS - 1}.mlp.gate.e_score_correction_bias"
    assert torch.equal(ours[bias], values[bias])
    assert ours[bias].dtype == torch.float32
    weight = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    assert torch.equal(ours[weight], values[weight].to(getattr(torch, dtype)))
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)
    assert model.generation_config.temperature == 0.6
    for key in ("quantization_config", "auto_map"):  # or an export would claim to be FP8, or to bring code
        assert not hasattr(model.config, key)


def test_an_fp8_checkpoint_becomes_a_plain_one(stored: tuple[Path, Tensors], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory, values = stored
    copy = dequantised(directory, tmp_path / "copy")
    found = load_file(copy / FIRST) | load_file(copy / SECOND)
    assert found.keys() == values.keys()
    assert all(
        torch.equal(found[n], values[n] if values[n].dtype == found[n].dtype else values[n].bfloat16()) for n in values
    )
    model, report = AutoModelForCausalLM.from_pretrained(copy, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.dtype == torch.bfloat16
    assert (copy / "generation_config.json").is_file()
    (copy / FIRST).unlink()
    assert dequantised(directory, copy) == copy  # a second time it is only found again
    assert not (copy / FIRST).exists()
    assert dequantised(copy, tmp_path / "other") == copy  # nothing to do


@pytest.mark.parametrize("shape", [(128, 256), (192, 150), (1, 129), (576, 64)])
def test_blocks_may_be_cut_off_at_the_edges(shape: tuple[int, int]) -> None:
    weight, scale = quantise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(dequantise(weight, scale, (BLOCK, BLOCK)), restore(weight, scale))


def test_a_rank_reads_its_own_experts_alone(stored: tuple[Path, Tensors]) -> None:
    directory, values = stored
    whole = model_tensors(directory, read_config(directory))
    read: set[str] = set()

    @dataclass(frozen=True)
    class Recorded(StoredTensor):
        name: str = ""

        def __getitem__(self, index: Any) -> torch.Tensor:
            read.add(self.name)
            return super().__getitem__(index)

    recorded = {n: Recorded(t.shard, t.stored, t.scale, t.block, n) for n, t in whole.items()}
    found = local_experts(recorded, ep_rank=1, ep_size=2, dtype=torch.float32)
    gate_up, down = (found[f"model.layers.1.mlp.experts.{name}"][...] for name in ("gate_up_proj", "down_proj"))
    fused = {f"model.layers.{i}.mlp.experts.{n}" for i in (1, LAYERS) for n in ("gate_up_proj", "down_proj")}
    assert found.keys() - whole.keys() == fused
    assert read == {f"model.layers.1.mlp.experts.{e}.{n}_proj.weight" for e in (2, 3) for n in ("gate", "up", "down")}
    assert (gate_up.shape, down.shape) == ((4, 2 * 136, 192), (4, 192, 136))
    for e in (2, 3):
        gate, up, lower = (values[f"model.layers.1.mlp.experts.{e}.{n}_proj.weight"] for n in ("gate", "up", "down"))
        assert torch.equal(gate_up[e], torch.cat([gate, up]))
        assert torch.equal(down[e], lower)


Damage = Callable[[Path], None]
Q_PROJ = "model.layers.0.self_attn.q_a_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def configured(**changes: Any) -> Damage:
    return lambda at: (at / "config.json").write_text(json.dumps(CONFIG | changes)) and None


def edited(change: Callable[[Tensors], Any]) -> Damage:
    """All tensors in one file without an index, after `change`."""

    def damage(at: Path) -> None:
        tensors = load_file(at / FIRST) | load_file(at / SECOND)
        for file in (FIRST, SECOND, "model.safetensors.index.json"):
            (at / file).unlink()
        change(tensors)
        save_file(tensors, at / "model.safetensors")

    return damage


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda at: (at / file).write_bytes(change((at / file).read_bytes())) and None


def flipped(at: Path) -> None:
    """A checkpoint with a manifest, then one bit of a weight turned over: no size and no header tells."""
    write_manifest(Checkpoint(at), "stage", {}, {}, "")
    content = bytearray((at / SECOND).read_bytes())
    content[-1] ^= 1
    (at / SECOND).write_bytes(content)


def misplaced(at: Path) -> None:
    index = json.loads((at / "model.safetensors.index.json").read_text())
    index["weight_map"][EXPERT] = FIRST if index["weight_map"][EXPERT] == SECOND else SECOND
    (at / "model.safetensors.index.json").write_text(json.dumps(index))


def without_quantization(at: Path) -> None:
    (at / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "quantization_config"}))


DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no config": (lambda at: (at / "config.json").unlink(), ("config.json", "no such file")),
    "config is no JSON": (bytes_of("config.json", lambda b: b[:-9]), ("config.json", "must be JSON")),
    "config is a list": (bytes_of("config.json", lambda b: b"[]"), ("config.json", "must be a JSON object")),
    "unknown model_type": (configured(model_type="deepseek_v33"), ("model_type=deepseek_v33", "did you mean")),
    "no language model": (configured(model_type="clip"), ("model_type=clip", "causal language model")),
    "config of a wrong type": (configured(num_hidden_layers="two"), ("config.json", "num_hidden_layers")),
    "missing shard": (lambda at: (at / SECOND).unlink(), (SECOND, "no such file", "index.json names it")),
    "no weights": (
        lambda at: [file.unlink() for file in at.glob("model*")] and None, ("model.safetensors", "no such file"),
    ),
    "truncated shard": (bytes_of(FIRST, lambda b: b[:-1]), (FIRST, "cut off")),
    "corrupt header": (bytes_of(FIRST, lambda b: b[:8] + b"?" + b[9:]), (FIRST, "unreadable header")),
    "web page": (bytes_of(SECOND, lambda b: b"<html>404</html>"), (SECOND, "unreadable header")),
    "empty shard": (bytes_of(SECOND, lambda b: b""), (SECOND, "unreadable header")),
    "index is no JSON": (bytes_of("model.safetensors.index.json", lambda b: b[:-9]), ("index.json", "must be JSON")),
    "tensor not where the index says": (misplaced, (EXPERT, "no such tensor", "index.json")),
    "tensor missing": (edited(lambda t: t.pop("model.norm.weight")), ("model.norm.weight", "no such tensor")),
    "expert missing": (edited(lambda t: (t.pop(EXPERT), t.pop(EXPERT + "_scale_inv"))), (EXPERT, "no such tensor")),
    "bias missing": (
        edited(lambda t: t.pop("model.layers.1.mlp.gate.e_score_correction_bias")), ("e_score_correction_bias",),
    ),
    "MTP module not whole": (
        edited(lambda t: t.pop(f"model.layers.{LAYERS}.eh_proj.weight")),
        (f"layers.{LAYERS}.eh_proj.weight", "no such tensor"),
    ),
    "other shape": (configured(vocab_size=65), ("lm_head.weight", "(64, 192)", "(65, 192)")),
    "fewer layers": (configured(num_hidden_layers=1), ("model.layers.1.eh_proj", "no such tensor")),
    "more experts": (configured(n_routed_experts=6), ("experts.4.", "no such tensor")),
    "unknown tensor": (edited(lambda t: t.update(extra=torch.zeros(2))), ("extra", "unknown tensor")),
    "scale missing": (edited(lambda t: t.pop(Q_PROJ + "_scale_inv")), (Q_PROJ, "needs its scales")),
    "scale of nothing": (edited(lambda t: t.update({"x_scale_inv": torch.zeros(2)})), ("x_scale_inv", "unknown")),
    "scale of a plain weight": (
        edited(lambda t: t.update({Q_PROJ: t[Q_PROJ].bfloat16()})), (Q_PROJ + "_scale_inv", "BF16"),
    ),
    "other block size": (
        configured(quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]}),
        ("weight_scale_inv", "blocks of (64, 64)"),
    ),
    "no block size": (configured(quantization_config={"quant_method": "fp8"}), ("weight_block_size=None",)),
    "other quantisation": (configured(quantization_config={"quant_method": "awq"}), ("awq", "only block-scaled fp8")),
    "no quantization_config": (without_quantization, ("config.json", "no quantization_config")),
    "other number format": (
        edited(lambda t: t.update({"model.norm.weight": torch.ones(192, dtype=torch.int8)})),
        ("model.norm.weight", "I8"),
    ),
    "flipped bit": (flipped, (SECOND, "SHA-256", "damaged or changed")),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_that_names_the_place(
    name: str, stored: tuple[Path, Tensors], tmp_path: Path
) -> None:
    damage, named = DAMAGES[name]
    directory = tmp_path / "checkpoint"
    shutil.copytree(stored[0], directory)
    (directory / "tokenizer.json").write_text("{}")
    damage(directory)
    with pytest.raises(UserError) as error:
        load_hf(directory, "float32")
    assert "\n" not in str(error.value)
    assert str(directory) in str(error.value)
    assert all(part in str(error.value) for part in named), str(error.value)


async def test_a_sampler_does_not_start_on_a_checkpoint_that_lacks_a_tensor(
    stored: tuple[Path, Tensors], tmp_path: Path
) -> None:
    shutil.copytree(stored[0], tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text("{}")
    edited(lambda t: t.pop("model.norm.weight"))(tmp_path / "checkpoint")
    with pytest.raises(UserError, match=r"model\.norm\.weight: got 'no such tensor'"):
        await VllmSampler(VllmConfig()).start(tmp_path / "checkpoint")


PUBLISHED: dict[str, dict[str, Any]] = {  # config.json as published, without what concerns neither shape nor maths
    "moe_16b": {
        "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 10944, "max_position_embeddings": 4096, "model_type": "deepseek",
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_routed_experts": 64, "n_shared_experts": 2,
        "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 28,
        "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000,
        "scoring_func": "softmax", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 102400,
    },
    "v2_lite": {
        "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
        "model_type": "deepseek_v2", "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1,
        "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
        "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096, "type": "yarn",
        }, "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": False,
        "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 102400,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_sizes_are_the_published_config(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    node = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    spec = build_component(node.get("model", node), where="model")  # a published size names its recipe beside it
    theirs, ours = read_config(tmp_path).to_dict(), spec.hf_config().to_dict()
    theirs["rope_parameters"].pop("type", None)  # its old name
    different = {key for key in theirs if theirs[key] != ours.get(key)}
    assert different <= {
        "_name_or_path",
        "architectures",
        "initializer_range",
    }  # published: 0.02
