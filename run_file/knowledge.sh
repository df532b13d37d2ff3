#!/usr/bin/env bash
# The knowledge protocol at full size, on one GPU: a plain and a memory model learn the same text for the same number of
# steps, then the same questions, and are asked about other facts of a bank of a million:
#
#   for seed in 1 2 3; do SEED=$seed bash run_file/knowledge.sh; done
#
# DATA (dataset/stable) holds merged_pretrain.jsonl, pretrain_val.jsonl, sentence_trex_data.json,
# {object_mcq,relation_mcq,fact_verification}_{train,dev}.jsonl and edit_dev.jsonl, with the fields of the quick start's
# files. EXPERIMENT, STEPS, QUESTIONS and REWORDED change what is run; flags on the command line go to every training.
# With TEXT_EXPERIMENT the text is learnt as that one says, and the questions as EXPERIMENT does (1.5.14, then 1.5.15).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
data=${DATA:-dataset/stable} seed=${SEED:-42} experiment=${EXPERIMENT:-1_5_0} steps=${STEPS:-2000}
export EVALUATE=0

more=("$@")
run() { # name, experiment, flags
    local script=run_file/experiment_$2.sh
    [ -f "$script" ] || script=run_file/archive/experiment_$2.sh
    bash "$script" --out_dir "out/$1" --seed "$seed" --accumulation_steps 1 --learning_rate 1e-3 \
        --database_init_path "$data/sentence_trex_data.json" --val_path "$data/pretrain_val.jsonl" \
        --object_path "$data/object_mcq_dev.jsonl" --relation_path "$data/relation_mcq_dev.jsonl" \
        --verification_path "$data/fact_verification_dev.jsonl" --edit_path "$data/edit_dev.jsonl" \
        --log_interval 50 --eval_interval 1000 "${@:3}" "${more[@]}"
}
evaluate() { # name, flags
    "$PYTHON" eval_model.py --run "out/$1" --batch_size 128 "${@:2}"
}

runs=()
for name in 1_4_0 "$experiment"; do
    text=$name
    [ "$name" = "$experiment" ] && text=${TEXT_EXPERIMENT:-$name}
    run "knowledge_${text}_seed$seed" "$text" --data_path "$data/merged_pretrain.jsonl" --max_steps "$steps"
    evaluate "knowledge_${text}_seed$seed" --tasks language usage generation
    for n in ${QUESTIONS:-10000 25000 50000 100000}; do
        file=$data/questions_$n.jsonl tuned=knowledge_${name}_${n}_seed$seed
        "$PYTHON" -m dataset.questions --limit "$n" --reworded "${REWORDED:-0.25}" --out "$file" \
            --object "$data/object_mcq_train.jsonl" --relation "$data/relation_mcq_train.jsonl" \
            --verification "$data/fact_verification_train.jsonl"
        epochs=$((n > 25000 ? 1 + 150000 / n : 8))
        run "$tuned" "$name" --data_path "$file" --epochs "$epochs" --init_path "out/knowledge_${text}_seed$seed"
        evaluate "$tuned" --tasks object relation verification exact_match frequency retrieval edits
        runs+=("out/$tuned")
    done
done
"$PYTHON" eval_model.py --compare "${runs[@]}"
