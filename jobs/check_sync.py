"""`framework check sync`: publish a model's weights, update its samplers, compare every logprob."""

from __future__ import annotations

from framework.actors.ray_session import ray_session
from framework.config import RunConfig, given_base
from framework.stages.sync_check import check_sync, describe, passes


def main(config: RunConfig) -> bool:
    """Print a line for the base and each update; return whether all are below the run's gate."""
    base, model = given_base(config)
    base.check()
    cluster, settings = config.cluster, config.stage["grpo"]
    gate, engine = settings.mismatch, settings.engine
    good = True
    with ray_session(cluster):
        for found in check_sync(base.path, model.vocab_size, engine.rollout, engine.learner, cluster):
            good = good and passes(found, gate)
            print(describe(found), flush=True)
    print(f"{'below' if good else 'ABOVE'} the gate: {gate.measure} {gate.stop_above} nats (stage.grpo.mismatch)")
    return good
