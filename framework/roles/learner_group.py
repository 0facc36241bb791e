"""The learner's ranks as the GRPO loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from framework.actors.rank_group import Rank, RankGroup
from framework.engines.trainer import share_of
from framework.graph.deadlines import Deadlines
from framework.graph.stop import never_stop
from framework.roles.batch_parts import places, wanted, without_places
from framework.roles.learner import LearnerConfig, LearnerWorker
from framework.roles.object_store import reference_of
from framework.roles.rl_batch import TrainBatch
from framework.roles.transports import least_seconds
from framework.types import Float32, TrainSample


class LearnerGroup(RankGroup):
    """`rl_clients.LearnerClient`: a rank group of `LearnerWorker`s; `poll` returns what `train` has begun."""

    def __init__(
        self,
        config: LearnerConfig,
        ranks: int = 1,
        *,
        worker: type[Rank] = LearnerWorker,
        actor_options: Sequence[dict[str, Any]] | None = None,
        deadlines: Deadlines | None = None,
        should_stop: Callable[[], bool] = never_stop,
        allow_s: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`start` or `load` starts the ranks. `actor_options`: Ray's for each rank; by default one CPU each."""
        options = actor_options or [{"num_cpus": 1}] * ranks
        super().__init__(
            "learner rank", worker, options, (config,),
            deadlines=deadlines, should_stop=should_stop, allow_s=allow_s,
            least_s={"publish": least_seconds(config.checkpoint)},
        )  # fmt: skip
        self.config = config

    def train(self, batch: TrainBatch) -> None:
        """Start training on a batch; `poll` returns the result, or raises ResponsesLost.

        Each rank is called with references of those stored responses that it trains on, and so gets no others.
        """
        import ray

        if not (stored := places(batch)):
            self.begin("train", ray.put(batch))
            return
        engine = self.config.engine
        of_ranks = wanted(batch, share_of(engine, 0, self.ranks))

        def own(rank: int) -> tuple[Any, ...]:
            at = [place for place in of_ranks[share_of(engine, rank, self.ranks).rank] if place in stored]
            return (tuple(at), *(reference_of(stored[place]) for place in at))

        self.begin("train", ray.put(without_places(batch)), own=own)

    def publish(self, version: int) -> Sequence[Any]:
        """Make the weights `version`; return an ObjectRef of PublishedWeights for each rank that holds a share.

        They stay with the ranks: what Ray carries says where they are.
        """
        self._require_workers()
        pairs = [worker.publish.options(num_returns=2).remote(version) for worker in self._workers]
        self._gather("publish", {rank: done for rank, (_, done) in enumerate(pairs)})
        return [weights for weights, _ in pairs[: self.config.engine.ep_size]]

    def logprobs(self, samples: Sequence[TrainSample], version: int | None = None) -> list[Float32]:
        """As `protocols.Learner.logprobs`."""
        result: list[Float32] = self.call("logprobs", samples, version)
        return result

    def offload(self) -> None:
        """Move what the ranks keep on their GPUs to host memory; any other call brings it back first."""
        self.call("offload")

    def reset_reference(self) -> None:
        """Make the current policy the KL term's reference."""
        self.call("reset_reference")
