#!/usr/bin/env bash
# Experiment 1.5.6
# Question:  Does keeping four times as many found entries put the right one among the four that are read?
# Builds on: 1.5.0
# Change:    candidates 16 -> 64
exec bash "$(dirname "$0")/_launch.sh" \
    --model_type model_memory --retrieval ngram --fusion words --pointer --memory_layers 2 5 \
    --keep_ffn --num_candidates 64 --num_selected 4 --retrieval_noise 0.1 --freeze_ratio 1.0 \
    --knowledge_num 1048576 --knowledge_length 32 \
    --database_init_path dataset/stable/sentence_trex_data.json \
    --dim 512 --n_layers 8 --n_heads 32 --max_seq_len 512 --use_moe False --use_flash_attn \
    --epochs 3 --batch_size 48 --accumulation_steps 12 --learning_rate 2e-4 --dtype bfloat16 --grad_clip 1.0 \
    --data_path dataset/stable/merged_pretrain.jsonl \
    --use_swanlab --swanlab_project MiniMind-Experiment-1.5.6 --memory_monitor_interval 100 \
    --base_experiment 1.5.0 \
    --out_dir out/experiment_1_5_6 "$@"
