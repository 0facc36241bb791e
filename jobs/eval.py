"""Evaluation of your own model on held-out prompts, or on a public benchmark."""

from __future__ import annotations

from dataclasses import replace

from framework.artifacts import Checkpoint, TokenizerDir
from framework.config import BenchmarkConfig, RunConfig, given_base
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.evaluate import Evaluate
from framework.stages.lengths import fit_lengths
from framework.stages.prompts import PreparePrompts, PromptsConfig, check_prompts, longest_tokens
from framework.stages.text_eval import EvaluateText, ReadText, check_reads
from framework.stages.text_tokens import TokenizeSentences
from framework.types import Prompt


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads the prompts, or for a model that only reads, and where it is asked, text."""
    if config.stage["text"].asked or (config.base is not None and config.model is None):
        return _of_text(config)
    if not isinstance(config.data, PromptsConfig):
        raise UserError("data", type(config.data).__name__, "must be prompts")
    if config.data.heldout is None and config.data.train is None:
        raise UserError(
            "data.heldout", None, "must name a file, glob, folder or hub data set of prompts; or benchmark=NAME"
        )
    base, model = given_base(config)
    evaluating = config.stage["evaluate"]
    _, heldout = _read(config.data, config.benchmark)
    evaluating.reward.check_prompts(heldout)
    longest = longest_tokens(base.path, heldout, config.template)
    engine, max_tokens, note = fit_lengths(evaluating.engine, model, longest, evaluating.max_tokens)
    check_prompts(base.path, heldout, config.template, engine.max_model_len, max_tokens)
    graph = Graph()
    prepare = PreparePrompts(config.data, config.template, evaluating.reward)
    prompts = graph.add("prompts", prepare, base=base).out("prompts")
    label = config.benchmark.name or "base"
    evaluate = Evaluate(replace(evaluating, max_tokens=max_tokens, engine=engine), label, note=note)
    graph.add("eval", evaluate, checkpoint=base, prompts=prompts)
    return graph


def _of_text(config: RunConfig) -> Graph:
    text = config.stage["text"]
    if isinstance(config.data, PromptsConfig) and (config.data.heldout or config.data.train):
        given = "data.heldout" if config.data.heldout else "data.train"
        allowed = (
            "must be left out with stage.text, or for a model that answers no prompts: evaluate one after the other"
        )
        raise UserError(given, config.data.heldout or config.data.train, allowed)
    if config.base is None:
        raise UserError("base", None, "must name the checkpoint directory, or the hub id, to evaluate")
    if not text.asked:
        allowed = (
            "must name text for a model that answers no prompts; or stage.text.train and stage.text.heldout, labelled"
        )
        raise UserError("stage.text.documents", None, allowed)
    graph, base = Graph(), Checkpoint(config.base.absolute()).check()
    check_reads(base.path, text)
    read = graph.add("text", ReadText(text)).out("text")
    shards = graph.add("tokens", TokenizeSentences(), text=read, tokenizer=TokenizerDir(base.path)).out("shards")
    label = config.benchmark.name or "base"
    graph.add("eval", EvaluateText(text, label), checkpoint=base, text=read, shards=shards)
    return graph


def _read(data: PromptsConfig, benchmark: BenchmarkConfig) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The prompts; a benchmark that cannot be fetched says what else is possible."""
    try:
        return data.read()
    except UserError as error:
        if error.where != "data.heldout" or data.heldout != benchmark.file:
            raise
        raise UserError("benchmark.file", benchmark.file, f"{error.allowed}; or give its file") from None
