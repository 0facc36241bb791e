"""The Learner protocol, against the fake and DeepSpeed in this process; then what only the engine promises."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from framework.data.packing import pack, pack_padded
from framework.engines import checkpoint, expert_parallel
from framework.engines.checkpoint import STATE, load_hf
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.engines.weights import unflatten
from framework.errors import DamagedState, UserError
from framework.objectives.lm import StreamLm
from framework.protocols import Learner
from framework.types import Minibatch
from tests.fakes import FakeLearner
from tests.learners import VOCAB, minibatch, samples, tiny_learner, tiny_model

NewLearner = Callable[[], Any]


@pytest.fixture(params=["fake", pytest.param("deepspeed", marks=pytest.mark.slow)])
def new_learner(request: pytest.FixtureRequest) -> NewLearner:
    seeds = iter(range(100))  # a second learner starts from other weights: what it resumes must come from the disk
    return FakeLearner if request.param == "fake" else lambda: tiny_learner(next(seeds), keep_versions=1)


def equal(ours: list[Any], theirs: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_step_is_counted_measured_and_changes_the_policy(new_learner: NewLearner) -> None:
    learner: Learner = new_learner()
    before = learner.logprobs(samples())
    results = [learner.train_minibatch(minibatch()) for _ in range(2)]
    assert [result.step for result in results] == [1, 2]
    assert {"loss", "grad_norm", "lr", "tokens"} <= results[0].metrics.keys()
    assert results[0].metrics["tokens"] == sum(len(sample.response_ids) for sample in samples())
    assert results[0].expert_load_LE is not None
    assert not equal(before, learner.logprobs(samples()))


def test_logprobs_come_in_order_one_per_response_token(new_learner: NewLearner) -> None:
    found = new_learner().logprobs(samples())
    assert [len(logprobs) for logprobs in found] == [len(sample.response_ids) for sample in samples()]
    assert all(logprobs.dtype == np.float32 and (logprobs < 0).all() for logprobs in found)
    assert equal(new_learner().logprobs([]), [])


@pytest.mark.slow
def test_the_average_of_the_weights_is_exported_and_survives_a_resume(tmp_path: Path) -> None:
    def exported(learner: Any, name: str) -> dict[str, torch.Tensor]:
        learner.export(tmp_path / name)
        return {key: value.clone() for key, value in load_hf(tmp_path / name, "float32").state_dict().items()}

    def weights(learner: Any) -> list[torch.Tensor]:
        return list(learner.engine.snapshot().parameters)

    learner = tiny_learner(ema_decay=0.75)
    seen = [weights(learner)]
    for _ in range(2):
        learner.train_minibatches([minibatch(), minibatch()])  # a batch of two steps counts once
        seen.append(weights(learner))
    expected = [0.75 * (0.75 * a + 0.25 * b) + 0.25 * c for a, b, c in zip(*seen, strict=True)]
    torch.testing.assert_close(list(learner._ema.parameters), expected)
    found, last = exported(learner, "average"), learner.engine.model
    assert equal([w.numpy() for w in weights(learner)], [w.numpy() for w in seen[-1]])  # the policy itself stays
    embedding = expected[[name for name, _ in last.named_parameters()].index("model.embed_tokens.weight")]
    torch.testing.assert_close(found["model.embed_tokens.weight"], embedding)
    learner.save(tmp_path / "state")
    again = tiny_learner(seed=1, ema_decay=0.75)
    again.load(tmp_path / "state")
    assert exported(again, "again").keys() == found.keys()
    torch.testing.assert_close(exported(again, "again"), found)
    plain = tiny_learner()
    plain.save(tmp_path / "plain")
    with pytest.raises(UserError, match=r"saved without one \(ema_decay=null\)"):
        again.load(tmp_path / "plain")


def test_publishing_counts_versions_and_older_ones_stay_readable(new_learner: NewLearner) -> None:
    learner = new_learner()
    initial = learner.logprobs(samples())
    learner.train_minibatch(minibatch())
    assert learner.publish().version == 1
    first = learner.logprobs(samples())
    learner.train_minibatch(minibatch())
    assert equal(learner.logprobs(samples(), version=0), initial)
    assert equal(learner.logprobs(samples(), version=1), first)
    assert not equal(learner.logprobs(samples()), first)
    learner.publish()
    with pytest.raises(UserError, match="0"):
        learner.logprobs(samples(), version=0)
    assert learner.publish(7).version == 7


def test_a_resumed_learner_goes_on_exactly(new_learner: NewLearner, tmp_path: Path) -> None:
    learner = new_learner()
    learner.train_minibatch(minibatch())
    learner.publish()
    learner.save(tmp_path / "state")
    expected = [learner.train_minibatch(minibatch(seed=seed)) for seed in (1, 2)]
    resumed = new_learner()
    resumed.load(tmp_path / "state")
    found = [resumed.train_minibatch(minibatch(seed=seed)) for seed in (1, 2)]
    assert [(r.step, dict(r.metrics)) for r in found] == [(r.step, dict(r.metrics)) for r in expected]
    assert equal(resumed.logprobs(samples()), learner.logprobs(samples()))
    assert equal(resumed.logprobs(samples(), version=0), learner.logprobs(samples(), version=0))
    assert resumed.publish().version == learner.publish().version == 2


def test_loading_nothing_is_the_users_error(new_learner: NewLearner, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine\.json"):
        new_learner().load(tmp_path / "nowhere")


def test_export_makes_a_checkpoint_directory(new_learner: NewLearner, tmp_path: Path) -> None:
    new_learner().export(tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").is_file()


@pytest.mark.slow
class TestDeepSpeed:
    """Beyond the protocol."""

    def test_export_loads_in_transformers_with_equal_logits(self, tmp_path: Path) -> None:
        learner = tiny_learner(bias_update_speed=0.01)
        learner.train_minibatch(minibatch())
        learner.export(tmp_path)
        ids = torch.arange(40).view(1, 40) % VOCAB
        trained = learner.engine.model
        trained.set_attn_implementation("sdpa")  # type: ignore[operator]
        with torch.no_grad():
            ours, theirs = (model(input_ids=ids).logits for model in (trained, load_hf(tmp_path, "float32")))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)

    def test_export_gathers_each_tensor_once(self, tmp_path: Path) -> None:
        learner, gathered = tiny_learner(), list[nn.Parameter]()

        @contextlib.contextmanager
        def counting(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
            gathered.extend(parameters)
            yield

        with mock.patch.object(expert_parallel, "gathered", counting):
            learner.export(tmp_path)
        assert Counter(map(id, gathered)) == Counter(map(id, learner.engine.model.parameters()))

    def test_publish_sends_the_checkpoints_tensors(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        tiny_model().save_pretrained(tmp_path)
        saved = load_file(tmp_path / "model.safetensors")
        learner = tiny_learner()
        published = dict(unflatten(learner.publish()))
        assert published.keys() == saved.keys()
        assert all(torch.equal(published[name], saved[name]) for name in saved)

    def test_bfloat16_keeps_gate_and_bias_in_float32(self) -> None:
        learner = tiny_learner(dtype="bfloat16", bias_update_speed=1e-3)
        before = [bias.clone() for _, bias in learner.engine.routing.biases()]
        result = learner.train_minibatch(minibatch())
        assert result.expert_load_LE is not None
        for (_, bias_E), old_E, load_E in zip(
            learner.engine.routing.biases(), before, result.expert_load_LE, strict=True
        ):
            assert bias_E.dtype == torch.float32
            expected_E = old_E + 1e-3 * torch.from_numpy(np.sign(load_E.mean() - load_E)).float()
            torch.testing.assert_close(bias_E, expected_E)
        published = learner.publish()
        kinds = {tensor.dtype for tensor in published.tensors if "correction_bias" not in tensor.name}
        assert kinds == {"bfloat16"}

    def test_routes_in_bfloat16_are_those_of_transformers(self) -> None:
        learner = tiny_learner(dtype="bfloat16")
        theirs = tiny_model()
        for parameter in theirs.parameters():
            parameter.data = parameter.data.bfloat16()
        learner.engine.model.set_attn_implementation("sdpa")  # type: ignore[operator]
        ids = torch.randint(0, VOCAB, (4, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            gap = (learner.engine.model(input_ids=ids).logits - theirs(input_ids=ids).logits).abs()
        assert float(gap.max()) < 0.03

    def test_packed_and_padded_rows_give_the_same_step(self) -> None:
        results = []
        for layout in (pack, pack_padded):
            learner = tiny_learner(packer=layout, bias_update_speed=0.0, token_budget=400)
            steps = [learner.train_minibatch(minibatch(seed=seed)).metrics for seed in range(2)]
            results.append([[step[name] for name in ("loss", "grad_norm", "ref_kl", "clip_low")] for step in steps])
        np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("denominator", ["response", "token", "constant"])
    def test_micro_batches_do_not_show(self, denominator: str) -> None:
        results = []
        for token_budget in (80, 2048):
            learner = tiny_learner(denominator=denominator, token_budget=token_budget)
            steps = [learner.train_minibatch(minibatch(seed=seed)).metrics for seed in range(3)]
            results.append([[step["loss"], step["grad_norm"]] for step in steps])
        np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)

    def test_gradient_checkpointing_changes_nothing_and_counts_once(self) -> None:
        plain, recomputed = (
            tiny_learner(gradient_checkpointing=on).train_minibatch(minibatch()) for on in (False, True)
        )
        np.testing.assert_array_equal(plain.expert_load_LE, recomputed.expert_load_LE)
        np.testing.assert_allclose(recomputed.metrics["grad_norm"], plain.metrics["grad_norm"], rtol=1e-5)

    def test_the_reference_stays_until_it_is_reset(self) -> None:
        learner = tiny_learner()
        kl = [learner.train_minibatch(minibatch()).metrics["ref_kl"] for _ in range(2)]
        learner.reset_reference()
        kl.append(learner.train_minibatch(minibatch()).metrics["ref_kl"])
        assert kl[0] == pytest.approx(0.0, abs=1e-9)
        assert kl[1] > 1e-6
        assert kl[2] == pytest.approx(0.0, abs=1e-9)

    @pytest.mark.parametrize("zero_stage", [2, 3])
    def test_sharded_learners_train_keep_and_publish_alike(self, zero_stage: int) -> None:
        plain, sharded = (tiny_learner(zero_stage=stage, keep_versions=1) for stage in (1, zero_stage))
        before = sharded.logprobs(samples())
        for _ in range(2):
            expected, found = plain.train_minibatch(minibatch()), sharded.train_minibatch(minibatch())
        for name in ("loss", "grad_norm", "ref_kl"):
            assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-4, abs=1e-6)
        after = sharded.logprobs(samples())
        for old, kept in zip(before, sharded.logprobs(samples(), version=0), strict=True):
            np.testing.assert_array_equal(old, kept)
        for one, again in zip(after, sharded.logprobs(samples()), strict=True):
            np.testing.assert_array_equal(one, again)
        theirs = {name: tensor.clone() for name, tensor in unflatten(plain.publish(1))}
        for name, tensor in unflatten(sharded.publish(1)):
            torch.testing.assert_close(tensor, theirs.pop(name), rtol=1e-4, atol=1e-5)
        assert not theirs

    @pytest.mark.parametrize("damage", ["missing", "truncated", "zero_stage"])
    def test_damaged_state_is_refused_by_name(self, damage: str, tmp_path: Path) -> None:
        learner = tiny_learner()
        learner.save(tmp_path)
        state = tmp_path / STATE
        victim = next(state.glob("native/*optim_states.pt"))
        if damage == "missing":
            victim.unlink()
        elif damage == "truncated":
            victim.write_bytes(victim.read_bytes()[:-100])
        else:
            contents = json.loads((state / "engine.json").read_text())
            contents["topology"]["zero_stage"] = 2
            contents["digest"] = checkpoint._own_digest(contents)
            (state / "engine.json").write_text(json.dumps(contents))
        with pytest.raises(UserError, match=damage if damage == "zero_stage" else victim.name):
            learner.load(tmp_path)

    def test_64_flipped_bytes_in_any_file_are_noticed_before_anything_is_loaded(self, tmp_path: Path) -> None:
        learner = tiny_learner(keep_versions=1)
        learner.train_minibatch(minibatch())
        learner.save(tmp_path)
        before = learner.logprobs(samples())
        files = [file for file in (tmp_path / STATE).rglob("*") if file.is_file()]
        assert len(files) > 4
        for file in files:
            whole = file.read_bytes()
            start, size = len(whole) // 3, 64
            flipped = bytes(byte ^ 0x10 for byte in whole[start : start + size])
            file.write_bytes(whole[:start] + flipped + whole[start + size :])
            with pytest.raises(DamagedState, match=file.name):
                learner.load(tmp_path)
            assert equal(before, learner.logprobs(samples()))
            file.write_bytes(whole)
        learner.load(tmp_path)

    def test_a_sample_beyond_the_token_budget_is_refused(self) -> None:
        long = replace(samples()[0], prompt_ids=np.zeros(200, np.int32))
        with pytest.raises(UserError, match="token_budget"):
            tiny_learner().train_minibatch(Minibatch.of([long]))


@pytest.mark.slow
def test_pretraining_learns_resumes_and_does_not_depend_on_micro_batches(tmp_path: Path) -> None:
    rows_BT = torch.randint(0, VOCAB, (6, 33), generator=torch.Generator().manual_seed(0))

    def trainer(seed: int, token_budget: int) -> Trainer[Any, Any]:
        schedule = LrSchedule(lr=3e-3, warmup_steps=2, kind="cosine", total_steps=20)
        config = DeepSpeedConfig(
            schedule=schedule, token_budget=token_budget, bias_update_speed=1e-3, balance_alpha=1e-4
        )
        return Trainer(tiny_model(seed), config, StreamLm())

    first = trainer(0, 33 * 2)
    steps = [first.step(rows_BT) for _ in range(3)]
    assert steps[2].metrics["loss"] < steps[0].metrics["loss"] - 0.1
    assert steps[0].metrics["balance_loss"] >= 1e-4 * 2 * 0.9  # about 1 in each of two MoE layers
    whole = trainer(0, 33 * 6)
    for step in steps:
        other = whole.step(rows_BT)
        assert {k: pytest.approx(v, rel=1e-4) for k, v in step.metrics.items()} == other.metrics
    first.save(tmp_path)
    expected = first.step(rows_BT).metrics
    resumed = trainer(1, 33 * 2)
    resumed.load(tmp_path)
    assert resumed.step(rows_BT).metrics == expected


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"zero_stage": 0}, "zero_stage"),
        ({"dtype": "float16"}, "dtype"),
        ({"ep_size": 0}, "ep_size"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_impossible_engines_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        DeepSpeedConfig(**values)


@pytest.mark.parametrize(("ep_size", "world", "experts"), [(2, 3, 8), (3, 3, 8), (2, 2, 0)])
def test_expert_parallel_sizes_that_do_not_divide_are_refused(ep_size: int, world: int, experts: int) -> None:
    with pytest.raises(UserError, match="ep_size"):
        DeepSpeedConfig(ep_size=ep_size).check_topology(world, experts)


def test_schedules_follow_the_papers() -> None:
    cosine = LrSchedule(lr=1.0, kind="cosine", warmup_steps=10, total_steps=110, final_ratio=0.1)
    assert [cosine.at(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [cosine.at(step) for step in (60, 110, 500)] == pytest.approx([0.55, 0.1, 0.1])
    multistep = LrSchedule(lr=1.0, kind="multistep", total_steps=100)
    assert [multistep.at(s) for s in (0, 79, 80, 90)] == pytest.approx([1.0, 1.0, 0.316, 0.316**2])
    assert LrSchedule(lr=3e-6).at(10_000) == 3e-6
