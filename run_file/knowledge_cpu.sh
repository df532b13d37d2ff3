#!/usr/bin/env bash
# The knowledge protocol at CPU size: a small plain and a small memory model learn 10,000 questions of each kind and are
# asked about other facts of a bank of a million. A quarter of an hour a seed on 2 cores:
#
#   for seed in 1 2 3; do SEED=$seed bash run_file/knowledge_cpu.sh; done
#
# DATA holds knowledge.json, {object_mcq,relation_mcq,fact_verification}_{train,dev}.jsonl and edit_dev.jsonl, with the
# fields of the quick start's files. REWORDED is the share of object questions that are reworded for learning.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source run_file/_progress.sh
data=${DATA:-dataset/stable} seed=${SEED:-1} questions=${QUESTIONS:-10000}
export OMP_NUM_THREADS=1
mkdir -p out
"$PYTHON" -m dataset.questions --limit "$questions" --reworded "${REWORDED:-0.25}" --out "$data/questions_$questions.jsonl" \
    --object "$data/object_mcq_train.jsonl" --relation "$data/relation_mcq_train.jsonl" \
    --verification "$data/fact_verification_train.jsonl"

run() {
    name=knowledge_cpu_${1}_seed$seed
    rm -f "out/$name.eval.log"
    EVALUATE=0 bash run_file/_launch.sh --out_dir "out/$name" --seed "$seed" "${@:2}" \
        --data_path "$data/questions_$questions.jsonl" --database_init_path "$data/knowledge.json" \
        --object_path "$data/object_mcq_dev.jsonl" --relation_path "$data/relation_mcq_dev.jsonl" \
        --verification_path "$data/fact_verification_dev.jsonl" --edit_path "$data/edit_dev.jsonl" \
        --dim 192 --n_layers 4 --n_heads 4 --max_seq_len 128 \
        --epochs 20 --max_steps 400 --batch_size 16 --accumulation_steps 1 --learning_rate 2e-3 --dtype bfloat16 \
        --log_interval 20 --eval_interval 200 --save_interval 100 --memory_monitor_interval 100 \
        > "out/$name.log" 2>&1 || { tail -n 5 "out/$name.log" >&2; return 1; }
    arms=()
    [ "$1" = plain ] || arms=("bank counterfactual")
    "$PYTHON" eval_model.py --run "out/$name" --limit 1000 --arms "${arms[@]}" \
        --tasks object exact_match relation verification frequency retrieval edits \
        > "out/$name.eval.log" 2>&1 || { tail -n 5 "out/$name.eval.log" >&2; return 1; }
}
run plain --model_type model_original &
plain=$!
run memory --model_type model_memory --retrieval ngram --fusion words --pointer --memory_layers 1 2 --keep_ffn \
    --retrieval_noise 0.1 --freeze_ratio 1.0 --knowledge_num 1048576 --knowledge_length 32 &
follow "knowledge_cpu_plain_seed$seed=$plain" "knowledge_cpu_memory_seed$seed=$!"
"$PYTHON" eval_model.py --compare "out/knowledge_cpu_plain_seed$seed" "out/knowledge_cpu_memory_seed$seed"
