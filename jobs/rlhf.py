"""The classic route: pretraining -> fine-tuning on demonstrations -> a reward model from rankings -> RLHF with PPO.

demonstrations -> tokenizer, tokenize -> base -> sft -> rankings -> reward_model -> rlhf; sft and rlhf evaluated

On the same graph by one setting: another policy objective in PPO's place (`stage.rlhf.algorithm=grpo`, `online_dpo`);
DPO on the same rankings without a reward model (`stage.align.method=dpo`, `stage.rlhf_dpo.preference` for IPO, KTO,
ORPO); fine-tuning on the best of n answers (`stage.align.method=best_of_n`). `from=sft_tokens base=DIR` begins with a
base of your own.

Source: InstructGPT (2203.02155) figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from framework.config import RunConfig, fresh_model
from framework.data.chat_template import TemplateConfig
from framework.graph.nodes import Edge, Graph, OutputRef
from framework.models.scalar_head import check_scalar_head
from framework.stages.best_of_n import BestOfN
from framework.stages.chats import EncodeChats
from framework.stages.demonstrations import MakeDemonstrations
from framework.stages.dpo import PreferenceTuning
from framework.stages.evaluate import Evaluate
from framework.stages.grpo import Grpo
from framework.stages.preferences import EncodePreferences
from framework.stages.pretrain import Pretrain
from framework.stages.rankings import MakeRankings
from framework.stages.reward_model import RewardModel
from framework.stages.sft import Sft, SftConfig
from framework.stages.tokenizer import Tokenize, TrainTokenizer

CHAT = TemplateConfig("v3")  # travels with the checkpoint's tokenizer from the fine-tuning on


@dataclass(frozen=True)
class AlignConfig:
    """What comes behind the reward model."""

    method: Literal["rl", "dpo", "best_of_n"] = "rl"  # rl: by stage.rlhf.algorithm


def build(config: RunConfig) -> Graph:
    """Return the graph of the job."""
    graph, stage, model = Graph(), config.stage, fresh_model(config)
    check_scalar_head(model.model_type)
    made = graph.add("demonstrations", MakeDemonstrations(stage["demonstrations"]))
    text, prompts = made.out("text"), made.out("prompts")
    vocabulary = TrainTokenizer(stage["tokenizer"], model.max_position_embeddings, model.vocab_size)
    tokenizer = graph.add("tokenizer", vocabulary, text=text).out("tokenizer")
    shards = graph.add("tokenize", Tokenize(stage["tokenize"]), text=text, tokenizer=tokenizer).out("shards")
    base = graph.add("base", Pretrain(stage["base"], model), shards=shards, tokenizer=tokenizer).out("base")
    sft = _tuned(graph, config, "sft", base, made.out("chats"), CHAT)
    ranked = graph.add("rankings", MakeRankings(stage["rankings"], model), checkpoint=sft, prompts=prompts)
    settings = stage["reward_model"]
    rewarding = RewardModel(settings, model)
    encode = EncodePreferences(rewarding.max_tokens, settings.engine.token_budget, settings.kind)
    encoded = graph.add("reward_model_tokens", encode, base=sft, preferences=ranked.out("rankings"))
    judged = {"base": sft, "shards": encoded.out("shards"), "tokenizer": encoded.out("tokenizer")}
    reward = graph.add("reward_model", rewarding, **judged).out("reward")
    method = stage["align"].method
    if method == "dpo":
        policy = graph.add("rlhf_dpo", PreferenceTuning(stage["rlhf_dpo"], model), **judged).out("tuned")
    elif method == "best_of_n":
        best = BestOfN(stage["best_of_n"], model)
        chats = graph.add("best_of_n", best, checkpoint=sft, prompts=prompts, helpful=reward).out("chats")
        policy = _tuned(graph, config, "rlhf_sft", sft, chats, TemplateConfig())
    else:
        rl, more = stage["rlhf"], dict[str, OutputRef]()
        if rl.algorithm.critic is not None:
            more["critic"] = reward
        if rl.pretraining_coef:
            more["text"] = shards
        evaluating = stage["evaluate"] if rl.evaluate_every else None
        tuning = Grpo(rl, model, evaluate=evaluating)
        policy = graph.add("rlhf", tuning, base=sft, prompts=prompts, helpful=reward, **more).out("policy")
    for name, checkpoint in (("sft", sft), ("rlhf", policy)):
        evaluate = Evaluate(stage["evaluate"], name)
        graph.add(f"eval_{name}", evaluate, checkpoint=checkpoint, prompts=prompts, helpful=reward)
    return graph


def _tuned(
    graph: Graph, config: RunConfig, name: str, base: Edge, chats: OutputRef, template: TemplateConfig
) -> OutputRef:
    """Fine-tuning on conversations, which a node of its own makes tokens."""
    settings: SftConfig = config.stage[name]
    stage = Sft(settings, fresh_model(config))
    tokens = graph.add(
        f"{name}_tokens", EncodeChats(stage.max_tokens, template, drop_long=True), base=base, chats=chats
    )
    edges = {"base": base, "shards": tokens.out("shards"), "tokenizer": tokens.out("tokenizer")}
    return graph.add(name, stage, **edges).out("tuned")
