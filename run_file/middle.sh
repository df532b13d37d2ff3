#!/usr/bin/env bash
# The middle size, for one GPU of 24 GB: a plain and a memory model of 29 million parameters learn articles of Wikipedia
# in Simple English and the facts and questions of the quick start. The bank holds all those facts, and sentences of
# other articles. Then both are asked, the memory model with its bank shuffled too:
#
#   bash run_file/data.sh wikipedia && bash run_file/middle.sh
#
# TEXT, VAL and SENTENCES name other files than those of data.sh (also .gz, .zst, parquet, folders). STEPS, of 24,576
# tokens (3000), SEED and MODELS (memory: that one alone) change what is run. Flags on the command line go to both
# trainings, EVAL_FLAGS (--limit 500) to both evaluations. Expected numbers and time: docs/results_middle.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
text=${TEXT:-dataset/stable/wikipedia.jsonl} val=${VAL:-dataset/stable/wikipedia_val.jsonl}
sentences=${SENTENCES:-dataset/stable/wikipedia_knowledge.jsonl}
steps=${STEPS:-3000} seed=${SEED:-42} models=${MODELS:-plain memory}
data=dataset/quickstart middle=dataset/middle
for model in $models; do
    if [ "$model" != plain ] && [ "$model" != memory ]; then
        echo "error: MODELS has '$model': it takes plain, memory, or both" >&2
        exit 1
    fi
done
for needed in "$text" "$val" "$sentences"; do
    if [ ! -e "$needed" ]; then
        echo "error: there is no $needed: run bash run_file/data.sh wikipedia first" >&2
        exit 1
    fi
done

"$PYTHON" -m dataset.quickstart --out $data
rm -rf $middle
mkdir -p $middle/text $middle/bank
"$PYTHON" -m dataset.questions --out $middle/text/questions.jsonl \
    --object $data/object_train.jsonl --relation $data/relation_train.jsonl --verification $data/verification_train.jsonl
link() { # FILE, FOLDER: reads the file as one of the folder
    ln -s "$(realpath "$1")" "$2/$(basename "$1")"
}
link "$text" $middle/text
link $data/pretrain.jsonl $middle/text
link $data/knowledge.json $middle/bank
link "$sentences" $middle/bank

run() { # name, experiment, flags
    EVALUATE=0 bash "run_file/experiment_$2.sh" --out_dir "out/$1" --experiment "$1" --experiment_dir out/records \
        --seed "$seed" --max_steps "$steps" --epochs 1000 --accumulation_steps 1 --learning_rate 1e-3 \
        --data_path $middle/text --val_path "$val" --database_init_path $middle/bank \
        --object_path $data/object.jsonl --relation_path $data/relation.jsonl \
        --verification_path $data/verification.jsonl --edit_path $data/edit.jsonl \
        --val_questions $data/object.jsonl --use_swanlab False \
        --log_interval 50 --eval_interval 1000 --save_interval 2000 "${@:3}"
    "$PYTHON" eval_model.py --run "out/$1" --batch_size 128 ${EVAL_FLAGS:-} --arms "${arms[@]}" \
        --tasks language object exact_match relation verification frequency lookup search_alone retrieval edits \
        usage
}
arms=()
[[ $models != *plain* ]] || run "middle_plain_seed$seed" 1_4_0 "$@"
arms=("bank shuffled" "bank counterfactual")
[[ $models != *memory* ]] || run "middle_memory_seed$seed" 1_5_0 --knowledge_num auto --reserve_entries 1000 "$@"
if [ -e "out/middle_plain_seed$seed/eval.json" ] && [ -e "out/middle_memory_seed$seed/eval.json" ]; then
    "$PYTHON" eval_model.py --compare "out/middle_plain_seed$seed" "out/middle_memory_seed$seed"
fi
