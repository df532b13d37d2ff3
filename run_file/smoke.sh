#!/usr/bin/env bash
# A tiny run of 60 steps on the CPU that logs and checkpoints often; flags are passed on:
#   bash run_file/smoke.sh --out_dir out/NAME
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
data=dataset/quickstart
[ -e $data/knowledge.json ] || "$PYTHON" -m dataset.quickstart --out $data
export CUDA_VISIBLE_DEVICES= EVALUATE="${EVALUATE:-0}"
exec bash run_file/_launch.sh --out_dir out/smoke --experiment smoke \
    --model_type model_memory --dim 32 --n_layers 2 --n_heads 4 --fusion_heads 4 --max_seq_len 64 \
    --knowledge_num 2500 --knowledge_length 8 --database_init_path $data/knowledge.json \
    --data_path $data/pretrain.jsonl --val_path $data/val.jsonl --eval_batches 4 \
    --epochs 1 --max_steps 60 --batch_size 4 --accumulation_steps 2 --learning_rate 1e-3 --dtype float32 \
    --log_interval 1 --eval_interval 20 --save_interval 10 --memory_monitor_interval 10 "$@"
