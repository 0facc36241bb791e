"""A policy with its critic as one learner: what each is given, that both learn, and that a resume is exact."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from framework.actors.rank_group import RanksLost
from framework.algorithms.mismatch import MismatchConfig
from framework.artifacts import RewardCheckpoint, write_manifest
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.published_policy import PublishedPolicy
from framework.engines.sharded_load import load_sharded
from framework.engines.trainer import Trainer
from framework.errors import UserError
from framework.objectives.objective import Share
from framework.objectives.policy_rows import PolicyRows
from framework.objectives.ppo import Ppo
from framework.objectives.pretraining_mix import PretrainingMix
from framework.objectives.value import ValueRows, values_of
from framework.roles.critic import ActorCritic, CriticWorker
from framework.roles.learner import LearnerWorker
from framework.roles.rl_batch import TrainBatch, build_batch
from framework.roles.rl_clients import TrainResult
from framework.stages.grpo_roles import check_critic
from framework.types import Minibatch, ValueSample
from tests.contract.families import write_checkpoint, write_tokenizer
from tests.contract.test_objectives_learn import PROMPTS, chance_of_reward, group
from tests.learners import VOCAB, samples, tiny_model

pytestmark = pytest.mark.slow
CONFIG = DeepSpeedConfig(schedule=LrSchedule(lr=5e-3), token_budget=2048, weight_decay=0.0)


class InProcess:
    """A rank group whose one rank is in this process; `dies_on` a verb, it is lost."""

    def __init__(self, rank: Any) -> None:
        self.rank, self.dies_on, self.alive = rank, "", True
        self.result: Any = None
        self.begun: list[tuple[str, Any]] = []

    @property
    def outstanding(self) -> list[Any]:
        return [] if self.result is None else [self.result]

    def begin(self, verb: str, *given: Any) -> None:
        self.begun.append((verb, given[0]))
        self.result = getattr(self.rank, verb)(*given) if verb != self.dies_on else RanksLost(verb)

    def train(self, batch: TrainBatch) -> None:
        self.begin("train", batch)

    def poll(self) -> Any:
        found, self.result = self.result, None
        if isinstance(found, RanksLost):
            raise found
        return found

    def shutdown(self) -> None:
        self.result, self.alive = None, False

    def save(self, directory: Path) -> None:
        self.rank.save(directory)

    def load(self, directory: Path) -> None:
        self.rank.load(directory)


def actor_critic(directory: Path, objective: Ppo) -> ActorCritic:
    policy, critic = LearnerWorker(), CriticWorker()
    policy._learner = PublishedPolicy(tiny_model(), CONFIG, PolicyRows(objective))
    critic._trainer = Trainer(load_sharded(directory, CONFIG, 3), replace(CONFIG, mtp_coef=0.0), objective.critic)
    return ActorCritic(cast(Any, InProcess(policy)), cast(Any, InProcess(critic)), objective)


def trained(learner: ActorCritic, batch: TrainBatch) -> TrainResult:
    learner.train(batch)
    for _ in range(4):
        if (found := learner.poll()) is not None:
            return found
    raise AssertionError("nothing came back")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def batch_of(learner: ActorCritic, version: int, rng: np.random.Generator) -> TrainBatch:
    policy = learner.policy.rank._learner  # type: ignore[attr-defined]
    groups = [group(policy, prompt, version, rng) for prompt in PROMPTS]
    return build_batch(groups, learner.objective, 2, version, 4, 0, MismatchConfig(stop_above=1e-3))


def test_the_reward_rises_and_the_critic_learns_what_to_expect(base: Path) -> None:
    learner = actor_critic(base, Ppo(kl_target=0.5))
    policy, rng = learner.policy.rank._learner, np.random.default_rng(0)  # type: ignore[attr-defined]
    before = chance_of_reward(policy)
    results = [trained(learner, batch_of(learner, version, rng)) for version in range(8)]
    assert chance_of_reward(policy) > before + 0.2
    errors = [result.metrics["critic/loss"] for result in results]
    assert np.mean(errors[-3:]) < errors[0]
    assert results[-1].metrics["kl/sequence"] > results[0].metrics["kl/sequence"]
    assert results[0].metrics["kl/sequence"] == pytest.approx(0.0, abs=1e-4)  # the reference is the first policy
    coefs = [result.metrics["kl/coef"] for result in results]
    assert coefs[:2] == pytest.approx([0.02, 0.02 * 0.98])  # below its target
    assert all(result.mismatch is not None for result in results)


def test_what_each_is_given_follows_from_the_other(base: Path) -> None:
    learner = actor_critic(base, Ppo(whiten=False, gae_lambda=1.0))
    rewards = samples()
    batch = TrainBatch((Minibatch.of(rewards[:4]), Minibatch.of(rewards[4:])), (), 0)
    trained(learner, batch)
    (looked, asked), (trains, given) = learner.policy.begun  # type: ignore[attr-defined]
    assert (looked, trains, len(asked)) == ("look", "train", len(rewards))
    (_, _), (_, learned) = learner.critic.begun  # type: ignore[attr-defined]
    assert [len(part) for part in learned] == [4, len(rewards) - 4]
    shown = [sample for minibatch in given.minibatches for sample in minibatch.samples]
    targets = [sample for part in learned for sample in part]
    for sample, target in zip(shown, targets, strict=True):
        np.testing.assert_allclose(target.returns, sample.token_advantages + target.old_values, atol=1e-5)
        assert target.returns[-1] == pytest.approx(sample.advantage, abs=0.02 * 8)  # the score, and one token's KL


def test_a_resume_is_exact_and_a_death_of_either_is_forgotten(base: Path, tmp_path: Path) -> None:
    learner, rng = actor_critic(base, Ppo(kl_target=0.5)), np.random.default_rng(0)
    first, second = (batch_of(learner, 0, rng) for _ in range(2))
    trained(learner, first)
    (tmp_path / "saved").mkdir()
    learner.save(tmp_path / "saved")
    expected = trained(learner, second)
    learner.load(tmp_path / "saved")
    again = trained(learner, second)
    assert again.metrics == expected.metrics
    assert [step.metrics for step in again.steps] == [step.metrics for step in expected.steps]
    learner.critic.dies_on = "train"  # type: ignore[attr-defined]
    with pytest.raises(RanksLost):
        trained(learner, second)
    learner.critic.dies_on = ""  # type: ignore[attr-defined]
    learner.load(tmp_path / "saved")
    assert not learner.outstanding
    assert trained(learner, second).metrics == expected.metrics


def value_samples(seed: int) -> list[ValueSample]:
    rng = np.random.default_rng(seed)
    draw = lambda sample: rng.normal(size=len(sample.response_ids)).astype(np.float32)  # noqa: E731
    return [ValueSample(s.prompt_id, s.prompt_ids, s.response_ids, draw(s), draw(s)) for s in samples(9, seed)]


def test_values_are_those_before_each_token_and_no_layout_shows(base: Path) -> None:
    found = []
    for budget in (128, 1000):
        config = replace(CONFIG, token_budget=budget)
        trainer = Trainer(load_sharded(base, config, 3), config, ValueRows())
        batch = value_samples(1)
        values = trainer.measure(batch, values_of)
        metrics = trainer.step(batch).metrics
        found.append((values, [metrics[name] for name in ("loss", "grad_norm", "value", "return", "clipped")]))
        if budget == 128:
            model: Any = load_sharded(base, config, 3)
            for sample, values_R in zip(batch, values, strict=True):
                ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
                with torch.no_grad():
                    hidden = model.model(input_ids=ids[None]).last_hidden_state
                    scores_T = model.score(hidden)[0, :, 0]
                np.testing.assert_allclose(values_R, scores_T[len(sample.prompt_ids) - 1 : -1].numpy(), atol=2e-5)
    np.testing.assert_allclose(np.concatenate(found[0][0]), np.concatenate(found[1][0]), atol=2e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)
    assert all(
        micro.returns_K.numel() == int(micro.mask_T.sum()) for micro in ValueRows().micro_batches(batch, Share(128))
    )


def test_a_critic_of_another_tokenizer_or_without_a_head_is_refused_in_one_line(tmp_path: Path) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    write_checkpoint("qwen3", base)
    write_tokenizer(base)
    with pytest.raises(UserError, match=r"architectures.*must be a \.\.\.ForSequenceClassification"):
        check_critic(RewardCheckpoint(base), base, 64)
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForSequenceClassification"]}))
    with pytest.raises(UserError, match=r"other: score\.weight: got 'no such tensor'; a critic begins"):
        check_critic(RewardCheckpoint(other), base, 64)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    tokenizer["model"]["vocab"] |= {words[-1]: tokenizer["model"]["vocab"][words[-2]], words[-2]: len(words) - 1}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="must have the tokenizer of the policy's base"):
        check_critic(RewardCheckpoint(other), base, 64)


def test_a_critic_of_any_size_that_holds_the_sequences_and_gives_one_number(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForSequenceClassification

    base = tmp_path / "base"
    write_checkpoint("qwen3", base)
    sizes = {"vocab_size": 304, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": None}  # fmt: skip
    for labels in (1, 2):
        critic = RewardCheckpoint(tmp_path / str(labels))
        LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=labels)).save_pretrained(critic.path)
        write_tokenizer(critic.path)
        if labels == 1:
            check_critic(critic, base, 64)
            with pytest.raises(UserError, match="max_position_embeddings=64'; must hold the sequences of the policy"):
                check_critic(critic, base, 65)
            weights = load_file(critic.path / "model.safetensors")
            del weights["model.norm.weight"]
            save_file(weights, critic.path / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(UserError, match=r"model\.norm\.weight: got 'no such tensor'"):
                check_critic(critic, base, 64)
        else:
            with pytest.raises(UserError, match=r"score\.weight: got \(2, 16\); must give one number"):
                check_critic(critic, base, 64)


def test_a_critic_is_found_by_the_run_that_made_it(tmp_path: Path) -> None:
    from framework.config import build_graph, compose

    write_checkpoint("qwen3", tmp_path / "base")
    made = tmp_path / "runs" / "rm1" / "artifacts" / "reward_model-0123456789ab" / "model"
    shutil.copytree(tmp_path / "base", made)
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "{i} + 1?", "answer": "{i + 1}"}}\n' for i in range(64)))
    lengths = [f"stage.{stage}.max_tokens=24" for stage in ("grpo", "evaluate")]
    words = ["job=grpo", "algorithm=ppo", f"base={tmp_path / 'base'}", f"data.train={tmp_path / 'p.jsonl'}", *lengths]
    words += ["stage.grpo.critic=rm1", f"runs_dir={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match="rm1'; this run has no finished RewardCheckpoint yet"):
        build_graph(compose(words))
    write_manifest(RewardCheckpoint(made), "reward_model", {}, {}, "")
    with pytest.raises(UserError, match=r"model/config\.json: got .*must be a \.\.\.ForSequenceClassification"):
        build_graph(compose(words))


def test_pretraining_beside_a_policy_is_the_sum_of_both_gradients() -> None:
    """In one step, whatever the split: the policy's loss and gamma times the mean nll of the text."""
    rng, coef = np.random.default_rng(0), 0.7
    text = tuple(rng.integers(0, VOCAB, n).astype(np.int32) for n in (9, 30, 17))
    rows = PolicyRows(Ppo(kl_coef=0.0))
    mixed = replace(Minibatch.of(samples()), pretraining=text)
    found = []
    for budget in (128, 1000):
        config = replace(CONFIG, token_budget=budget, clip=1e9)
        learner = PublishedPolicy(tiny_model(), config, rows, PretrainingMix(rows, coef))
        found.append(learner.train_minibatch(mixed).metrics)
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-4)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-4)
    model = tiny_model()
    nll, tokens = 0.0, 0
    for row in text:
        ids = torch.from_numpy(row).long()[None]
        with torch.no_grad():
            logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        nll -= float(logprobs.gather(1, ids[0, 1:, None]).sum())
        tokens += len(row) - 1
    alone = (
        PublishedPolicy(tiny_model(), replace(CONFIG, clip=1e9), rows).train_minibatch(Minibatch.of(samples())).metrics
    )
    assert found[1]["pretraining_nll"] == pytest.approx(nll / tokens, rel=1e-4)
    assert found[1]["loss"] == pytest.approx(alone["loss"] + coef * nll / tokens, rel=1e-4)
    assert found[1]["ratio"] == pytest.approx(alone["ratio"], rel=1e-4)
