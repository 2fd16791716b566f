#!/bin/bash
#SBATCH --job-name=grpo-qwen2.5-7b-8gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=h100:8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Made by `attune launch`. The folder it is submitted from is seen by every node, and so is run.dir.
set -eo pipefail
source .venv/bin/activate
set -u
if [[ -e runs/grpo-qwen2.5-7b-8gpu/manifest.json ]]; then
    echo 'grpo-qwen2.5-7b-8gpu: finished already; another run needs another run.name'
    exit 0
fi
arguments=(--config configs/grpo_qwen2.5_7b_8gpu.yaml engine.urls_env=ATTUNE_ENGINE_URLS engine.key_env=ATTUNE_ENGINE_KEY)

# After preemption, or when a node fails, Slurm starts the job again; out of time, the job asks for it.
again() {
    if (( ${SLURM_RESTART_COUNT:-0} < 20 )); then
        echo "out of time: starting again, from the newest checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "out of time, and started again 20 times already: submit it once more to go on" >&2
    fi
}
trap again USR1

# The configuration counts the GPUs of a node from 0, so the job must have the first ones.
check='if [[ -n ${CUDA_VISIBLE_DEVICES-} && ,$CUDA_VISIBLE_DEVICES, != ,0,1,2,3,4,5,6,7,* ]]; then
    echo "$(hostname): has the GPUs $CUDA_VISIBLE_DEVICES, not 0,1,2,3,4,5,6,7: ask for whole nodes" >&2; exit 2
fi; '

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
urls=()
for node in "${nodes[@]:0}"; do
    for port in 8123; do urls+=("http://$node:$port"); done
done
ATTUNE_ENGINE_URLS=$(IFS=,; echo "${urls[*]}")
export ATTUNE_ENGINE_URLS
if [[ -z ${ATTUNE_ENGINE_KEY-} ]]; then
    ATTUNE_ENGINE_KEY=$(python -c 'import secrets; print(secrets.token_hex(32))')
fi
export ATTUNE_ENGINE_KEY
serving=$(IFS=,; echo "${nodes[*]:0}")
srun --overlap --cpu-bind=none --kill-on-bad-exit=1 --nodes=2 --ntasks=2 --nodelist="$serving" \
    bash -c "$check"'exec attune serve "$@"' serve "${arguments[@]}" --host 0.0.0.0 &
servers=$!

training_nodes=$(IFS=,; echo "${nodes[*]:0:2}")

srun --overlap --cpu-bind=none --kill-on-bad-exit=1 --wait=0 --nodes=2 --ntasks=2 --nodelist="$training_nodes" \
    bash -c "$check"'export CUDA_VISIBLE_DEVICES=0,1,2,3; exec torchrun --node-rank="$SLURM_PROCID" "$@"' train \
    --nnodes=2 --nproc-per-node=4 --master-addr="${nodes[0]}" --master-port=29500 \
    -m scripts.attune train "${arguments[@]}" --resume &
training=$!
trap 'kill "$training" "$servers" 2>/dev/null || true' EXIT

# A trapped signal ends the sleep, not the training.
while kill -0 "$training" 2>/dev/null; do
    if ! kill -0 "$servers" 2>/dev/null; then echo "the policy servers ended before the training" >&2; exit 1; fi
    sleep 5 &
    wait $! || true
done
wait "$training"
