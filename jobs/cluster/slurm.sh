#!/usr/bin/env bash
# R1-Zero on Slurm: sbatch --nodes=4 jobs/cluster/slurm.sh [job=JOB] [model=MODEL] [cluster=CLUSTER] [other overrides]
# Nodes, GPUs and cores are Slurm's; the workers that fit them are computed. Without job= it is r1_zero, without cluster=
# the GPUs are taken for node8's (80 GiB each): say cluster=h200_256 for H200s, or cluster.gpu_memory_gib.
# Starts a Ray head on the first node and a worker on each other one, then runs the job on the first node. Submit from the
# repository's root, on a file system that every node shares. Submitting the same line again resumes the run.
# The signal comes before the limit by more than a stop takes: cluster.deadlines.stop (45 s) for a role at work, and
# cluster.deadlines.save (300 s) for a checkpoint being written. Raise it with them.
#SBATCH --job-name=r1-zero
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --output=%x-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"
port="${RAY_PORT:-6379}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')"
export RAY_ADDRESS="$address:$port"

pids=()
end_cluster() {
  if ((${#pids[@]})); then
    kill "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
  fi
}
trap end_cluster EXIT

start_ray() { # node, arguments of ray start
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" --gpus-per-node="${SLURM_GPUS_PER_NODE:-8}" \
    env -u RAY_ADDRESS ray start --block --disable-usage-stats "${@:2}" &
  pids+=("$!")
}

start_ray "$head" --head --node-ip-address="$address" --port="$port"
for node in "${nodes[@]:1}"; do
  start_ray "$node" --address="$address:$port"
done
ready=0
wait_log="$(mktemp)"
for _ in $(seq 120); do
  joined="$(python -c 'import ray; ray.init(log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))' 2>"$wait_log" || true)"
  if [[ "${joined##*$'\n'}" == "${#nodes[@]}" ]]; then
    ready=1
    break
  fi
  sleep 5
done
if ((!ready)); then
  echo "error: not all of ${#nodes[@]} nodes joined Ray within 10 minutes; the last answer: $(tail -n 1 "$wait_log")" >&2
  echo "If it speaks of a token: every node needs the same RAY_AUTH_MODE (token, or disabled) and RAY_AUTH_TOKEN." >&2
  exit 1
fi

# Slurm's early SIGTERM goes on to the driver, which saves what it needs to resume.
words=(run)
[[ " $* " == *" job="* ]] || words+=(job=r1_zero)
[[ " $* " == *" cluster="* ]] || words+=(cluster=node8)
gpus="${SLURM_GPUS_ON_NODE:-8}" # a number on every Slurm; SLURM_GPUS_PER_NODE may be "h100:8"
framework "${words[@]}" cluster.num_nodes="${#nodes[@]}" cluster.gpus_per_node="$gpus" \
  cluster.cpus=$((${#nodes[@]} * ${SLURM_CPUS_ON_NODE:-96})) "$@" &
driver="$!"
trap 'kill -TERM "$driver" 2>/dev/null || true' TERM
status=0
wait "$driver" || status="$?"
while kill -0 "$driver" 2>/dev/null; do # the trap ended the first wait: the driver is still saving
  status=0
  wait "$driver" || status="$?"
done
exit "$status"
