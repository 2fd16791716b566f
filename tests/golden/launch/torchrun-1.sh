#!/bin/bash
# Made by `attune launch`.
set -eo pipefail
source .venv/bin/activate
set -u
if [[ -e runs/grpo-qwen2.5-7b-8gpu/manifest.json ]]; then
    echo 'grpo-qwen2.5-7b-8gpu: finished already; another run needs another run.name'
    exit 0
fi
arguments=(--config configs/grpo_qwen2.5_7b_8gpu.yaml)

export CUDA_VISIBLE_DEVICES=0,1,2,3
exec torchrun --standalone --nproc-per-node=4 -m scripts.attune train "${arguments[@]}" --resume
