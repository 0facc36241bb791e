"""Plug-ins of the end-to-end tests: a reward that even an untrained model earns sometimes, and a job of GRPO alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from framework.artifacts import Checkpoint, PromptSet
from framework.config import RunConfig
from framework.graph.nodes import Graph
from framework.rewards.base import Reward
from framework.stages.grpo import Grpo
from framework.types import Prompt, Response
from jobs import r1


@dataclass(frozen=True, kw_only=True)
class EvenText(Reward):
    """1 for a text of even length: about half of all responses, so that groups have signal."""

    def __call__(self, prompt: Prompt, response: Response) -> float:
        return float(len(response.text) % 2 == 0)


@dataclass(frozen=True)
class Start:
    """What GRPO starts from: directories of finished artifacts."""

    base: Path
    prompts: Path


def build_grpo_only(config: RunConfig) -> Graph:
    """Return a graph of one node."""
    graph, start = Graph(), config.stage["start"]
    assert config.model is not None
    grpo = Grpo(config.stage["grpo"], config.model)
    graph.add("grpo", grpo, base=Checkpoint(start.base), prompts=PromptSet(start.prompts))
    return graph


# The second student, and the student by reinforcement learning alone: kinds of node that the recipe has elsewhere too.
LEFT_OUT = ("llama_tokenizer", "llama_tokenize", "llama_base", "distill_llama_tokens", "distill_llama", "qwen_zero")


def build_r1(config: RunConfig) -> Graph:
    """Return the R1 job's graph without the nodes of `LEFT_OUT` and without evaluations."""
    graph = r1.build(config)
    kept = {name: node for name, node in graph.nodes.items() if name not in LEFT_OUT and not name.startswith("eval_")}
    return Graph(kept)
