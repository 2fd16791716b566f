#!/bin/bash
# Made by `attune launch`. Run it on each node, with
#   NODES="address address ..."   every node's address, the same everywhere; the first 2 train
#   NODE_RANK=0                   this node's place among them
#   ATTUNE_ENGINE_KEY       a long random text, the same everywhere
set -eo pipefail
source .venv/bin/activate
set -u
if [[ -e runs/grpo-qwen2.5-7b-8gpu/manifest.json ]]; then
    echo 'grpo-qwen2.5-7b-8gpu: finished already; another run needs another run.name'
    exit 0
fi
arguments=(--config configs/grpo_qwen2.5_7b_8gpu.yaml engine.urls_env=ATTUNE_ENGINE_URLS engine.key_env=ATTUNE_ENGINE_KEY)
read -ra nodes <<< "${NODES:?the addresses of all 2 nodes}"
rank=${NODE_RANK:?the place of this node, from 0}
if (( ${#nodes[@]} != 2 )); then echo "2 nodes are needed, there are ${#nodes[@]}" >&2; exit 2; fi
training= servers=
trap 'kill $training $servers 2>/dev/null || true' EXIT

urls=()
for node in "${nodes[@]:0}"; do
    for port in 8123; do urls+=("http://$node:$port"); done
done
ATTUNE_ENGINE_URLS=$(IFS=,; echo "${urls[*]}")
export ATTUNE_ENGINE_URLS
export ATTUNE_ENGINE_KEY="${ATTUNE_ENGINE_KEY:?the key of the policy servers}"
attune serve "${arguments[@]}" --host "${nodes[rank]}" &
servers=$!

if (( rank < 2 )); then
    CUDA_VISIBLE_DEVICES=0,1,2,3 torchrun --node-rank="$rank" \
        --nnodes=2 --nproc-per-node=4 --master-addr="${nodes[0]}" --master-port=29500 \
        -m scripts.attune train "${arguments[@]}" --resume &
    training=$!
fi

# The first process evaluates after the others have trained, on the servers of all nodes: they stay until it is done.
while true; do
    if [[ -n $training ]] && ! kill -0 "$training" 2>/dev/null; then
        wait "$training"
        training=
        if (( rank == 0 )); then exit 0; fi
    fi
    if [[ -z $training && -e runs/grpo-qwen2.5-7b-8gpu/manifest.json ]]; then exit 0; fi
    if [[ -n $servers ]] && ! kill -0 "$servers" 2>/dev/null; then
        echo "the policy servers of this node ended before the run" >&2; exit 1
    fi
    sleep 5
done
