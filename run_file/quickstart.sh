#!/usr/bin/env bash
# From nothing to a result on 2 CPU cores: environment, facts, tokenizer, a plain and a memory model trained side by side
# on the same tokens, evaluation, records. Run again, it starts over with the same seed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
begin=$SECONDS
data=dataset/quickstart

echo "== facts, their texts and questions; a tokenizer"
"$PYTHON" -m dataset.quickstart --out $data
"$PYTHON" -m dataset.questions --out $data/questions.jsonl --limit 4000 \
    --object $data/object_train.jsonl --relation $data/relation_train.jsonl --verification $data/verification_train.jsonl
cat $data/pretrain.jsonl $data/questions.jsonl > $data/train.jsonl
"$PYTHON" -m dataset.tokenizer --data $data/pretrain.jsonl --vocab_size 2048 --out $data/tokenizer

echo "== two models, trained side by side (logs: out/quickstart_*/train.log)"
cores=$(nproc)
export OMP_NUM_THREADS=$((cores > 1 ? cores / 2 : 1)) EVALUATE=0
train() {
    bash run_file/_launch.sh --no_resume --out_dir "out/$1" "${@:2}" \
        --data_path $data/train.jsonl --val_path $data/val.jsonl --tokenizer_path $data/tokenizer \
        --object_path $data/object.jsonl --relation_path $data/relation.jsonl \
        --verification_path $data/verification.jsonl --edit_path $data/edit.jsonl \
        --database_init_path $data/knowledge.json \
        --dim 128 --n_layers 4 --n_heads 4 --max_seq_len 128 --vocab_size 2048 \
        --epochs 20 --max_steps 250 --batch_size 16 --accumulation_steps 1 --learning_rate 2e-3 --dtype float32 \
        --log_interval 20 --eval_interval 250 --save_interval 250 --memory_monitor_interval 50 \
        > "out/$1.log" 2>&1 || { tail -n 5 "out/$1.log" >&2; return 1; }
}
mkdir -p out
train quickstart_plain --model_type model_original &
plain=$!
train quickstart_memory --base_experiment quickstart_plain --model_type model_memory --retrieval ngram --fusion words --pointer --memory_layers 1 \
    --keep_ffn --retrieval_noise 0.2 --knowledge_num 25494 --knowledge_length 24 &
memory=$!
wait $plain
wait $memory

echo "== evaluation"
evaluate() {
    "$PYTHON" eval_model.py --run "out/$1" --limit 400 > "out/$1.eval.log" 2>&1 || { tail -n 5 "out/$1.eval.log" >&2; return 1; }
}
evaluate quickstart_plain &
plain=$!
evaluate quickstart_memory
wait $plain
"$PYTHON" eval_model.py --compare out/quickstart_plain out/quickstart_memory
echo
echo "seen: facts that the training text and the bank hold; bank_only: facts that only the bank holds."
echo "Read the memory's gain as memory minus plain, and its use of the bank as memory minus bank shuffled or"
echo "counterfactual (the bank states a wrong object for each asked fact)."
echo
echo "== three sentences of the memory model, and what it looked up while it wrote the first"
"$PYTHON" -m editing.trace --run out/quickstart_memory --new_tokens 12 --show 3 \
    --prompts "Lygia Pape was born in" "The native language of Chuvash people is" "The region of Melbourne Village is"
echo
echo "== records, curves, and the two runs compared"
"$PYTHON" -m experiment fill out/quickstart_plain out/quickstart_memory
"$PYTHON" -m experiment compare out/quickstart_plain out/quickstart_memory
echo "done in $((SECONDS - begin)) s after the installation"
