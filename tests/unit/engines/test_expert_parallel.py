"""What a step computes does not depend on ranks, expert-parallel size, ZeRO stage or micro-batches, nor on a resume.

The yardstick of pretraining is a plain PyTorch loop over transformers' model; one start-up of two and one of four gloo
processes serve all layouts. `python -m tests.unit.engines.test_expert_parallel` prints the errors measured.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from framework.engines import checkpoint
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.expert_parallel import all_tensors, moe_layers, own_tensors
from framework.engines.lr_schedule import LrSchedule
from framework.engines.published_policy import PublishedPolicy
from framework.engines.trainer import Trainer
from framework.errors import UserError
from framework.objectives.lm import StreamLm
from tests.distributed import run_ranks
from tests.learners import VOCAB, minibatch, samples, tiny_learner, tiny_model

RELATIVE = 1e-5
STEPS, SAVED = 10, 5  # optimizer steps, and after how many of them engine state is saved
GAMMA, CLIP, SCHEDULE = 1e-3, 0.3, LrSchedule(lr=1e-3, warmup_steps=2)
TOKENS = 17  # of a row
ON_FOUR = [(ep_size, zero_stage) for ep_size in (1, 2, 4) for zero_stage in (1, 2, 3)]
ON_TWO = [(1, 1), (2, 1), (2, 2), (1, 3), (2, 3)]  # saved, to be resumed elsewhere
TO_FOUR = [((1, 1), 4), ((2, 1), 1), ((2, 2), 4), ((1, 3), 2), ((2, 3), 4)]  # (saved on two as, expert-parallel size)
TO_ONE = [(4, 1), (2, 2), (4, 3)]  # saved on four as
LEARNER_LAYOUTS = [(1, 1, 128), (2, 1, 128), (2, 2, 96)]  # expert-parallel size, ZeRO stage, token budget


@dataclass(frozen=True)
class Trained:
    """What a training left behind; weights and gradients under transformers' names."""

    losses: list[float]
    norms: list[float]
    grads: dict[str, np.ndarray]  # of the first step, before clipping
    weights: dict[str, np.ndarray]


def batch(step: int) -> torch.Tensor:
    """3 or 5 rows: four ranks get unequal shares, one none or (in its second micro-batch) a blank."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, VOCAB, (5 if step % 2 else 3, TOKENS), generator=generator)


def train_plainly() -> Trained:
    """The same training in plain PyTorch: no engine of ours, no DeepSpeed."""
    model = tiny_model()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    chosen: dict[int, torch.Tensor] = {}
    for index, gate in enumerate(gates):
        gate.register_forward_hook(lambda _m, _a, output, i=index: chosen.__setitem__(i, output[2]))
    losses, norms, grads = [], [], dict[str, np.ndarray]()
    for step in range(STEPS):
        rows_BT = batch(step)
        logits_BTV = model(input_ids=rows_BT[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            grads = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, CLIP)))
        losses.append(float(loss.detach()))
        for group in optimizer.param_groups:
            group["lr"] = SCHEDULE.at(step)
        optimizer.step()
        for index, gate in enumerate(gates):
            load_E = torch.bincount(chosen[index].flatten(), minlength=gate.num_experts).double()
            gate.e_score_correction_bias += GAMMA * torch.sign(load_E.mean() - load_E).float()
    return Trained(losses, norms, grads, {n: t.detach().numpy() for n, t in model.state_dict().items()})


def new_trainer(ep_size: int, zero_stage: int, seed: int = 0) -> Trainer[Any, Any]:
    """An engine in a process that has had others: DeepSpeed looks for the largest expert group that was ever made."""
    from deepspeed.utils import groups

    for known in ("_EXPERT_PARALLEL_GROUP", "_EXPERT_DATA_PARALLEL_GROUP"):
        getattr(groups, known).clear()
        getattr(groups, f"{known}_RANKS").clear()
    config = DeepSpeedConfig(
        schedule=SCHEDULE, clip=CLIP, bias_update_speed=GAMMA, token_budget=TOKENS, ep_size=ep_size,
        zero_stage=zero_stage,
    )  # fmt: skip
    return Trainer(tiny_model(seed), config, StreamLm())


def train(trainer: Trainer[Any, Any], save_to: Path | None = None, steps: int = STEPS) -> Trained:
    """Go on to step `steps`."""
    grads: dict[str, np.ndarray] = {}
    step = trainer.engine.step
    losses, norms = [], []
    for index in range(trainer.engine.steps, steps):
        if index == 0:
            trainer.engine.step = lambda *found: grads.update(gradients(trainer)) or step(*found)  # type: ignore[method-assign]
        metrics = trainer.step(batch(index)).metrics
        trainer.engine.step = step  # type: ignore[method-assign]
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
        if save_to is not None and index + 1 == SAVED:
            trainer.save(save_to)
    weights = {name: tensor.detach().clone().numpy() for name, tensor in all_tensors(trainer.engine.model)}
    return Trained(losses, norms, grads, weights)


def gradients(trainer: Trainer[Any, Any]) -> dict[str, np.ndarray]:
    """Whole gradients, experts gathered and fused, under transformers' names."""
    from deepspeed.utils import safe_get_full_grad

    model, found = trainer.engine.model, dict[str, torch.Tensor]()
    for name, parameter in model.named_parameters():
        found[name.replace(".router.gate.", ".gate.")] = safe_get_full_grad(parameter).float()
    for name, layer in moe_layers(model):
        whole = []
        for key in ("w1", "w3", "w2"):
            local = found.pop(f"{name}.experts.{key}")
            parts = [torch.empty_like(local) for _ in range(layer.ep_size)]
            dist.all_gather(parts, local.contiguous(), group=layer.ep_group)
            whole.append(torch.cat(parts))
        found[f"{name}.experts.gate_up_proj"] = torch.cat(whole[:2], 1)
        found[f"{name}.experts.down_proj"] = whole[2]
    return {name: gradient.numpy().copy() for name, gradient in found.items()}


def learn(**engine: Any) -> tuple[list[tuple[float, float]], dict[str, Any], Any]:
    """GRPO: (loss, gradient norm) of each step, the weights after the last, and the load of the first."""
    learner = tiny_learner(**engine)
    results = [learner.train_minibatch(minibatch(seed=step)) for step in range(4)]
    weights = {name: tensor.detach().clone().numpy() for name, tensor in all_tensors(learner.engine.model)}
    steps = [(result.metrics["loss"], result.metrics["grad_norm"]) for result in results]
    return steps, weights, results[0].expert_load_LE


def own_bytes(learner: PublishedPolicy) -> dict[str, int]:
    """Names and bytes of the tensors that this rank publishes."""
    return {name: tensor.nbytes for name, tensor in own_tensors(learner.engine.model)}


def on_two_ranks(directory: Path) -> list[Any]:
    """GRPO in all layouts, what is published, a saved learner; then pretraining as it is saved."""
    outputs: list[Any] = [learn(ep_size=e, zero_stage=z, token_budget=b) for e, z, b in LEARNER_LAYOUTS]
    learner = tiny_learner(ep_size=2)
    learner.train_minibatch(minibatch())
    outputs.append(learner.logprobs(samples()))
    outputs.append(own_bytes(learner))
    for zero_stage in (1, 3):
        learner = tiny_learner(ep_size=2, zero_stage=zero_stage, keep_versions=1)
        learner.train_minibatch(minibatch())
        learner.publish()
        learner.train_minibatch(minibatch(seed=1))
        learner.save(directory / f"learner_z{zero_stage}")
    for ep_size, zero_stage in ON_TWO:
        train(new_trainer(ep_size, zero_stage), directory / f"w2_ep{ep_size}_z{zero_stage}", SAVED)
    return outputs


def on_four_ranks(directory: Path) -> dict[str, Any]:
    """Pretraining in all layouts from the start, then from what two ranks saved."""
    found: dict[str, Any] = {}
    for ep_size, zero_stage in ON_FOUR:
        saved = directory / f"w4_ep{ep_size}_z{zero_stage}"
        found[f"4 ranks, EP {ep_size}, ZeRO-{zero_stage}"] = train(new_trainer(ep_size, zero_stage), saved)
    for (old_ep_size, zero_stage), ep_size in TO_FOUR:
        trainer = new_trainer(ep_size, zero_stage, seed=1)
        trainer.load(directory / f"w2_ep{old_ep_size}_z{zero_stage}")
        found[f"2 ranks, EP {old_ep_size} -> 4 ranks, EP {ep_size}, ZeRO-{zero_stage}"] = train(trainer)
    for zero_stage in (1, 3):
        found[f"learner, ZeRO-{zero_stage}"] = resumed_logprobs(directory, ep_size=4, zero_stage=zero_stage)
    return found


def resumed_logprobs(directory: Path, **engine: Any) -> list[Any]:
    """Of the current policy and two kept ones, and the reference KL, after a resume from two ranks."""
    learner = tiny_learner(seed=1, keep_versions=1, **engine)
    learner.load(directory / f"learner_z{engine['zero_stage']}")
    versions = [learner.logprobs(samples(), version=version) for version in (None, 0, 1)]
    return [versions, learner.train_minibatch(minibatch(seed=2)).metrics["ref_kl"]]


def on_one_rank(directory: Path) -> dict[str, Trained]:
    """Pretraining as four ranks saved it."""
    found = {}
    for old_ep_size, zero_stage in TO_ONE:
        trainer = new_trainer(1, zero_stage, seed=1)
        trainer.load(directory / f"w4_ep{old_ep_size}_z{zero_stage}")
        found[f"4 ranks, EP {old_ep_size} -> 1 rank, ZeRO-{zero_stage}"] = train(trainer)
    return found


def errors(found: Trained, plain: Trained) -> dict[str, float]:
    """Largest relative errors: of a loss, a norm, a gradient tensor (if taken), a weight tensor after the last step."""
    fused = dict(plain.weights)
    for name in [name for name in fused if ".experts." in name]:
        stacked = fused.pop(name)
        kinds = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
        for kind, part in zip(kinds, np.split(stacked, len(kinds), axis=1), strict=True):
            prefix = name.rpartition(".")[0]
            fused |= {f"{prefix}.{e}.{kind}.weight": part[e] for e in range(len(part))}
    assert found.weights.keys() == fused.keys()
    done = STEPS - len(found.losses)
    measured = {
        "loss": max(abs(a - b) / b for a, b in zip(found.losses, plain.losses[done:], strict=True)),
        "norm": max(abs(a - b) / b for a, b in zip(found.norms, plain.norms[done:], strict=True)),
        "weights": max(relative(found.weights[name], fused[name]) for name in fused),
    }
    if not done:
        assert found.grads.keys() == plain.grads.keys()
        measured["gradients"] = max(relative(found.grads[name], plain.grads[name]) for name in plain.grads)
    return measured


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@dataclass(frozen=True)
class Runs:
    plain: Trained
    two: list[Any]
    four: list[dict[str, Any]]
    one: dict[str, Trained]
    directory: Path


def run_all(directory: Path) -> Runs:
    two = run_ranks(on_two_ranks, 2, directory)
    four = run_ranks(on_four_ranks, 4, directory)
    return Runs(train_plainly(), two, four, on_one_rank(directory), directory)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return run_all(tmp_path_factory.mktemp("parallel"))


@pytest.mark.slow
def test_every_layout_trains_as_plain_pytorch_does(runs: Runs) -> None:
    assert min(runs.plain.norms) > 1.5 * CLIP, "the clip must bind"
    for rank, outputs in enumerate(runs.four):
        for layout, found in outputs.items():
            if isinstance(found, Trained) and "->" not in layout:
                measured = errors(found, runs.plain)
                assert max(measured.values()) <= RELATIVE, (layout, rank, measured)
                assert "gradients" in measured


@pytest.mark.slow
def test_a_checkpoint_resumes_on_other_ranks_and_expert_parallel_sizes(runs: Runs) -> None:
    resumed = runs.one | {layout: found for layout, found in runs.four[0].items() if "->" in layout}
    assert len(resumed) == len(TO_FOUR) + len(TO_ONE)
    for layout, found in resumed.items():
        assert len(found.losses) == STEPS - SAVED
        measured = errors(found, runs.plain)
        assert max(measured.values()) <= RELATIVE, (layout, measured)
    assert not list(runs.directory.rglob("*_universal/*")), "conversions are cleaned away"


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_kept_versions_and_the_reference_resume_elsewhere(runs: Runs, zero_stage: int) -> None:
    learner = tiny_learner(zero_stage=zero_stage, keep_versions=1)
    learner.train_minibatch(minibatch())
    learner.publish()
    learner.train_minibatch(minibatch(seed=1))
    versions = [learner.logprobs(samples(), version=version) for version in (None, 0, 1)]
    ref_kl = learner.train_minibatch(minibatch(seed=2)).metrics["ref_kl"]
    on_four = [outputs[f"learner, ZeRO-{zero_stage}"] for outputs in runs.four]
    for found_versions, found_kl in [*on_four, resumed_logprobs(runs.directory, zero_stage=zero_stage)]:
        for found, expected in zip(found_versions, versions, strict=True):
            for theirs, ours in zip(found, expected, strict=True):
                np.testing.assert_allclose(theirs, ours, atol=2e-5)
        assert found_kl == pytest.approx(ref_kl, rel=1e-3)


@pytest.mark.slow
def test_another_zero_stage_is_refused(runs: Runs) -> None:
    with pytest.raises(UserError, match="zero_stage=3"):
        new_trainer(1, 1).load(runs.directory / "w2_ep1_z3")


@pytest.mark.slow
def test_what_cannot_be_converted_is_one_line(runs: Runs) -> None:
    state = runs.directory / "w2_ep1_z2" / "learner"
    state.mkdir(parents=True)
    topology = {"world": 2, "ep_size": 1, "zero_stage": 2, "dtype": "float32"}
    contents: dict[str, Any] = {"counters": {}, "files": {}, "digests": {}, "topology": topology}
    contents["digest"] = checkpoint._own_digest(contents)
    (state / "engine.json").write_text(json.dumps(contents))
    torch.save([], state / "biases.pt")
    with pytest.raises(UserError, match="cannot be converted"):
        new_trainer(1, 2).load(state.parent)


@pytest.mark.slow
def test_two_ranks_learn_as_one_does(runs: Runs) -> None:
    steps, weights, load_LE = learn()
    alone = tiny_learner()
    alone.train_minibatch(minibatch())
    logprobs = alone.logprobs(samples())
    assert all(norm > 0.5 for _, norm in steps), "the clip must bind for this test to see it"
    for outputs in runs.two:
        for layout, (other_steps, other_weights, other_load_LE) in zip(LEARNER_LAYOUTS, outputs, strict=False):
            np.testing.assert_allclose(other_steps, steps, rtol=1e-5, atol=1e-6, err_msg=str(layout))
            np.testing.assert_array_equal(other_load_LE, load_LE)
            assert other_weights.keys() == weights.keys()
            for name, weight in weights.items():
                assert relative(other_weights[name], weight) <= RELATIVE, (layout, name)
        for ours, theirs in zip(logprobs, outputs[-2], strict=True):
            np.testing.assert_allclose(theirs, ours, atol=2e-5)


@pytest.mark.slow
def test_each_rank_publishes_its_own_experts_and_no_more(runs: Runs) -> None:
    whole = own_bytes(tiny_learner())
    first, second = (outputs[-1] for outputs in runs.two)
    assert first | second == whole
    assert not first.keys() & second.keys()
    assert {name.split(".experts.")[1].split(".")[0] for name in second} == {"4", "5", "6", "7"}
    experts = sum(size for name, size in whole.items() if ".experts." in name)
    assert sum(second.values()) == experts // 2
    assert sum(first.values()) == sum(whole.values()) - experts // 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        done = run_all(Path(scratch))
        for layout, trained in {**done.four[0], **done.one}.items():
            if isinstance(trained, Trained):
                print(layout, {name: f"{error:.1e}" for name, error in errors(trained, done.plain).items()})
