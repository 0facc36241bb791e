"""The classic route: pretraining -> fine-tuning on demonstrations -> a reward model from rankings -> RLHF with PPO.

demonstrations -> tokenizer, tokenize -> base -> sft -> rankings -> reward_model -> rlhf; sft and rlhf evaluated, with
the KL divergence of rlhf from sft

On the same graph by one setting: another policy objective in PPO's place (`stage.rlhf.algorithm=grpo`, `online_dpo`);
DPO on the same rankings without a reward model (`stage.align.method=dpo`, `stage.rlhf_dpo.preference` for IPO, KTO,
ORPO); fine-tuning on the best of n answers (`stage.align.method=best_of_n`). `stage.align.beside` trains others beside
the first, from the same reward model. `base=DIR` begins with a base of your own, without the pretraining.

Source: InstructGPT (2203.02155) figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from framework.artifacts import TokenizerDir
from framework.config import RunConfig, fresh_model, given_base
from framework.data.chat_template import TemplateConfig
from framework.errors import UserError
from framework.graph.nodes import Edge, Graph, OutputRef
from framework.models.families.base import ModelConfig
from framework.models.scalar_head import check_scalar_head
from framework.stages.best_of_n import BestOfN
from framework.stages.chats import EncodeChats
from framework.stages.demonstrations import MakeDemonstrations
from framework.stages.divergence import Divergence
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


Method = Literal["rl", "dpo", "best_of_n"]
Other = Literal["grpo", "dpo", "best_of_n"]


@dataclass(frozen=True)
class AlignConfig:
    """What comes behind the reward model."""

    method: Method = "rl"  # rl: by stage.rlhf.algorithm
    beside: tuple[Other, ...] = ()  # others, for the report's comparison

    def __post_init__(self) -> None:
        every = (self.method, *self.beside)
        if len(set(every)) < len(every):
            allowed = f"must be others than method={self.method}, each once"
            raise UserError("beside", ", ".join(self.beside), allowed)


@dataclass(frozen=True)
class _Judged:
    """What every method may begin with."""

    config: RunConfig
    model: ModelConfig
    sft: OutputRef
    prompts: OutputRef
    reward: OutputRef
    shards: OutputRef  # rankings as tokens
    tokenizer: OutputRef
    text: Edge | None  # to pretrain on


def build(config: RunConfig) -> Graph:
    """Return the graph of the job."""
    graph, stage = Graph(), config.stage
    made = graph.add("demonstrations", MakeDemonstrations(stage["demonstrations"]))
    prompts = made.out("prompts")
    base, model, text = _base(graph, config, made.out("text"))
    check_scalar_head(model.model_type)
    sft = _tuned(graph, config, model, "sft", base, made.out("chats"), CHAT)
    ranked = graph.add("rankings", MakeRankings(stage["rankings"], model), checkpoint=sft, prompts=prompts)
    settings = stage["reward_model"]
    rewarding = RewardModel(settings, model)
    encode = EncodePreferences(rewarding.max_tokens, settings.engine.token_budget, settings.kind)
    encoded = graph.add("reward_model_tokens", encode, base=sft, preferences=ranked.out("rankings"))
    shards, tokenizer = encoded.out("shards"), encoded.out("tokenizer")
    reward = graph.add("reward_model", rewarding, base=sft, shards=shards, tokenizer=tokenizer).out("reward")
    judged = _Judged(config, model, sft, prompts, reward, shards, tokenizer, text)
    align: AlignConfig = stage["align"]
    policies = [("rlhf", _aligned(graph, judged, align.method))]
    policies += [(f"rlhf_{method}", _aligned(graph, judged, method)) for method in align.beside]
    graph.add("eval_sft", Evaluate(stage["evaluate"], "sft"), checkpoint=sft, prompts=prompts, helpful=reward)
    for name, policy in policies:
        evaluate = Evaluate(stage["evaluate"], name, divergence=Divergence(settings.engine))
        graph.add(f"eval_{name}", evaluate, checkpoint=policy, prompts=prompts, helpful=reward, reference=sft)
    return graph


def _base(graph: Graph, config: RunConfig, text: OutputRef) -> tuple[Edge, ModelConfig, Edge | None]:
    """The base, its sizes, and text as its tokens: pretrained here, or the one that is given."""
    stage = config.stage
    if config.base is not None and not config.from_:
        base, model = given_base(config)
        if not model.policy:
            raise UserError("base", str(config.base), f"must be a model that vLLM samples from, not {model.model_type}")
        if not stage["rlhf"].pretraining_coef:
            return base, model, None
        tokenizer = TokenizerDir(base.path)
        return (
            base,
            model,
            graph.add("tokenize", Tokenize(stage["tokenize"]), text=text, tokenizer=tokenizer).out("shards"),
        )
    model = fresh_model(config)
    vocabulary = TrainTokenizer(stage["tokenizer"], model.max_position_embeddings, model.vocab_size)
    made = graph.add("tokenizer", vocabulary, text=text).out("tokenizer")
    shards = graph.add("tokenize", Tokenize(stage["tokenize"]), text=text, tokenizer=made).out("shards")
    return graph.add("base", Pretrain(stage["base"], model), shards=shards, tokenizer=made).out("base"), model, shards


def _aligned(graph: Graph, judged: _Judged, method: Method | Other) -> OutputRef:
    """The policy that a method makes of the fine-tuned model."""
    config, stage, model = judged.config, judged.config.stage, judged.model
    if method == "dpo":
        edges = {"base": judged.sft, "shards": judged.shards, "tokenizer": judged.tokenizer}
        return graph.add("rlhf_dpo", PreferenceTuning(stage["rlhf_dpo"], model), **edges).out("tuned")
    if method == "best_of_n":
        best = BestOfN(stage["best_of_n"], model)
        asked = {"checkpoint": judged.sft, "prompts": judged.prompts, "helpful": judged.reward}
        chats = graph.add("best_of_n", best, **asked).out("chats")
        return _tuned(graph, config, model, "rlhf_sft", judged.sft, chats, TemplateConfig())
    name = "rlhf" if method == "rl" else f"rlhf_{method}"
    rl, more = stage[name], dict[str, Edge]()
    if rl.algorithm.critic is not None:
        more["critic"] = judged.reward
    if rl.pretraining_coef and judged.text is not None:
        more["text"] = judged.text
    tuning = Grpo(rl, model, evaluate=stage["evaluate"] if rl.evaluate_every else None)
    return graph.add(name, tuning, base=judged.sft, prompts=judged.prompts, helpful=judged.reward, **more).out("policy")


def _tuned(
    graph: Graph,
    config: RunConfig,
    model: ModelConfig,
    name: str,
    base: Edge,
    chats: OutputRef,
    template: TemplateConfig,
) -> OutputRef:
    """Fine-tuning on conversations, which a node of its own makes tokens."""
    settings: SftConfig = config.stage[name]
    stage = Sft(settings, model)
    tokens = graph.add(
        f"{name}_tokens", EncodeChats(stage.max_tokens, template, drop_long=True), base=base, chats=chats
    )
    edges = {"base": base, "shards": tokens.out("shards"), "tokenizer": tokens.out("tokenizer")}
    return graph.add(name, stage, **edges).out("tuned")
