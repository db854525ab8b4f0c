#!/bin/sh
# Trains into exp/<dataset>/<name>, with Pointcept's options:
#
#   -p python      interpreter (default: .venv/bin/python if there is one, else python)
#   -d dataset     folder below exp/ and configs/ (default: the config's folder)
#   -c config      a path (configs/gaussiancross/rooms.py) or, with -d, a name (rooms) in configs/<dataset>/
#   -n name        of the run (default: the config's name)
#   -w weight      checkpoint to start from (.pth or .safetensors); with -r, the one to resume
#   -g gpus        processes on this machine, one per GPU; 0 is the CPU (default: the GPUs there are)
#   -m machines    (default 1); with more, SLURM_NODEID or NODE_RANK is this one's number and MASTER_ADDR:MASTER_PORT
#                  the address of the first
#   -r true|false  continue exp/<dataset>/<name> from its own config.py and model/model_last.pth
#   a.b=c ...      (last) settings on top of the config
#
#   sh tools/train.sh -c configs/gaussiancross/rooms.py -n first
#   sh tools/train.sh -d gaussiancross -c rooms -n first -r true
#
# Unlike Pointcept's script this one does not copy the code and run the copy: run.json names the commit, and
# code.diff holds what differs from it.

set -eu

ROOT=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/tools/common.sh"
TRAIN=true
parse_arguments "$@"
shift "$SHIFT"

if [ "$RESUME" = true ]; then
    CONFIG_PATH="$RUN/config.py"
    [ -f "$CONFIG_PATH" ] || fail "-r true: there is no $CONFIG_PATH to resume; start it without -r"
fi

set -- "save_path=$RUN" "$@"
[ -z "$WEIGHT" ] || set -- "weight=$WEIGHT" "$@"
set -- --config-file "$CONFIG_PATH" --options "$@"
[ "$RESUME" = false ] || set -- --resume "$@"
run train "$@"
