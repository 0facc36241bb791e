"""Extend the context of a base model by YaRN: short trainings on longer rows (V2 section 3.1.4; V3 section 4.3)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from framework.artifacts import MANIFEST, Checkpoint, read_json
from framework.engines.lr_schedule import LrSchedule, value_at
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.pretrain import PretrainConfig, Pretrained, PretrainInputs, estimate_rows, train_rows


@dataclass(frozen=True)
class ExtendInputs(PretrainInputs):
    """The tokens that the model learned from, now cut into longer rows, their tokenizer, and the model so far."""

    base: Checkpoint


@dataclass(frozen=True)
class Extend:
    """The stage: one phase. It starts with a fresh optimizer, and reads the tokens in an order of its own."""

    config: PretrainConfig  # of the phase: see `extensions`
    model: ModelConfig  # rotary embedding stretched

    def run(self, inputs: ExtendInputs, runtime: Runtime) -> Pretrained:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        start = stretched(inputs.base.path, self.model, runtime.work_dir / "start")
        return train_rows(self.config, start, inputs, runtime)

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Memory by ZeRO and expert-parallel size, and hours from the tokens and the length of their rows."""
        from framework.models.estimate import EXTENSION_ASSUMPTION, extension_hours

        config = self.config
        tokens, gpus = config.batches.tokens(config.steps), cluster.gpus
        hours = extension_hours(self.model, tokens, config.row_tokens, gpus, cluster.gpu_tflops, cluster.cpus)
        estimate = estimate_rows(config, self.model, cluster, hours)
        return replace(estimate, assumptions=(EXTENSION_ASSUMPTION,))


def before_extension(model: ModelConfig, pretrain: PretrainConfig) -> ModelConfig:
    """Return the model that is pretrained: if its context is extended later, one whose rotary embedding is plain."""
    if not pretrain.extend:
        return model
    first = min(model.original_max_position_embeddings, model.max_position_embeddings)
    return replace(model, rope_factor=1.0, max_position_embeddings=first)


def extensions(model: ModelConfig, pretrain: PretrainConfig) -> dict[str, Extend]:
    """Return the phases by the names of their nodes: pretraining's engine as it ends, at a constant learning rate.

    Raises UserError if the model's rotary embedding is not stretched, or its context shorter than a phase's rows.
    """
    engine, end = pretrain.engine, pretrain.steps
    if pretrain.extend and (model.rope_factor <= 1 or model.rope_type != "yarn"):
        allowed = "must be above 1, with rope_type=yarn, for stage.pretrain.extend"
        raise UserError("model.rope_factor", model.rope_factor, allowed)
    found = {}
    for phase in pretrain.extend:
        if phase.row_tokens > model.max_position_embeddings:
            allowed = f"must be at most model.max_position_embeddings={model.max_position_embeddings}"
            raise UserError("stage.pretrain.extend.row_tokens", phase.row_tokens, allowed)
        config = replace(
            pretrain,
            steps=phase.steps,
            rows_per_step=phase.rows_per_step,
            row_tokens=phase.row_tokens,
            ramp=None,
            extend=(),
            validate_every=phase.save_every,
            checkpoint_every=phase.save_every,
            engine=replace(
                engine,
                schedule=LrSchedule(lr=phase.lr),
                bias_update_speed=value_at(engine.bias_update_speed, end),
                mtp_coef=value_at(engine.mtp_coef, end),
            ),
        )
        found[f"extend_{phase.row_tokens}"] = Extend(config, model)
    return found


def stretched(base: Path, model: ModelConfig, directory: Path) -> Path:
    """Make `directory` the checkpoint `base` with the context and rotary embedding of `model`; weights are links."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        link = directory / file.name
        if file.name not in (MANIFEST, "config.json") and not link.exists():
            link.unlink(missing_ok=True)  # a link to where the base was before
            link.symlink_to(file.absolute())
    config, wanted = read_json(base / "config.json"), model.hf_config().to_dict()
    for key in ("rope_theta", "rope_scaling"):  # where other writers put what rope_parameters holds
        config.pop(key, None)
    config |= {key: wanted[key] for key in ("rope_parameters", "max_position_embeddings")}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return directory
