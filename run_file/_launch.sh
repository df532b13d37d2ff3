#!/usr/bin/env bash
# Trains with the flags given, then evaluates the run and completes its record.
#
#   NUM_PROCESSES=4 bash run_file/experiment_1_4_8.sh --batch_size 24      # 4 GPUs of this machine
#   NUM_PROCESSES=8 ACCELERATE_FLAGS="--num_machines 2 --machine_rank 0 --main_process_ip HOST --main_process_port 29500" \
#       bash run_file/experiment_1_4_8.sh      # on each of 2 machines, with its own rank: 8 GPUs in all, a disk that both see
#
# Any flag on the command line overrides the script's: the last one wins. EVALUATE=0 leaves the evaluation out.
# LIST=1 prints the flags, quoted, one a line, and starts nothing.
set -euo pipefail
if [ "${LIST:-}" = 1 ]; then
    line=
    for word in "$@"; do
        [[ $word != --* ]] || { [ -z "$line" ] || echo "$line"; line=; }
        printf -v quoted %q "$word"
        line+=${line:+ }$quoted
    done
    echo "$line"
    exit
fi
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

processes=${NUM_PROCESSES:-1}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
if [ "$processes" = 1 ] && [ -z "${ACCELERATE_FLAGS:-}" ]; then
    launch=()  # without a launcher between, signals and exit codes are the run's own
elif ! "$PYTHON" -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then
    export ACCELERATE_USE_CPU=true  # accelerate's launcher would start one process and say nothing
    launch=(-m torch.distributed.run --nproc_per_node "$processes")
else
    # The precision is the run's own flag --dtype; here it only keeps the launcher from guessing.
    launch=(-m accelerate.commands.launch --quiet --num_processes "$processes" --num_machines 1 --mixed_precision no
        --dynamo_backend no --num_cpu_threads_per_process "$OMP_NUM_THREADS")
    [ "$processes" = 1 ] || launch+=(--multi_gpu)
fi
# shellcheck disable=SC2086
"$PYTHON" "${launch[@]}" ${ACCELERATE_FLAGS:-} train_pretrain_accelerate.py "$@"

# Of several machines the first one evaluates.
[[ ! "${ACCELERATE_FLAGS:-}" =~ --(machine|node)_rank[\ =]+0*[1-9] ]] || EVALUATE=0
if [ "${EVALUATE:-1}" = 1 ]; then
    out_dir=
    all=("$@")
    has_config=
    while [ $# -gt 0 ]; do
        case $1 in
            --out_dir) out_dir=$2 ;;
            --out_dir=*) out_dir=${1#*=} ;;
            --config | --config=*) has_config=1 ;;
        esac
        shift
    done
    if [ -n "$has_config" ]; then  # the file may name another
        out_dir=$("$PYTHON" -c "import sys; from trainer.config import parse_cli; print(parse_cli(sys.argv[1:]).run.out_dir)" \
            "${all[@]}")
    fi
    "$PYTHON" eval_model.py --run "${out_dir:-out/run}"
fi
