#!/usr/bin/env bash
# Experiment 1.4.0
# Question:  How well does the dense baseline do on this data?
# Builds on: none
# Change:    none; every record compares with this run
exec bash "$(dirname "$0")/_launch.sh" \
    --model_type model_original \
    --dim 512 --n_layers 8 --n_heads 32 --max_seq_len 512 --use_moe False --use_flash_attn \
    --epochs 3 --batch_size 48 --accumulation_steps 12 --learning_rate 2e-4 --dtype bfloat16 --grad_clip 1.0 \
    --data_path dataset/stable/merged_pretrain.jsonl \
    --use_swanlab --swanlab_project MiniMind-Experiment-1.4.0 --memory_monitor_interval 100 \
    --out_dir out/experiment_1_4_0 "$@"
