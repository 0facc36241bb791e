from __future__ import annotations

import pytest

from framework.errors import UserError
from framework.graph.cluster import ClusterConfig

NODE = {"gpus_per_node": 8, "cpus": 64}


def test_reward_workers_may_have_gpus_of_their_own() -> None:
    cluster = ClusterConfig(**NODE, rollout_workers=2, learner_workers=4, reward_workers=4, reward_gpus=0.5)  # type: ignore[arg-type]
    cluster.check_gpus(tensor_parallel_size=1)
    with pytest.raises(UserError, match="must hold 4 for 2 rollout workers, 4 for learners, 2 for rewards, not shared"):
        cluster.check_gpus(tensor_parallel_size=2)


def test_colocated_roles_leave_the_rewards_theirs() -> None:
    sizes = {"rollout_workers": 8, "learner_workers": 8, "colocate": True}
    ClusterConfig(**NODE, **sizes).check_gpus(1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="8 for learners, 1 for rewards, shared"):
        ClusterConfig(**NODE, **sizes, reward_gpus=1.0).check_gpus(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("gpus", [0, 1])
def test_gpus_for_rewards_must_be_there(gpus: int) -> None:
    allowed = f"cluster.reward_gpus: got 1.0; 2 reward workers, and the cluster has {gpus} GPUs"
    with pytest.raises(UserError, match=allowed):
        ClusterConfig(gpus_per_node=gpus, reward_workers=2, reward_gpus=1.0)
