"""DeepSeek-R1 whole, from raw text to distilled students; node names are those of the paper's models.

collect, clean, tokenizer, tokenize -> v3_base -> r1_zero -> cold_start -> dev1 -> dev2 -> rejection
v3_base + (rejection + v3_data -> mix) -> dev3 -> helpful_rm, safety_rm
dev3, general prompts with both reward models in the last steps -> r1
mix -> distill_qwen, distill_llama; qwen_base -> qwen_zero, the same student by reinforcement learning alone
every checkpoint -> eval_<its name>

Source: DeepSeek-R1 (2501.12948v2) figure 2, sections B.3 and B.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from framework.artifacts import Checkpoint
from framework.config import RunConfig, fresh_model
from framework.data.chat_template import TemplateConfig
from framework.data.think_tags import ThinkTags, check_think_tags
from framework.errors import UserError
from framework.graph.nodes import Edge, Graph, OutputRef
from framework.models.estimate import rl_hours, sampling_hours
from framework.models.families.base import ModelConfig
from framework.models.scalar_head import check_scalar_head
from framework.rewards.connected import lacking_models
from framework.stages.chat_model import ChatModel
from framework.stages.chats import EncodeChats
from framework.stages.cold_start import ColdStart
from framework.stages.distill import DistillConfig
from framework.stages.evaluate import Evaluate
from framework.stages.given import GivenCheckpoint
from framework.stages.grpo import Grpo, GrpoConfig
from framework.stages.mix import Mix
from framework.stages.preference_pairs import MakePairs
from framework.stages.preferences import EncodePreferences
from framework.stages.pretrain import Pretrain
from framework.stages.rejection import RejectionSampling
from framework.stages.reward_model import RewardModel
from framework.stages.safety_labels import LabelSafety
from framework.stages.sampled_chats import SampledConfig
from framework.stages.sft import Sft, SftConfig
from framework.stages.tokenizer import Tokenize, TrainTokenizer
from framework.stages.v3_data import MakeV3Data
from jobs.base_model import BaseModel, add_base_model

OWN = TemplateConfig()  # the one that a checkpoint's tokenizer carries
R1_CHAT = TemplateConfig("r1")  # of everything behind R1-Zero; it travels with each checkpoint's tokenizer
SUMMARY_CHAT = TemplateConfig("v3")  # of the helpful reward model, which reads no reasoning
MEAN_TOKENS = 8000  # of a response, for comparison with the paper: the estimates themselves count its limit
# H800 hours that the paper gives (R1 v2 B.4.4; V3 Table 1).
PAPER = {
    "v3_base": "the paper's own: 2,664,000 H800 hours, and 119,000 of context extension",
    "r1_zero": "the paper's own: 101,000 H800 hours",
    "cold_start": "the paper's own: 5,000 H800 hours with rejection and the rest of the SFT data",
    "rejection": "the paper's own: 5,000 H800 hours with cold_start and the rest of the SFT data",
    "dev2": "the paper's own: 41,000 H800 hours with r1",
    "r1": "the paper's own: 41,000 H800 hours with dev2",
}


def build(config: RunConfig) -> Graph:
    """Return the graph of the R1 job; reads the prompts that are given."""
    graph, stage, model = Graph(), config.stage, fresh_model(config)
    for setting in ("helpful_rewards", "safety_rewards"):
        for name in ("r1", "evaluate_each"):
            stage[name].reward.check_names(getattr(stage["v3_data"], setting), f"stage.v3_data.{setting}")
    start = add_base_model(graph, config, "v3_base", stage["r1_zero"], stage["evaluate_each"])
    r1 = _Recipe(graph, config, start)
    r1_zero = r1.trained("r1_zero", model, start.base, start.template)
    cold_start = ColdStart(stage["cold_start"], model, start.template)
    writer = r1.asked("writer", "cold_start")
    chats = graph.add("cold_start", cold_start, checkpoint=r1_zero, prompts=start.prompts, **writer).out("chats")
    dev1 = r1.tuned("dev1", stage["dev1"], model, start.base, chats)
    dev2 = r1.trained("dev2", model, dev1)
    sampling = RejectionSampling(stage["rejection"], model)
    rejection = graph.add("rejection", sampling, checkpoint=dev2, prompts=start.prompts).out("chats")
    general = graph.add("v3_data", MakeV3Data(stage["v3_data"]), **r1.asked("writer", "v3_data"))
    mixed = graph.add("mix", Mix(stage["mix"]), reasoning=rejection, general=general.out("chats")).out("chats")
    dev3 = r1.tuned("dev3", stage["dev3"], model, start.base, mixed)
    asked = general.out("prompts")
    pairs, labels = (
        graph.add(name, make(stage[name], model), checkpoint=dev3, prompts=asked, **r1.asked("judge", name))
        for name, make in (("helpful_pairs", MakePairs), ("safety_labels", LabelSafety))
    )
    helpful = r1.rewarding("helpful_rm", model, dev3, pairs.out("pairs"), SUMMARY_CHAT)
    safety = r1.rewarding("safety_rm", model, dev3, labels.out("labels"), R1_CHAT)
    r1.trained("r1", model, dev3, late=asked, helpful=helpful, safety=safety)
    bases = {name: r1.student(name) for name in ("qwen", "llama")}
    for name, base in bases.items():
        r1.distilled(f"distill_{name}", base, mixed)
    r1.trained("qwen_zero", config.sizes["qwen_zero"], bases["qwen"], start.template)
    r1.evaluate(asked, {"helpful": helpful, "safety": safety})
    if model.name == "v3_671b":
        graph.notes |= {name: text + _at_mean_length(name, config, model) for name, text in PAPER.items()}
    return graph


def _at_mean_length(name: str, config: RunConfig, model: ModelConfig) -> str:
    """What this plan comes to where responses are as long as the paper's may have been; empty for a pretraining."""
    settings, cluster = config.stage[name], config.cluster
    machine = (cluster.gpus, cluster.gpu_tflops, cluster.cpus)
    if isinstance(settings, GrpoConfig):
        responses = settings.steps * settings.prompts_per_step * settings.group_size
        hours = rl_hours(model, responses * MEAN_TOKENS, *machine)
    elif isinstance(settings, SampledConfig):
        responses = (settings.most_prompts or settings.expected_prompts) * settings.sampling.n
        hours = sampling_hours(model, responses * MEAN_TOKENS, *machine)
    else:
        return ""
    return f"; here {hours * cluster.gpus:,.0f} GPU hours at {MEAN_TOKENS:,} tokens a response"


@dataclass(frozen=True)
class _Recipe:
    """Adds the nodes that training takes; settings and node have the same name."""

    graph: Graph
    config: RunConfig
    start: BaseModel
    results: dict[str, tuple[Edge, TemplateConfig]] = field(default_factory=dict)  # what is evaluated, under which

    def trained(
        self, name: str, model: ModelConfig, base: Edge, template: TemplateConfig = OWN, **more: OutputRef
    ) -> OutputRef:
        """Reinforcement learning."""
        rl, evaluating = self.config.stage[name], self.config.stage["evaluate_each"]
        stage = Grpo(rl, model, template, evaluating if rl.evaluate_every else None)
        policy = self.graph.add(name, stage, base=base, prompts=self.start.prompts, **more).out("policy")
        self.results[name] = (policy, template)
        return policy

    def tuned(
        self,
        name: str,
        settings: SftConfig,
        model: ModelConfig,
        base: Edge,
        chats: OutputRef,
        think_tags: ThinkTags | None = None,
    ) -> OutputRef:
        """Fine-tuning on conversations, which a node of its own makes tokens; a student's tokenizer gets think tags."""
        stage = Sft(settings, model)
        encode = EncodeChats(stage.max_tokens, R1_CHAT, think_tags, drop_long=True)
        tokens = self.graph.add(f"{name}_tokens", encode, base=base, chats=chats)
        edges = {"base": base, "shards": tokens.out("shards"), "tokenizer": tokens.out("tokenizer")}
        tuned = self.graph.add(name, stage, **edges).out("tuned")
        self.results[name] = (tuned, OWN)
        return tuned

    def asked(self, role: str, name: str) -> dict[str, Edge]:
        """The model that a stage's settings name as its writer or judge, under that name; nothing for an endpoint."""
        chat: ChatModel | None = getattr(self.config.stage[name], role)
        if chat is None or chat.url:
            return {}
        if (given := chat.given()) is not None:
            return {role: given}
        if chat.node not in self.results:
            allowed = f"must be a model that is trained before {name}: {', '.join(self.results)}"
            raise UserError(f"stage.{name}.{role}.node", chat.node, allowed)
        return {role: self.results[chat.node][0]}

    def rewarding(
        self, name: str, model: ModelConfig, base: Edge, judged: OutputRef, template: TemplateConfig
    ) -> OutputRef:
        """A reward model on judged answers, which a node of its own makes tokens."""
        check_scalar_head(model.model_type)
        settings = self.config.stage[name]
        stage = RewardModel(settings, model)
        encode = EncodePreferences(stage.max_tokens, settings.engine.token_budget, settings.kind, template)
        tokens = self.graph.add(f"{name}_tokens", encode, base=base, preferences=judged)
        edges = {"base": base, "shards": tokens.out("shards"), "tokenizer": tokens.out("tokenizer")}
        return self.graph.add(name, stage, **edges).out("reward")

    def distilled(self, name: str, base: Edge, chats: OutputRef) -> None:
        """Fine-tuning of a student on the teacher's conversations."""
        settings: DistillConfig = self.config.stage[name]
        model = self.config.sizes[name]
        self.tuned(name, settings.at_rate_of(model.name), model, base, chats, settings.think_tags)

    def student(self, name: str) -> Edge:
        """The student before it learns anything of R1: yours, or one pretrained on this run's text."""
        stage, start, graph = self.config.stage, self.start, self.graph
        settings, model = stage[f"distill_{name}"], self.config.sizes[f"distill_{name}"]
        where = f"stage.distill_{name}.think_tags"
        if settings.base is not None:
            given = Checkpoint(settings.base.absolute()).check()
            check_think_tags(given.path, settings.think_tags, where)
            return given
        if not settings.pretrained_here:
            given = GivenCheckpoint(f"stage.distill_{name}.base", model.name)
            return graph.add(f"{name}_base", given).out("base")
        if settings.think_tags == "found":
            allowed = "must be added or spelled: the tokenizer that this run trains for its student has no such tokens"
            raise UserError(where, "found", allowed)
        vocabulary = TrainTokenizer(stage["student_tokenizer"], model.max_position_embeddings, model.vocab_size)
        tokenizer = graph.add(f"{name}_tokenizer", vocabulary, text=start.text).out("tokenizer")
        tokens = graph.add(f"{name}_tokenize", Tokenize(stage["tokenize"]), text=start.text, tokenizer=tokenizer)
        pretrain = Pretrain(stage[f"{name}_base"], model)
        return graph.add(f"{name}_base", pretrain, shards=tokens.out("shards"), tokenizer=tokenizer).out("base")

    def evaluate(self, general: OutputRef, models: Mapping[str, OutputRef]) -> None:
        """Every checkpoint, on held-out prompts and general requests; by reward models where the settings have some."""
        evaluating, found = self.config.stage["evaluate_each"], {"v3_base": (self.start.base, self.start.template)}
        more = {"general": general} | {name: models[name] for name in lacking_models(evaluating.reward, models)}
        for name, (checkpoint, template) in (found | self.results).items():
            stage = Evaluate(evaluating, name, template)
            self.graph.add(f"eval_{name}", stage, checkpoint=checkpoint, prompts=self.start.prompts, **more)
