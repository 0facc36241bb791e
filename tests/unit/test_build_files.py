"""Build files: scripts parse, manifests hold what the framework needs, locks are pinned and name no index."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from framework.cli import main
from framework.graph.deadlines import Deadlines
from framework.graph.stop import CLEAN_UP_S

REPOSITORY = Path(__file__).parents[2]
LOCKS = ("cpu", "gpu")
A_STOP_S = Deadlines().stop + Deadlines().save + CLEAN_UP_S


@pytest.mark.parametrize("script", [".ci/run", "jobs/cluster/slurm.sh"])
def test_shell_scripts_parse_and_stop_at_errors(script: str) -> None:
    path = REPOSITORY / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in path.read_text()
    assert path.stat().st_mode & 0o111


def test_rayjob_runs_the_cli_with_the_pinned_ray() -> None:
    job = yaml.safe_load((REPOSITORY / "jobs/cluster/rayjob.yaml").read_text())["spec"]
    assert job["entrypoint"].startswith("framework run ")
    assert f"ray=={job['rayClusterSpec']['rayVersion']}" in lock("gpu")
    assert int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > A_STOP_S
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert pod["terminationGracePeriodSeconds"] > A_STOP_S


def test_slurm_signals_before_the_limit_by_more_than_a_stop_takes() -> None:
    (seconds,) = re.findall(
        r"^#SBATCH --signal=B:TERM@(\d+)$", (REPOSITORY / "jobs/cluster/slurm.sh").read_text(), re.M
    )
    assert int(seconds) > A_STOP_S


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_pinned_and_name_no_index(name: str) -> None:
    assert lock(name)
    for line in lock(name):
        assert re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+!]+", line), line


@pytest.mark.parametrize("name", LOCKS)
def test_locks_agree_with_the_package(name: str) -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {line.split("==")[0]: line.split("==")[1].split("+")[0] for line in lock(name)}
    for requirement in project["dependencies"] + extras[name] + extras["dev"]:
        package, _, version = re.sub(r"\[.*?\]", "", requirement).partition("==")
        assert package in pinned, package
        assert not version or pinned[package] == version, package


def test_the_cpu_lock_leaves_out_what_breaks_a_cpu_torch() -> None:
    names = {line.split("==")[0] for line in lock("cpu")}
    assert "torch==2.13.0+cpu" in lock("cpu")
    assert not names & {"torchvision", "torchaudio", "torchcodec", "vllm"}
    assert not [name for name in names if name.startswith("nvidia-")]


@pytest.mark.parametrize("name", LOCKS)
def test_images_are_pinned_and_not_root(name: str) -> None:
    lines = (REPOSITORY / f"docker/Dockerfile.{name}").read_text().splitlines()
    (base,) = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"[a-z./]+:\d+\.\d+\.\d+[a-z0-9-]*", base)
    assert [line for line in lines if line.startswith("USER ")] == ["USER trainer"]
    assert any(f"requirements/{name}.txt" in line for line in lines)


def test_make_names_every_target_in_its_help() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    targets = [line.split()[0] for line in shown.splitlines()]
    assert targets == ["help", ".venv", "test", "lint", "r1-zero", "r1", "own", "mutants"]


def test_make_refuses_a_wrong_python_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\n')
    old.chmod(0o755)
    arguments = ["make", "-s", ".venv", f"PYTHON={old}", f"VENV={tmp_path}/venv"]
    result = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == f"error: {old} is Python 3.9.1; set PYTHON to a Python 3.11 or 3.12"
    assert not (tmp_path / "venv").exists()


def lock(name: str) -> list[str]:
    return (REPOSITORY / f"requirements/{name}.txt").read_text().splitlines()


def test_rayjobs_pods_write_to_the_volume_and_are_probed_without_a_tool_of_the_images() -> None:
    """KubeRay's own probes exec wget; the agent answers this path without a token."""
    cluster = yaml.safe_load((REPOSITORY / "jobs/cluster/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    user = (REPOSITORY / "docker/Dockerfile.gpu").read_text().split("--uid ")[1].split()[0]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user)
        for container in pod["containers"]:
            for probe in ("livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"] == {"path": "/api/local_raylet_healthz", "port": 52365}
                assert "exec" not in container[probe]


def entry_points(tmp_path: Path) -> dict[str, list[str]]:
    """The command that each file under docker/ and jobs/cluster/ starts."""
    found = {}
    for name in LOCKS:
        (line,) = re.findall(r"^CMD (\[.*\])$", (REPOSITORY / f"docker/Dockerfile.{name}").read_text(), re.M)
        found[f"Dockerfile.{name}"] = json.loads(line)
    job = yaml.safe_load((REPOSITORY / "jobs/cluster/rayjob.yaml").read_text())["spec"]
    found["rayjob"] = shlex.split(job["entrypoint"])
    for case, (nodes, gpus, words) in {
        "slurm": (1, 8, []),
        "slurm, 4 nodes": (4, 8, ["seed=1"]),
        "slurm, tensor-parallel models": (2, 8, ["model=qwen_32b"]),
        "slurm, 4 GPUs a node": (2, 4, ["model=qwen_7b"]),
        "slurm, one GPU": (1, 1, ["cluster=gpu1", "stage.pretrain.workers=1"]),
        "slurm, another cluster": (32, 8, ["cluster=h200_256", "model=qwen_7b"]),
    }.items():
        found[case] = slurm_command(tmp_path / case, nodes, gpus, words)
    found["skypilot"] = skypilot_command(tmp_path / "sky", 1, {})
    found["skypilot, 2 nodes"] = skypilot_command(tmp_path / "sky2", 2, {"WORDS": "job=r1_zero model=qwen_7b"})
    return found


def skypilot_command(folder: Path, nodes: int, words: dict[str, str]) -> list[str]:
    """What the first node of skypilot.yaml runs; `nproc` says 192."""
    task = yaml.safe_load((REPOSITORY / "jobs/cluster/skypilot.yaml").read_text())
    programs = {"ray": "true", "python": f"echo {nodes}", "nproc": "echo 192"}
    noting(folder, programs)
    rented = {
        "SKYPILOT_NODE_IPS": "\n".join(f"10.0.0.{node}" for node in range(nodes)),
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    environment = os.environ | task["envs"] | rented | words
    subprocess.run(["bash", "-c", task["run"]], cwd=folder, env=environment, check=True, timeout=60)
    return (folder / "said").read_text().splitlines()


def noting(folder: Path, programs: dict[str, str]) -> None:
    """Programs in the folder's environment; `framework` only notes its words."""
    programs = programs | {"framework": f'printf "%s\\n" framework "$@" > {shlex.quote(str(folder / "said"))}'}
    (folder / ".venv/bin").mkdir(parents=True)
    for name, body in programs.items():
        (folder / ".venv/bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / ".venv/bin" / name).chmod(0o755)


def slurm_command(folder: Path, nodes: int, gpus: int, words: list[str]) -> list[str]:
    """What slurm.sh runs in an allocation; Slurm, Ray and the framework are programs that only note their words."""
    programs = {
        "scontrol": f"seq -f node%g {nodes}",
        "srun": "echo 10.0.0.1",
        "python": f"echo {nodes}",
    }
    noting(folder, programs)
    allocation = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_NODELIST": "nodes", "SLURM_GPUS_ON_NODE": str(gpus)}
    environment = os.environ | allocation | {"SLURM_CPUS_ON_NODE": str(12 * gpus), "SLURM_GPUS_PER_NODE": f"h:{gpus}"}
    subprocess.run(["bash", str(REPOSITORY / "jobs/cluster/slurm.sh"), *words], env=environment, check=True, timeout=60)
    return (folder / "said").read_text().splitlines()


def test_every_entry_point_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case, (program, _, *words) in entry_points(tmp_path).items():
        assert program == "framework"
        words = [word for word in words if not word.startswith("runs_dir=")]
        assert main(["plan", *words, f"runs_dir={tmp_path}/runs"]) == 0, (case, capsys.readouterr().err)
        told = capsys.readouterr().out
        if case == "slurm, 4 GPUs a node":
            assert "2 x 4 GPUs" in told
        if case == "slurm, another cluster":
            assert "32 x 8 GPUs of 141 GiB" in told
