"""Starting and joining Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from framework.actors import ray_session as cluster_module
from framework.actors.ray_session import TOKEN, check_room, cpus_booked, ray_session, start_ray
from framework.cli import _explain
from framework.engines.cpu.environment import worker_environment
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig


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


def test_what_the_cluster_cannot_give_is_refused_by_name() -> None:
    cluster = ClusterConfig(rollout_cpus=2)
    check_room(cluster, {"CPU": 4}, [{"CPU": 2}, {"CPU": 2}])
    with pytest.raises(UserError, match=r"'4 \(rollout 1 x 2, learner 1 x 1, reward 1 x 1\)'; .*has 3 CPUs"):
        check_room(cluster, {"CPU": 3}, [{"CPU": 3}])
    with pytest.raises(UserError, match=r"cluster\.rollout_cpus: got 2; must fit one node: .* has 1 CPUs"):
        check_room(cluster, {"CPU": 4}, [{"CPU": 1}] * 4)
    with pytest.raises(UserError, match=r"gpus_per_node: got 8; the Ray cluster has 0 GPUs"):
        check_room(ClusterConfig(gpus_per_node=8), {"CPU": 64}, [{"CPU": 64}])


SESSION = """
import os, signal, sys, time
from framework.graph.cluster import ClusterConfig
from framework.graph.deadlines import Deadlines
from framework.actors.ray_session import ray_session
import ray
from ray._private import worker
with ray_session(ClusterConfig(cpus=1, object_store_gib=0.1, deadlines=Deadlines(ray=3))):
    own = {name: [item.process.pid for item in found] for name, found in worker._global_node.all_processes.items()}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "Ray has taken SIGTERM over"
    assert not any(os.getpgid(pid) == os.getpgid(0) for found in own.values() for pid in found), own
    os.kill(own[sys.argv[1]][0], int(sys.argv[2]))
    ray.get(ray.remote(lambda: time.sleep(1000)).remote())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "by", "says"),
    [
        ("raylet", signal.SIGKILL, "Ray's raylet has died (exit code -9)"),
        ("gcs_server", signal.SIGKILL, "Ray's gcs_server has died (exit code -9)"),
        ("gcs_server", signal.SIGSTOP, "has not answered for 3 s"),
    ],
)
def test_rays_death_ends_the_run_with_one_line(process: str, by: signal.Signals, says: str, tmp_path: Path) -> None:
    """And its processes are out of our process group: what signals that must not end them."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", *TOKEN)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SESSION, process, str(int(by))]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("framework: ")]
    assert says in line
    assert "the same command resumes" in line
    assert not (tmp_path / ".ray" / "auth_token").exists(), "a token for every cluster joined later"


STARTING = """
import os, signal, sys, threading, time
import psutil
from framework.graph.cluster import ClusterConfig
from framework.actors.ray_session import ray_session
def kill() -> None:
    while True:
        for child in psutil.Process().children():
            if child.name() == sys.argv[1]:
                child.send_signal(signal.SIGSTOP)  # it is still to be connected to
                time.sleep(1)
                child.kill()
                return
        time.sleep(0.01)
threading.Thread(target=kill).start()
with ray_session(ClusterConfig(cpus=1, object_store_gib=0.1)):
    time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_rays_death_as_it_starts_is_one_line_within_seconds(process: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", *TOKEN)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", STARTING, process]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr[-3000:]
    assert f"framework: Ray's {process} died as it started (exit code -9)" in done.stderr.splitlines()[-1]


STOPPED = """
import os, signal, time
from framework.graph.cluster import ClusterConfig
from framework.graph.stop import StopFlag
from framework.actors.ray_session import ray_session
with StopFlag().on_signals() as stop, ray_session(ClusterConfig(cpus=1, object_store_gib=0.1)):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(25):
        time.sleep(0.2)
    print("saved", stop())
"""


@pytest.mark.slow
def test_a_stop_may_take_longer_than_rays_own_handler_of_sigterm_allows(tmp_path: Path) -> None:
    """Ray's aborts the process after 3 s."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stdout) == (0, "saved True\n"), done.stderr[-3000:]


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_where_no_ray_head_listens_is_one_line_within_seconds(
    says: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster_module, "ANSWER_TIMEOUT_S", 1.0)

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed below
            while True:
                taken.append(server.accept()[0])
                taken[-1].sendall(says)

    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match="what listens there does not answer as a Ray head does") as error:
            start_ray(ClusterConfig(ray_address=address))
    for connection in taken:
        connection.close()
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
