#!/usr/bin/env bash
# A variant of the memory at the size of the quick start, on the same data, compared with its two models. First run
# run_file/quickstart.sh once; then, in a few minutes on 2 CPU cores:
#
#   bash run_file/variant_cpu.sh weighted_sum --retrieval ngram --fusion weighted_sum
#
# The first word names the run folder, out/NAME; flags for the training follow and win over those below. Without
# --retrieval product keys find the entries, and they learn too slowly for a run of this size.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source run_file/_quickstart.sh
name=${1:?give a name for the run, then flags}
for needed in $data/train.jsonl out/quickstart_plain/eval.json out/quickstart_memory/eval.json; do
    if [ ! -f $needed ]; then
        echo "error: there is no $needed: run bash run_file/quickstart.sh first" >&2
        exit 1
    fi
done

EVALUATE=0 bash run_file/_launch.sh --no_resume --out_dir "out/$name" --experiment_dir out/records \
    --base_experiment quickstart_plain "${small[@]}" --log_interval 20 \
    --model_type model_memory --memory_layers 1 --keep_ffn --knowledge_num 25281 --knowledge_length 24 "${@:2}"
"$PYTHON" eval_model.py --run "out/$name" --limit 400 --tasks language object retrieval \
    --arms "bank shuffled" "gold entry forced"
"$PYTHON" -m experiment compare out/quickstart_plain out/quickstart_memory "out/$name"
