"""Families: found by model_type, read from config.json and back, refused with a reason; hub ids without a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.models.families.base import RankLayout
from framework.models.families.find import check_same, known_families, of_base
from framework.models.families.generic import Generic
from framework.models.find_base import find_base
from framework.models.public_layout import read_config
from framework.models.spec import build_model
from framework.rewards.accuracy import Accuracy
from framework.rewards.base import RewardConfig
from framework.stages.grpo import Engines, GrpoConfig
from tests.contract.families import CHECKPOINTS, COMMON, CONTEXT, WINDOW


def write(directory: Path, kind: str, **keys: Any) -> Path:
    (directory / "config.json").write_text(json.dumps({"model_type": kind, **keys}))
    return directory


def test_every_family_has_a_file_of_its_own() -> None:
    assert set(known_families()) == {kind for kind, _ in CHECKPOINTS.values()} - {"olmo2"}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_sizes_come_from_the_config_and_go_back(name: str, tmp_path: Path) -> None:
    kind, keys = CHECKPOINTS[name]
    spec = of_base(write(tmp_path, kind, **keys), "float32")
    check_same(spec, tmp_path)
    assert (spec.vocab_size, spec.max_position_embeddings, spec.dtype) == (304, CONTEXT, "float32")
    assert type(build_model(spec, seed=0)).__name__ in [*(spec.hf_config().architectures or ()), "Olmo2ForCausalLM"]
    layout = RankLayout("float32", 1, 1, 1, 8, on_gpu=False)
    assert spec.layer_bytes(layout, moe=False)[0] > 0 < spec.cache_elements(1)


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
        ("qwen3", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("qwen3", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ("qwen3", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("deepseek_v3", {"routed_scaling_factor": 2.5}, "routed_scaling_factor"),
        ("gemma3", {"sliding_window": 32}, "sliding_window"),
        ("llama3", {"attention_bias": True}, "attention_bias"),
    ],
)
def test_a_model_that_differs_in_any_field_that_counts(
    name: str, change: dict[str, Any], key: str, tmp_path: Path
) -> None:
    kind, keys = CHECKPOINTS[name]
    given = of_base(write(tmp_path, kind, **keys))
    write(tmp_path, kind, **(keys | change))
    with pytest.raises(UserError, match=f"has {key}="):
        check_same(given, tmp_path)
    write(tmp_path, kind, **(keys | {"initializer_range": 0.5, "use_cache": False}))
    check_same(given, tmp_path)


@pytest.mark.parametrize(
    ("kind", "keys", "reason"),
    [
        ("bert", {}, "an encoder"),
        ("t5", {}, "causal"),
        ("qwen2", {**COMMON, "architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForCausalLM"),
        ("gemma3", {}, "text alone"),
        ("gemma2", {**COMMON, "head_dim": 32}, "attn_logit_softcapping"),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}, "linear_attention"),
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64}, "cannot run here"),
        ("gpt_oss", {**COMMON, "num_local_experts": 4, "layer_types": ["full_attention"] * 2, "head_dim": 32}, "s_aux"),
        ("qwen3_next", {**COMMON, "layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ("no_such_family", {}, "model_type"),
        ("", {"model_type": None}, r"model_type=None'; model_type must be a family"),
        (
            "nemotron",
            {**COMMON, "num_key_value_heads": None},
            r"cannot run here: building it fails \(unsupported operand",
        ),
        (
            "qwen2",
            {**COMMON, "rope_scaling": {"type": "mrope", "mrope_section": [4]}},
            "rope_type=mrope'; must be one of",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    kind: str, keys: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        of_base(write(tmp_path, kind, **keys))


def test_what_writers_leave_in_their_configs_is_no_obstacle(tmp_path: Path) -> None:
    odd = {"pad_token_id": -1, "bos_token_id": -1, "_attn_implementation": "flash_attention_2"}
    spec = of_base(write(tmp_path, "qwen2", **COMMON | odd))
    assert (spec.pad_token_id, spec.bos_token_id, spec.eos_token_id) == (None, None, 2)
    assert read_config(tmp_path)._attn_implementation != "flash_attention_2"


def test_longrope_is_one_embedding_up_to_the_context_before_it(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    keys = {**COMMON, "rope_scaling": {"type": "longrope", **factors}, "original_max_position_embeddings": 64}
    assert of_base(write(tmp_path, "phi3", **keys)).short_context == 64
    assert of_base(write(tmp_path, "phi3", **COMMON)).short_context == CONTEXT
    engine, rewards = Engines(VllmConfig(max_model_len=65)), RewardConfig({"accuracy": Accuracy()})
    config = GrpoConfig(engine=engine, reward=rewards, max_tokens=8)
    with pytest.raises(UserError, match=r"max_model_len: got 65; must be at most 64: .*longrope"):
        config.check_lengths(of_base(write(tmp_path, "phi3", **keys)))


def test_another_causal_model_runs_as_generic(tmp_path: Path) -> None:
    spec = of_base(write(tmp_path, "olmo2", **COMMON))
    assert isinstance(spec, Generic)
    assert spec.rough
    assert spec.hf_config().model_type == "olmo2"


@pytest.mark.parametrize(
    ("heads", "shared", "most", "fits"), [(14, 2, 32, 14), (9, 3, 8, 3), (40, 8, 32, 8), (12, 4, 8, 4), (6, 4, 8, 2)]
)
def test_heads_are_split_evenly(heads: int, shared: int, most: int, fits: int, tmp_path: Path) -> None:
    keys = {**COMMON, "num_attention_heads": heads, "head_dim": 32}
    spec = replace(of_base(write(tmp_path, "qwen3", **keys)), num_key_value_heads=None)
    assert replace(spec, num_attention_heads=heads).tensor_parallel(1) == 1
    object.__setattr__(spec, "num_key_value_heads", shared)  # 6 heads of 4 are refused elsewhere
    assert spec.tensor_parallel(most) == fits


def test_windows_are_read(tmp_path: Path) -> None:
    spec = of_base(write(tmp_path, *CHECKPOINTS["mistral"][:1], **CHECKPOINTS["mistral"][1]))
    assert getattr(spec, "sliding_window", None) == WINDOW


def test_a_base_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_base(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="no such directory: must be a checkpoint directory or a hub id"):
        find_base(str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"base: got 'owner/none'; no such directory, and the hub could not give it"):
        find_base("owner/none")
    for name, says in (("adapter_config.json", "merge it into its model first"), ("a.gguf", "holds a.gguf: load it")):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_text("{}")
        with pytest.raises(UserError, match=says):
            find_base(str(tmp_path / name[:3]))
    with pytest.raises(UserError, match="is a file: must be a checkpoint directory"):
        find_base(str(tmp_path / "a.g" / "a.gguf"))
