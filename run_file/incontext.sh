#!/usr/bin/env bash
# Memory or prompt? Three models learn the same questions in the same steps: the plain one, the plain one with the
# entries of the memory's retrieval in its prompt, and the memory model. Then all are asked, and timed:
#
#   PLAIN=out/quickstart_plain MEMORY=out/quickstart_memory QUESTIONS=dataset/quickstart/questions.jsonl \
#       bash run_file/incontext.sh --batch_size 64
#
# PLAIN and MEMORY are trained runs, whose flags hold; MEMORY's bank and n-grams find the entries. QUESTIONS is a file of
# python -m dataset.questions. STEPS of --batch_size questions each are learnt. SEED, NAME (of the run folders) and
# RETRIEVER=words change what is run, LIMIT and BATCH the evaluation. LONGEST (256) is the longest question behind its
# entries, in tokens. Flags go to every training.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
steps=${STEPS:-160} seed=${SEED:-42} name=${NAME:-incontext} retriever=${RETRIEVER:-run}
for needed in PLAIN MEMORY QUESTIONS; do
    if [ ! -e "${!needed:-}" ]; then
        echo "error: $needed='${!needed:-}' is not there: name two trained runs and a file of questions, see the head of $0" >&2
        exit 1
    fi
done
mkdir -p out
entries=out/${name}_questions.jsonl
"$PYTHON" -m evaluation.in_context --entries_from "$MEMORY" --retriever "$retriever" --questions "$QUESTIONS" --out "$entries"

more=("$@")
run() { # name, run to start from, questions, tokens of the longest one, control
    # One question a row, so that all models learn equally many in a step.
    EVALUATE=0 bash run_file/_launch.sh --config "$2/flags.json" --init_path "$2" --out_dir "out/${name}_$1" \
        --data_path "$3" --data_mode padded --max_seq_len "$4" --epochs 1000 --max_steps "$steps" --seed "$seed" \
        --accumulation_steps 1 --batch_size 64 --eval_interval "$steps" --save_interval "$steps" "${more[@]}"
    "$PYTHON" eval_model.py --run "out/${name}_$1" --entries_from "$MEMORY" --retriever "$retriever" --arms "${@:5}" \
        --tasks object reworded exact_match relation verification cost --batch_size "${BATCH:-128}" ${LIMIT:+--limit "$LIMIT"}
}
run plain "$PLAIN" "$QUESTIONS" 128
run entries "$PLAIN" "$entries" "${LONGEST:-256}" "entries in prompt"
run memory "$MEMORY" "$QUESTIONS" 128
"$PYTHON" eval_model.py --compare "out/${name}_plain" "out/${name}_entries" "out/${name}_memory"
