# Sourced: `follow NAME=PID ...` says how far the runs out/NAME are while their background jobs live: one line that is
# written over on a terminal, else a line every ten seconds. It fails if a job failed, once all have ended.
follow() {
    local pair line alive begin=$SECONDS next=0
    while :; do
        line= alive=
        for pair in "$@"; do
            if kill -0 "${pair#*=}" 2>/dev/null; then
                alive=1
                line+="${line:+ | }${pair%%=*}: $(state_of "${pair%%=*}")"
            else
                line+="${line:+ | }${pair%%=*}: ended"
            fi
        done
        [ -n "$alive" ] || break
        if [ -t 1 ]; then
            printf '\r\033[K%4d s  %s' $((SECONDS - begin)) "$line"
        elif [ $((SECONDS - begin)) -ge $next ]; then
            printf '%4d s  %s\n' $((SECONDS - begin)) "$line"
            next=$((next + 10))
        fi
        sleep 1
    done
    [ ! -t 1 ] || printf '\r\033[K'
    for pair in "$@"; do
        wait "${pair#*=}"
    done
}

state_of() { # NAME: the last that its evaluation or its training wrote down
    local said
    if [ -e "out/$1.eval.log" ]; then
        said=$(grep -a '^evaluating' "out/$1.eval.log" | tail -n 1)
        echo "${said:-evaluating}"
    else
        said=$(grep -aos 'step [0-9]*/[0-9]* loss [0-9.]*' "out/$1/train.log" | tail -n 1)
        echo "${said:-starting}"
    fi
}
