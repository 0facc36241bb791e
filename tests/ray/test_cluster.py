"""Starting and joining Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.cli import _explain
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.roles.cluster import cpus_booked, ray_session, start_ray, worker_environment


@pytest.mark.slow
def test_local_instance_has_room_for_every_role_and_errors_cross_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = ClusterConfig(cpus=1, reward_workers=2, object_store_gib=0.1)
    with ray_session(cluster):
        assert ray.cluster_resources()["CPU"] == cpus_booked(cluster) == 4

        @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
        def fail() -> None:
            raise UserError("data/x.jsonl:3", "{", "must be JSON")

        with pytest.raises(UserError) as error:
            ray.get(fail.remote())
    assert not ray.is_initialized()
    capsys.readouterr()
    assert _explain(error.value) == 2
    assert capsys.readouterr().err == "framework: data/x.jsonl:3: got '{'; must be JSON\n"


@pytest.mark.slow
def test_a_cpu_workers_memory_comes_from_jemalloc(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    environment = worker_environment(1, on_gpu=False)
    assert environment["LD_PRELOAD"].endswith("libjemalloc.so"), "Ray no longer ships it: workers fall back to glibc"
    with ray_session(ClusterConfig(cpus=1, object_store_gib=0.1)):

        @ray.remote(runtime_env={"env_vars": environment})  # type: ignore[untyped-decorator]
        def libraries() -> str:
            return Path("/proc/self/maps").read_text()

        assert "libjemalloc.so" in ray.get(libraries.remote())
    assert "LD_PRELOAD" not in worker_environment(1, on_gpu=True)


def test_address_where_no_cluster_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cluster\.ray_address: got '127\.0\.0\.1:1'"):
        start_ray(ClusterConfig(ray_address="127.0.0.1:1"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="RAY_ADDRESS: got"):
        start_ray(ClusterConfig())
