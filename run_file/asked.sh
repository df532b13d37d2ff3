#!/usr/bin/env bash
# Facts asked in any words, on one GPU: a plain and a memory model learn text and questions together, among them
# questions about invented facts. Then they are asked about other facts, and the public tests:
#
#   for seed in 1 2 3; do SEED=$seed bash run_file/asked.sh; done
#   EXPERIMENT=1_6_22 CAPITALS=0.5 ABSENT=0.2 CALIBRATE=1 EVAL_FLAGS="--asked_cases 300" bash run_file/asked.sh
#   EXPERIMENT=1_6_35 CAPITALS=0.5 ABSENT=0.2 CROWDED=10000 SCRAMBLED=0.35 KEPT_BACK=0.15 CALIBRATE=1 bash run_file/asked.sh
#   EXPERIMENT=1_6_41 PASSAGES=1 ...      # as the line above; passages of the text are in the bank, too
#
# DATA (dataset/stable) holds the files that knowledge.sh needs, and of the public tests what there is, as
# python -m dataset.convert writes it: pararel_object.jsonl, popqa_insert.jsonl, zsre_insert.jsonl, counterfact_edit.jsonl.
# A test without its file is told and left out. STEPS, EXPERIMENT and MOST (invented facts of a predicate) change what is
# run; CAPITALS, ABSENT, CROWDED (python -m dataset.invented --help) and SCRAMBLED (dataset.questions) what is learned.
# CALIBRATE=1 runs evaluation.calibrate after the training. With KEPT_BACK training, and the other words that the search
# adds to entries, leave out this share of the wordings, and calibration asks in them. After all seeds,
# python -m evaluation.calibrate --run A B C with the same flags gives them one setting. Flags on the command line go to
# both trainings, EVAL_FLAGS (--limit 500) to all evaluations.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
data=${DATA:-dataset/stable} seed=${SEED:-42} experiment=${EXPERIMENT:-1_6_14} steps=${STEPS:-3000} most=${MOST:-1000}
missing=()
for needed in merged_pretrain.jsonl pretrain_val.jsonl sentence_trex_data.json \
    {object_mcq,relation_mcq,fact_verification}_{train,dev}.jsonl; do
    if [ ! -e "$data/$needed" ]; then missing+=("$needed"); fi
done
if [ ${#missing[@]} != 0 ]; then
    echo "error: $data has no ${missing[*]}: name a folder that holds all that knowledge.sh needs with DATA=FOLDER" >&2
    exit 1
fi

flags=$(LIST=1 bash "run_file/experiment_$experiment.sh")
if [ "${PASSAGES:-0}" = 1 ] && [[ ! $flags =~ --suffix_layers|"--retrieval suffix" ]]; then
    echo "error: PASSAGES=1 needs an experiment that searches suffixes, such as EXPERIMENT=1_6_37, not $experiment" >&2
    exit 1
fi

asked=dataset/asked
rm -rf $asked
mkdir -p $asked/{text,bank,object,verification}
link() { # FILE, FOLDER, NAME: reads the file as one of the folder
    ln -s "$(realpath "$1")" "$2/$3"
}
"$PYTHON" -m dataset.invented --knowledge "$data/sentence_trex_data.json" --most "$most" --capitals "${CAPITALS:-0}" \
    --absent "${ABSENT:-0}" --crowded "${CROWDED:-0}" --out $asked/invented
for kind in object:object_mcq verification:fact_verification; do
    link "$data/${kind#*:}_train.jsonl" $asked/${kind%:*} own.jsonl
    link $asked/invented/${kind%:*}.jsonl $asked/${kind%:*} invented.jsonl
done
"$PYTHON" -m dataset.questions --object $asked/object --relation "$data/relation_mcq_train.jsonl" \
    --verification $asked/verification --wordings dataset/wordings.json --kept_back "${KEPT_BACK:-0}" --reworded 0.7 \
    --shortened 0.25 --scrambled "${SCRAMBLED:-0}" --preceded 0.5 --preceded_by "$data/merged_pretrain.jsonl" \
    --seed "$seed" --out $asked/text/questions.jsonl
"$PYTHON" -m dataset.absent --knowledge "$data/sentence_trex_data.json" --object "$data/object_mcq_train.jsonl" \
    --share 0.2 --seed "$seed" --out $asked/bank/facts.json
link "$data/merged_pretrain.jsonl" $asked/text text.jsonl
link $asked/invented/knowledge.json $asked/bank invented.json
if [ "${PASSAGES:-0}" = 1 ]; then
    "$PYTHON" -m dataset.passages $asked/text --only text.jsonl --longest 96 --out $asked/bank/passages.jsonl
fi

more=("$@")
run() { # name, experiment, flags
    EVALUATE=0 bash "run_file/experiment_$2.sh" --out_dir "out/$1" --experiment "$1" --experiment_dir out/records \
        --seed "$seed" --max_steps "$steps" --epochs 1000 --eval_interval 1000 --save_interval 1000 --log_interval 50 \
        --data_path $asked/text --val_path "$data/pretrain_val.jsonl" --object_path "$data/object_mcq_dev.jsonl" \
        --relation_path "$data/relation_mcq_dev.jsonl" --verification_path "$data/fact_verification_dev.jsonl" \
        --use_swanlab False "${@:3}" "${more[@]}"
}
evaluate() { # name, flags
    "$PYTHON" eval_model.py --run "out/$1" --batch_size 128 ${EVAL_FLAGS:-} "${@:2}"
}
questions=(object reworded exact_match relation verification)
plain=asked_plain_seed$seed memory=asked_${experiment}_seed$seed
run "$plain" 1_6_0
evaluate "$plain" --tasks language "${questions[@]}" --arms
back=() also=()
if [[ ${KEPT_BACK:-0} =~ [1-9] ]]; then
    back=(--wordings dataset/wordings.json --kept_back "$KEPT_BACK")
    if [[ $flags == *$'\n'"--bm25_also_words "* ]]; then
        "$PYTHON" -m dataset.also_words --knowledge "$data/sentence_trex_data.json" "${back[@]}" > $asked/also_words.txt
        also=(--bm25_also_words $(< $asked/also_words.txt))
    fi
fi
run "$memory" "$experiment" --database_init_path $asked/bank --knowledge_num auto --reserve_entries 1000 "${also[@]}"
if [ "${CALIBRATE:-0}" = 1 ]; then
    "$PYTHON" -m evaluation.calibrate --run "out/$memory" --object_path "$data/object_mcq_train.jsonl" --limit 250 \
        "${back[@]}"
fi
evaluate "$memory" --tasks language "${questions[@]}" frequency lookup search_alone retrieval --arms "bank shuffled"
ask() { # task, flag of its file, files: those that exist are asked together
    local task=$1 flag=$2 found=() file
    for file in "${@:3}"; do
        if [ -e "$data/$file" ]; then found+=("$data/$file"); fi
    done
    if [ ${#found[@]} = 0 ]; then
        echo "left out: the test $task, for $data has no ${*:3}"
        return
    fi
    cat "${found[@]}" > "$asked/$task.jsonl"
    for name in "$plain" "$memory"; do
        evaluate "$name" --tasks "$task" "$flag" "$asked/$task.jsonl" --arms
    done
}
ask pararel --pararel_path pararel_object.jsonl
ask insertion --insert_path popqa_insert.jsonl zsre_insert.jsonl
ask counterfact --counterfact_path counterfact_edit.jsonl
"$PYTHON" eval_model.py --compare "out/$plain" "out/$memory"
