#!/usr/bin/env bash
# From nothing to a result on 2 CPU cores: environment, facts, tokenizer, a plain and a memory model trained side by side
# on the same tokens, evaluation, records. Run again, it starts over with the same seed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source run_file/_progress.sh
source run_file/_quickstart.sh
begin=$SECONDS

cores=$(nproc)
export OMP_NUM_THREADS=$((cores > 1 ? cores / 2 : 1)) OMP_WAIT_POLICY=PASSIVE EVALUATE=0

echo "== facts, their texts and questions; a tokenizer"
"$PYTHON" -m dataset.quickstart --out $data
"$PYTHON" -m dataset.questions --out $data/questions.jsonl --limit 4000 \
    --object $data/object_train.jsonl --relation $data/relation_train.jsonl --verification $data/verification_train.jsonl &
questions=$!
"$PYTHON" -m dataset.tokenizer --data $data/pretrain.jsonl --vocab_size 2048 --out $data/tokenizer
wait $questions
cat $data/pretrain.jsonl $data/questions.jsonl > $data/train.jsonl

echo "== two models, trained and evaluated side by side (logs: out/quickstart_*/train.log)"
try() { # log, command: silent, unless it fails
    "${@:2}" > "$1" 2>&1 || { tail -n 5 "$1" >&2; return 1; }
}
tasks=(language object exact_match relation verification frequency retrieval edits usage generation)
run() { # name, flags of its model
    try "out/$1.log" bash run_file/_launch.sh --no_resume --out_dir "out/$1" "${small[@]}" --log_interval 10 "${@:2}"
    if ! kill -0 "${plain:-$$}" 2>/dev/null; then # the other model is done: all cores are free
        export OMP_NUM_THREADS=$cores
    fi
    try "out/$1.eval.log" "$PYTHON" eval_model.py --run "out/$1" --limit 200 --batch_size 128 --tasks "${tasks[@]}"
}
mkdir -p out
rm -rf out/quickstart_{plain,memory}{.log,.eval.log,/train.log}
run quickstart_plain --model_type model_original &
plain=$!
OMP_NUM_THREADS=$cores run quickstart_memory --base_experiment quickstart_plain --model_type model_memory --retrieval ngram --fusion words \
    --pointer --memory_layers 1 --keep_ffn --retrieval_noise 0.2 --knowledge_num auto --reserve_entries 64 --knowledge_length 24 &
follow quickstart_plain=$plain quickstart_memory=$!
"$PYTHON" -m editing.trace --run out/quickstart_memory --new_tokens 12 --show 3 > out/quickstart_trace.log \
    --prompts "Lygia Pape was born in" "The native language of Chuvash people is" "The region of Melbourne Village is" &
trace=$!
"$PYTHON" -m experiment draft out/quickstart_plain out/quickstart_memory > out/quickstart_records.log &
records=$!
"$PYTHON" eval_model.py --compare out/quickstart_plain out/quickstart_memory
echo
echo "seen: facts that the training text and the bank hold; bank_only: facts that only the bank holds."
echo "Read the memory's gain as memory minus plain, and its use of the bank as memory minus bank shuffled or"
echo "counterfactual (the bank states a wrong object for each asked fact)."
echo
echo "== three sentences of the memory model, and what it looked up while it wrote the first"
wait $trace
cat out/quickstart_trace.log
echo
echo "== records, curves, and the two runs compared"
wait $records
cat out/quickstart_records.log
"$PYTHON" -m experiment compare out/quickstart_plain out/quickstart_memory
echo
echo "== twenty facts of nobody's, which no training has seen: put into the memory, asked, one edited; then taken out"
"$PYTHON" -m editing --run out/quickstart_memory < docs/examples/own_facts.txt
echo "done in $((SECONDS - begin)) s after the installation"
