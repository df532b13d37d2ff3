#!/usr/bin/env bash
# Experiment 1.5.15
# Question:  Do more candidates answer more questions, when all of them are read?
# Builds on: 1.5.14
# Change:    candidates 16 -> 64, all 64 read instead of 4, from the questions on: the text was learnt as in 1.5.14
#            (EXPERIMENT=1_5_15 TEXT_EXPERIMENT=1_5_14 bash run_file/knowledge.sh)
exec bash "$(dirname "$0")/_launch.sh" \
    --model_type model_memory --fusion words --fusion_scope token --selection product_key \
    --num_candidates 64 --num_selected 64 --fusion_dropout 0.15 \
    --freeze_ratio 1.0 \
    --knowledge_num 1048576 --knowledge_length 32 --balance_loss_coef 0.01 \
    --database_init_path dataset/stable/sentence_trex_data.json \
    --dim 512 --n_layers 8 --n_heads 32 --max_seq_len 512 --use_moe False --use_flash_attn \
    --epochs 3 --batch_size 48 --accumulation_steps 12 --learning_rate 2e-4 --dtype bfloat16 --grad_clip 1.0 \
    --data_path dataset/stable/merged_pretrain.jsonl \
    --use_swanlab --swanlab_project MiniMind-Experiment-1.5.15 --memory_monitor_interval 100 \
    --base_experiment 1.5.14 \
    --keep_ffn --memory_layers 2 5 --cluster_cache_path dataset/cache/word_order.npz --cluster_words 8 \
    --retrieval_loss_coef 0.3 --entry_rows 24 --teacher_forcing 0.9 \
    --out_dir out/experiment_1_5_15 "$@"
