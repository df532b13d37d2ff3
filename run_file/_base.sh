# Sourced by the experiment scripts: the flags that all experiments share, and the words that a script is made of.
#
#   builds_on 1_4_8          # take all flags of run_file/experiment_1_4_8.sh
#   flags --fusion_heads 16  # replace or add flags
#   launch "$@"              # train, evaluate and record; flags of the command line win
#
# Run folder, base experiment and, for 1.4.x, SwanLab project follow from the name of the script and from builds_on.
# With LIST=1 in the environment a script prints its flags, quoted, one a line, and starts nothing.
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
resolved=()  # the words of the flags so far
base=

flags() { # --name value ... : each flag takes the place of an earlier one with its name
    local rest=() name= word
    for word in "$@"; do
        if [[ $word = --* ]]; then
            name=${word%%=*}
            drop "$name"
        elif [ -z "$name" ]; then
            refuse "'$word' stands before the first flag"
        fi
        rest+=("$word")
    done
    resolved+=("${rest[@]}")
}

drop() { # --name : take a flag and its values out
    local rest=() dropped= word
    [[ " ${resolved[*]} " = *" $1"[\ =]* ]] || return 0  # it is not there, as most often
    for word in "${resolved[@]}"; do
        if [[ $word = --* ]]; then
            [ "${word%%=*}" = "$1" ] && dropped=1 || dropped=
        fi
        [ -n "$dropped" ] || rest+=("$word")
    done
    resolved=("${rest[@]}")
}

builds_on() { # NAME, such as 1_4_8
    base=${1//./_}
    local path=$folder/experiment_$base.sh chain="${CHAIN:-} $(script) " listed
    [ -f "$path" ] || path=$folder/archive/experiment_$base.sh
    [ -f "$path" ] || refuse "it builds on $1, but there is no $folder/experiment_$base.sh"
    [[ $chain != *" $base "* ]] || refuse "it builds on itself, by way of $1"
    listed=$(LIST=1 CHAIN=$chain bash "$path")
    eval "flags ${listed//$'\n'/ }"
    drop --swanlab_project
}

refuse() { # sentence
    echo "error: experiment_$(script).sh: $1" >&2
    exit 1
}

script() { # the name of the experiment, such as 1_5_2
    local name=${BASH_SOURCE[-1]##*/}
    name=${name%.sh}
    echo "${name#experiment_}"
}

launch() { # the command line
    local name
    name=$(script)
    # The users' record gives each of 1.4.x a project of its own, which its variants share; all others share one.
    [[ ! $name =~ ^(1_4_[0-9]+) ]] || flags --swanlab_project "MiniMind-Experiment-${BASH_REMATCH[1]//_/.}"
    [ -z "$base" ] || flags --base_experiment "${base//_/.}"
    flags --out_dir "out/experiment_$name"
    exec bash "$folder/_launch.sh" "${resolved[@]}" "$@"
}

flags --dim 512 --n_layers 8 --n_heads 32 --max_seq_len 512 --use_moe False --use_flash_attn \
    --epochs 3 --batch_size 48 --accumulation_steps 12 --learning_rate 2e-4 --dtype bfloat16 --grad_clip 1.0 \
    --data_path dataset/stable/merged_pretrain.jsonl --use_swanlab --memory_monitor_interval 100
