"""The whole R1-Zero job through the command line, with vLLM, DeepSpeed and Ray as they are."""

from __future__ import annotations

import json

import pytest

from framework.artifacts import Manifest
from tests.e2e.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NODES = ("collect", "clean", "tokenizer", "tokenize", "pretrain", "eval_base", "grpo", "eval_r1_zero")


def test_every_node_leaves_an_artifact_with_its_provenance(whole_run: Run) -> None:
    for node in NODES:
        manifests = list(whole_run.directory.glob(f"artifacts/{node}-*/*/manifest.json"))
        assert manifests, node
        for file in manifests:
            manifest = Manifest(**json.loads(file.read_text()))
            assert manifest.files
            assert manifest.stage.startswith("framework.stages.")
    policy = Manifest(**json.loads((whole_run.artifact("grpo", "policy") / "manifest.json").read_text()))
    base = Manifest(**json.loads((whole_run.artifact("pretrain", "base") / "manifest.json").read_text()))
    assert policy.inputs["base"] == base.content_hash
    assert not list(whole_run.directory.glob("artifacts/.building-*"))


def test_both_checkpoints_load_in_transformers_and_differ(whole_run: Run) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logits = []
    for node, output in (("pretrain", "base"), ("grpo", "policy")):
        directory = whole_run.artifact(node, output)
        model, notes = AutoModelForCausalLM.from_pretrained(directory, dtype="float32", output_loading_info=True)
        assert not notes["missing_keys"]
        assert not notes["unexpected_keys"]
        tokens = AutoTokenizer.from_pretrained(directory)("What is 1 + 2?", return_tensors="pt")
        with torch.no_grad():
            logits.append(model(input_ids=tokens["input_ids"]).logits)
    assert torch.isfinite(logits[1]).all()
    assert not torch.equal(*logits)  # GRPO had signal and learned from it


def test_metrics_carry_the_names_that_the_report_charts(whole_run: Run) -> None:
    grpo = whole_run.metrics("grpo")
    names = {
        *("reward/mean", "reward/accuracy", "reward/format", "reward/failed_share"),
        *("response/length_mean", "response/length_max", "response/truncated_share"),
        *("staleness/mean", "staleness/max", "groups/zero_std_share"),
        *("mismatch/mean_abs", "mismatch/max_abs", "mismatch/k3"),
        *("clip/low", "clip/high", "kl/reference", "kl/old", "loss/policy"),
        *("train/entropy", "train/grad_norm", "train/lr", "sampled_tokens_per_s"),
        *("time/step_s", "time/wait_s", "time/train_s", "time/sync_s"),
    }
    assert names <= grpo.keys()
    assert sorted(grpo["reward/mean"]) == [2, 4, 6, 8, 10, 12]  # an entry a batch of two optimizer steps
    assert max(grpo["mismatch/max_abs"].values()) < 1e-3  # both engines compute in float32 here
    assert max(grpo["staleness/max"].values()) <= 1
    assert any(grpo["train/grad_norm"].values())
    pretrain = whole_run.metrics("pretrain")
    assert {"train/loss", "validation/loss", "train/tokens_per_s"} <= pretrain.keys()
    assert pretrain["train/loss"][20] < pretrain["train/loss"][10]
    assert (whole_run.directory / "expert_load.jsonl").stat().st_size > 0


def test_report_and_wandb_files_are_there(whole_run: Run) -> None:
    page = (whole_run.directory / "report.html").read_text()
    assert "<h2>Evaluation</h2><details" in page
    for label in ("base", "r1_zero"):
        assert f"pass@1, {label}" in page
    assert "Learner–sampler mismatch, mean" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert list(whole_run.directory.glob("wandb/offline-run-*/*.wandb"))
    assert list(whole_run.directory.glob("wandb/offline-run-*/files/media/table/grpo/samples_*.table.json"))


def test_each_prompt_is_trained_once_an_epoch(whole_run: Run) -> None:
    whole_run.assert_each_prompt_was_trained_once_an_epoch(epochs=2)


def test_the_same_command_again_skips_everything_without_starting_ray(whole_run: Run) -> None:
    before = whole_run.output
    whole_run.start()
    assert whole_run.wait() == 0
    for node in NODES:
        assert f"] {node}: finished in" in before
        assert f"] {node}: finished before, skipped" in whole_run.output
    assert "Started a local Ray instance" not in whole_run.output
