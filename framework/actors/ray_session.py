"""Starts Ray for a run: a local instance, or the cluster at `cluster.ray_address` or RAY_ADDRESS."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from framework.actors.ray_watch import RayWatch, end_process, watch_start
from framework.errors import RunFailed, UserError
from framework.graph.cluster import PROCESSES_A_CORE, ClusterConfig

CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 5.0, 10.0
TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def ray_address(cluster: ClusterConfig) -> str:
    """Return the address to join, or an empty string for a local instance."""
    return cluster.ray_address or os.environ.get("RAY_ADDRESS", "")


def start_ray(cluster: ClusterConfig, on_death: Callable[[str], Any] = end_process) -> None:
    """Join or start Ray; raises UserError if the cluster can't be reached or lacks what the roles of `cluster` book.

    `on_death` is called, from a thread, if a process of a local instance dies as it starts.
    Raises RunFailed if a local instance does not start.
    A local instance offers as many CPUs as the roles ask for, even on fewer cores: Ray's CPUs only book places, and too
    few of them would leave an actor waiting for ever.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would start its workers 15 nice levels below this process: on a busy machine their start takes minutes.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    address = ray_address(cluster)
    where = "cluster.ray_address" if cluster.ray_address else "RAY_ADDRESS"
    if address:
        try:
            _check_head(address)
            with _undisturbed(on_death):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise _refused(where, address, error) from error
    else:
        cores = len(os.sched_getaffinity(0))
        if cluster.cpus > PROCESSES_A_CORE * cores:
            allowed = f"must be at most {PROCESSES_A_CORE * cores}: this machine has {cores} cores"
            raise UserError("cluster.cpus", cluster.cpus, f"{allowed}; or join a cluster: cluster.ray_address")
        with _undisturbed(on_death), _own_token():
            try:
                ray.init(
                    address="local",
                    num_cpus=max(cluster.cpus, cpus_booked(cluster)),
                    num_gpus=cluster.gpus_per_node,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,  # its greetings and hints are in its own logs
                    object_store_memory=int(cluster.object_store_gib * 2**30),
                )
            except (OSError, RuntimeError, ray.exceptions.RayError) as error:
                raise RunFailed(f"Ray could not start on this machine: {' '.join(str(error).split())[:300]}") from error
    try:
        check_room(cluster, ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]])
    except UserError:
        ray.shutdown()
        raise


def _refused(where: str, address: str, error: Exception) -> UserError:
    """What to tell about a cluster that cannot be joined: that it is not there, or that the token is not its own."""
    text = " ".join(str(error).split())
    if "authenticat" in text.lower() or "token" in text.lower() or type(error).__name__ == "AuthenticationError":
        file = Path.home() / ".ray" / "auth_token"
        mode, has = os.environ.get("RAY_AUTH_MODE", "not set"), "set" if "RAY_AUTH_TOKEN" in os.environ else "not set"
        found = f"RAY_AUTH_MODE {mode}, RAY_AUTH_TOKEN {has}" + (f", a token in {file}" if file.is_file() else "")
        allowed = (
            f"the cluster at {address} refuses this token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's "
            "(on its head: ray get-auth-token), or RAY_AUTH_MODE=disabled for a cluster without one"
        )
        return UserError("RAY_AUTH_TOKEN", found, allowed)
    return UserError(where, address, f"must be the address of a Ray cluster that runs ({text[:300]})")


def check_room(cluster: ClusterConfig, total: Mapping[str, float], nodes: list[Mapping[str, float]]) -> None:
    """Raise UserError, by name of the resource, if a stage's roles would wait for a place that there will never be."""
    if total.get("GPU", 0) < cluster.gpus:
        allowed = f"the Ray cluster has {total.get('GPU', 0):g} GPUs; choose a cluster= that fits"
        raise UserError("cluster.num_nodes x cluster.gpus_per_node", cluster.gpus, allowed)
    asked, has = cpus_booked(cluster), total.get("CPU", 0)
    if has < asked:
        parts = (
            f"rollout {cluster.rollout_workers} x {cluster.rollout_cpus:g}, "
            f"learner {cluster.learner_workers} x {cluster.learner_cpus:g}, reward {cluster.reward_workers} x 1"
        )
        allowed = f"the Ray cluster has {has:g} CPUs: fewer workers or CPUs for each, or a cluster with more"
        raise UserError("CPUs of all roles", f"{asked} ({parts})", allowed)
    largest = max((node.get("CPU", 0) for node in nodes), default=0)
    for role, cpus in (("rollout", cluster.rollout_cpus), ("learner", cluster.learner_cpus)):
        if cpus > largest:
            allowed = f"must fit one node: the largest of the Ray cluster has {largest:g} CPUs"
            raise UserError(f"cluster.{role}_cpus", cpus, allowed)


@contextmanager
def _undisturbed(on_death: Callable[[str], Any]) -> Iterator[None]:
    """Let Ray start without taking over SIGTERM, and keep its processes out of our process group.

    Ray takes it twice: by a handler in Python, and beneath that by one that writes a trace, calls ours and sets an
    alarm, which aborts the process 3 s later, in the middle of its checkpoint. So ours is set again once Ray is up.

    `timeout`, systemd and a terminal signal the whole group: with the raylet gone, nothing could be saved. A session of
    their own keeps them out of it; they still end with this process, as Ray asks the kernel for that.
    """
    from ray._private import services, utils

    popen, set_handler = services.ConsolePopen, utils.set_sigterm_handler
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, start_new_session=True, **options))
        return started[-1]

    services.ConsolePopen = start
    utils.set_sigterm_handler = lambda handler: None
    try:
        with watch_start(started, on_death):
            yield
    finally:
        services.ConsolePopen, utils.set_sigterm_handler = popen, set_handler
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


@contextmanager
def _own_token() -> Iterator[None]:
    """Guard a local instance by a token of its own, where the user has set none.

    Ray would write one to ~/.ray/auth_token, and send that to every cluster that is joined later.
    """
    if any(name in os.environ for name in TOKEN) or (Path.home() / ".ray" / "auth_token").is_file():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # Ray's processes inherit it
    _forget_token()
    yield


def _forget_token() -> None:
    """Let Ray look for the token anew: it keeps the one that it has found first."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

    AuthenticationTokenLoader.instance().reset_cache()


def _check_head(address: str) -> None:
    """Ask a head who it is, where Ray itself would print for a while, wait for minutes and then end the process.

    Raises AuthenticationError if it refuses our token, ConnectionError if nothing listens there, or no Ray head does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # "auto" or "local", which Ray looks up
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    import grpc
    from ray._private.authentication.grpc_authentication_client_interceptor import _get_authentication_metadata_tuple
    from ray.exceptions import AuthenticationError

    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            who = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
            who(b"", timeout=ANSWER_TIMEOUT_S, metadata=_get_authentication_metadata_tuple())
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise AuthenticationError(error.details()) from error
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and address.startswith("ray://"):
                return  # Ray's client server, which knows no such question
            found = f"{error.code().name.lower().replace('_', ' ')}, {error.details()}"
            raise ConnectionError(f"what listens there does not answer as a Ray head does: {found}") from error


def shutdown() -> None:
    """Leave the cluster, or end the local instance."""
    import ray

    ray.shutdown()


@contextmanager
def ray_session(cluster: ClusterConfig, on_death: Callable[[str], Any] = end_process) -> Iterator[None]:
    """Ray for the length of a block; `on_death` is called, from a thread, if Ray dies meanwhile or does not start.

    A raylet that has no time to start is waited for in C++, without a limit.
    """
    before = {name: os.environ.get(name) for name in TOKEN}
    limit_s = cluster.deadlines.start
    late = threading.Timer(limit_s, on_death, [f"Ray has not started, or not answered, for {limit_s:g} s"])
    late.daemon = True
    late.start()
    try:
        start_ray(cluster, on_death)
    finally:
        late.cancel()
    try:
        with RayWatch(cluster.deadlines.ray, on_death):
            yield
    finally:
        shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _forget_token()


def cpus_booked(cluster: ClusterConfig) -> int:
    """CPUs that all roles ask for together; a reward worker books one."""
    rollout = cluster.rollout_workers * cluster.rollout_cpus
    learner = cluster.learner_workers * cluster.learner_cpus
    return math.ceil(rollout + learner + cluster.reward_workers)
