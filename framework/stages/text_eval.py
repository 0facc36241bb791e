"""Evaluation of a model by text: what it predicts of documents, and what a classifier made of it learns from labels.

For every model of `job=transformers`: masked or permuted tokens of the encoders, next tokens of the others. Labelled
texts are GLUE's (`data.glue`): the model is fine-tuned beside one of its sizes that was never pretrained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from framework.artifacts import Checkpoint, TextSet, TokenShards, read_json
from framework.bounds import NonNegativeInt, PositiveInt, bounded
from framework.data.glue import LabelledText, classes_of, read_labelled
from framework.data.layouts.documents import text_in
from framework.data.masking import Masking
from framework.data.remote import DataFile
from framework.data.rows import file_rows
from framework.data.sources import find_source
from framework.data.text.shard_files import Document, document_id, write_text
from framework.data.text_tokenizers import control_code
from framework.data.tokenizer_files import load_tokenizer
from framework.data.word_order import Labelled
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.models.table import READERS
from framework.roles.assess_worker import Assessment, FineTuning, Writing
from framework.roles.text_data import Causal, Coded, Masked, Permuted, Source
from framework.stages.assess import AssessedTransformer, assessed, written_assessment
from framework.stages.collect import NoInputs
from framework.stages.documents import CollectedDocuments
from framework.types import Assessed

_LABELLED = "text"  # the domain of labelled texts


@dataclass(frozen=True)
@bounded
class TextEvalConfig:
    """What is read. Files, globs, folders or hub data sets (`data.sources`); a file's name is its documents' domain."""

    documents: str | None = None  # to predict
    train: str | None = None  # labelled texts to learn from
    heldout: str | None = None  # and to measure on
    sequences: PositiveInt = 512  # of the documents, at most
    max_tokens: NonNegativeInt = 0  # of a sequence; 0: the model's context, at most 512
    masking: Masking = Masking()
    # 2,000 texts are a minute on a core with a small model; GLUE's scores are of all (texts=100000), and 5e-5
    tuning: FineTuning = FineTuning(texts=2000, heldout=1000, epochs=3)
    seeds: PositiveInt = 3
    engine: DeepSpeedConfig = DeepSpeedConfig()  # its `schedule` is not used

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.learner"}

    def __post_init__(self) -> None:
        if (self.train is None) != (self.heldout is None):
            raise UserError("train", self.train, f"goes with heldout={self.heldout}: both or neither")

    @property
    def asked(self) -> bool:
        """Whether anything is named."""
        return self.documents is not None or self.train is not None

    def labelled(self) -> tuple[list[LabelledText], list[LabelledText]] | None:
        """Texts to train on and held-out ones; None without any. Raises UserError with file and line."""
        if self.train is None or self.heldout is None:
            return None
        return (
            read_labelled(self.train, "stage.text.train", "train", self.tuning.texts),
            read_labelled(self.heldout, "stage.text.heldout", "validation", self.tuning.heldout),
        )

    def read(self) -> list[Document]:
        """The documents; the labelled texts where none are named."""
        if self.documents is None:
            _, heldout = self.labelled() or ([], [])
            return [Document(document_id(_LABELLED, each.text), each.text, _LABELLED) for each in heldout]
        found = []
        for file in find_source(self.documents, "stage.text.documents").files:
            domain = _domain(file)
            texts = (text_in(row, {}, "stage.text.documents") for row in file_rows(file))
            found += [Document(document_id(domain, text), text, domain) for text in texts]
        return found

    def domains(self) -> list[str]:
        """Those of the documents of `read`, each once; nothing is read for it."""
        if self.documents is None:
            return [_LABELLED]
        return list(dict.fromkeys(map(_domain, find_source(self.documents, "stage.text.documents").files)))

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        named = (("documents", self.documents), ("train", self.train), ("heldout", self.heldout))
        return tuple(file for key, name in named if name for file in find_source(name, f"stage.text.{key}").local)


@dataclass(frozen=True)
class ReadText:
    """The stage: all documents as validation text, the first as the train text that such a set has."""

    config: TextEvalConfig

    def look_ahead(self) -> str:
        """Read what is named."""
        labelled = self.config.labelled()
        if labelled is not None:
            classes_of(*labelled, "stage.text")
        return f"{len(self.config.read()):,} documents" + (f", {len(labelled[0]):,} labelled texts" if labelled else "")

    def run(self, inputs: NoInputs, runtime: Runtime) -> CollectedDocuments:
        """Write them."""
        documents, directory = self.config.read(), runtime.artifact_dir("text")
        write_text(directory, {"train": documents[:1], "validation": documents})
        return CollectedDocuments(TextSet(directory))


@dataclass(frozen=True)
class TextEvalInputs:
    """The model, the text, and the text as its tokens."""

    checkpoint: Checkpoint
    text: TextSet
    shards: TokenShards


@dataclass(frozen=True)
class EvaluateText:
    """The stage; `label` names the checkpoint in the report."""

    config: TextEvalConfig
    label: str

    def run(self, inputs: TextEvalInputs, runtime: Runtime) -> AssessedTransformer:
        """Write assessment.json; begins again after a stop."""
        config, place = self.config, inputs.checkpoint.path
        sizes = read_json(place / "config.json")
        learns = learned_by(sizes, place, config.masking, config.domains())
        longest = config.max_tokens or min(512, context_of(sizes))
        labelled = config.labelled()
        classes = classes_of(*labelled, "stage.text") if labelled else ["0", "1"]
        task = Assessment(
            checkpoint=place,
            text=inputs.text.path,
            data=learns.data(Source(inputs.shards.path, place, 1, longest, config.sequences)),
            engine=replace(config.engine, dtype="float32", mtp_coef=0.0),
            tuning=config.tuning,
            longest=longest,
            writing=Writing(),
            prompts=(),
            labelled=None if labelled is None else (_numbered(labelled[0], classes), _numbered(labelled[1], classes)),
            classes=len(classes),
        )
        held_out, _, tuned, fresh = assessed(task, config.seeds if labelled else 0, runtime)
        parameters = int(held_out.pop("parameters"))
        kind, learned = str(sizes.get("model_type")), type(learns).__name__.lower()
        return written_assessment(Assessed(self.label, kind, learned, parameters, held_out, tuned, fresh, {}), runtime)


def learned_by(sizes: Mapping[str, Any], checkpoint: Path, masking: Masking, domains: Sequence[str]) -> Any:
    """What a model of this config.json predicts; raises UserError for CTRL where the text's domains have no code."""
    kind = sizes.get("model_type")
    if kind == "ctrl":
        vocabulary = load_tokenizer(checkpoint).get_vocab()
        if not any(control_code(name) in vocabulary for name in domains):
            codes = ", ".join(sorted(token for token in vocabulary if token.startswith("<|")))
            allowed = f"must be of files that are named as a code of the model: {codes}"
            raise UserError("stage.text.documents", ", ".join(domains), allowed)
        return Coded()
    if kind == "xlnet":
        return Permuted()
    if kind not in READERS:
        return Causal()
    return Masked({"bert": "next", "albert": "order"}.get(str(kind), "full"), masking)  # type: ignore[arg-type]


def check_reads(checkpoint: Path, config: TextEvalConfig) -> None:
    """Raise UserError, before anything is read, as `learned_by`, or for an encoder whose tokenizer hides no token."""
    learns = learned_by(read_json(checkpoint / "config.json"), checkpoint, config.masking, config.domains())
    tokenizer = load_tokenizer(checkpoint)
    for name in ("mask_token", "cls_token", "sep_token") if isinstance(learns, Masked) else ():
        if getattr(tokenizer, name) is None:
            allowed = f"must name the {name} that the model was trained with"
            raise UserError(str(checkpoint / "tokenizer_config.json"), f"no {name}", allowed)


def context_of(sizes: Mapping[str, Any]) -> int:
    """The longest row: RoBERTa's positions begin behind its padding token's; XLNet's are relative."""
    found = next((int(sizes[key]) for key in ("max_position_embeddings", "n_positions") if sizes.get(key)), 512)
    return found - int(sizes.get("pad_token_id") or 0) - 1 if sizes.get("model_type") == "roberta" else found


def _domain(file: DataFile) -> str:
    return Path(str(file)).name.partition(".")[0]


def _numbered(texts: Sequence[LabelledText], classes: Sequence[str]) -> tuple[Labelled, ...]:
    return tuple(Labelled(each.text, classes.index(each.label), each.pair) for each in texts)
