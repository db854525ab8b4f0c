# What train.sh and test.sh share: reading the options, and starting the processes. Sourced, never run.

fail() {
    echo "error: $*" >&2
    exit 2
}

# Sets PYTHON DATASET CONFIG_PATH NAME WEIGHT GPUS MACHINES RESUME RUN, and SHIFT, the number of arguments read.
parse_arguments() {
    PYTHON= DATASET= CONFIG= NAME= WEIGHT= GPUS= MACHINES=1 RESUME=false
    OPTIND=1
    while getopts "p:d:c:n:w:g:m:r:h" option; do
        case $option in
            p) PYTHON=$OPTARG ;;
            d) DATASET=$OPTARG ;;
            c) CONFIG=$OPTARG ;;
            n) NAME=$OPTARG ;;
            w) WEIGHT=$OPTARG ;;
            g) GPUS=$OPTARG ;;
            m) MACHINES=$OPTARG ;;
            r) RESUME=$OPTARG ;;
            h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            *) fail "the options are at the top of $0 (-h shows them)" ;;
        esac
    done
    SHIFT=$((OPTIND - 1))
    [ "$WEIGHT" != None ] || WEIGHT=
    [ "$GPUS" != None ] || GPUS=
    case "$RESUME" in true | false) ;; *) fail "-r takes true or false, got $RESUME" ;; esac
    case "${GPUS:-0}$MACHINES" in *[!0-9]*) fail "-g and -m take numbers, got ${GPUS:-none} and $MACHINES" ;; esac
    if [ -z "$PYTHON" ]; then
        if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; else PYTHON=python; fi
    fi
    DATASET_GIVEN=$DATASET
    find_config
    RUN="exp/$DATASET/$NAME"
    if [ -z "$CONFIG_PATH" ]; then
        CONFIG_PATH="$RUN/config.py"
        [ -f "$CONFIG_PATH" ] || fail "there is no $CONFIG_PATH; train.sh -c CONFIG -d $DATASET -n $NAME makes that run"
    fi
    [ -f "$CONFIG_PATH" ] || fail "no config file $CONFIG_PATH; $(near_configs)"
}

# The end of a sentence about a config that is not there.
near_configs() {
    PYTHONPATH="$ROOT" "$PYTHON" -c 'import sys; from pointcept3m.utils.files import near_configs; print(near_configs(*sys.argv[1:]))' \
        "$CONFIG_PATH" "$DATASET_GIVEN" "$ROOT" 2>/dev/null || echo "configs/*/ holds them"
}

# The config's path; and from it the dataset and the name, where they are not given.
find_config() {
    CONFIG_PATH=
    if [ -n "$CONFIG" ]; then
        name=${CONFIG%.py}
        for candidate in "$CONFIG" "$name.py" "configs/$DATASET/$name.py" "$ROOT/configs/$DATASET/$name.py" "$ROOT/$name.py"; do
            if [ -f "$candidate" ]; then
                CONFIG_PATH=$candidate
                break
            fi
        done
        [ -n "$CONFIG_PATH" ] || CONFIG_PATH=$CONFIG
        folder=$(basename -- "$(dirname -- "$CONFIG_PATH")")
        [ -n "$DATASET" ] || DATASET=$folder
        [ -n "$NAME" ] || NAME=$(basename -- "$CONFIG_PATH" .py)
    elif [ -z "$DATASET" ] || [ -z "$NAME" ]; then
        fail "give -c CONFIG, or -d DATASET and -n NAME of a run that there is"
    elif [ "$TRAIN" = true ] && [ "$RESUME" = false ]; then
        fail "give -c CONFIG (or -r true to continue exp/$DATASET/$NAME)"
    fi
}

# run train|test ARGUMENTS...: this process becomes python's, so that signals and the exit status are its own.
run() {
    verb=$1
    shift
    limit=$(ulimit -Hn) # workers pass tensors through open files
    case "$limit" in unlimited) ulimit -Sn 65536 ;; *) [ "$limit" -lt 65536 ] || limit=65536; ulimit -Sn "$limit" ;; esac || true
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    [ -z "$GPUS" ] || set -- --num-gpus "$GPUS" "$@"
    if [ "$MACHINES" -gt 1 ]; then
        rank=${SLURM_NODEID:-${NODE_RANK:-}}
        [ -n "$rank" ] || fail "-m $MACHINES: set NODE_RANK to this machine's number, from 0"
        [ -n "${MASTER_ADDR:-}" ] || fail "-m $MACHINES: set MASTER_ADDR (and MASTER_PORT) to the address of machine 0"
        set -- --num-machines "$MACHINES" --machine-rank "$rank" --dist-url "$MASTER_ADDR:${MASTER_PORT:-29500}" "$@"
    fi
    exec "$PYTHON" "$ROOT/tools/$verb.py" "$@"
}
