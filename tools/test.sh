#!/bin/sh
# Tests a run of tools/train.sh; results go to exp/<dataset>/<name>/test. The options are those of train.sh, and
#
#   -c config      default: the run's own config.py
#   -w weight      a path, or the name of a checkpoint of the run: model_best (default), model_last, epoch_10
#
#   sh tools/test.sh -d scannet -n semseg -w model_last

set -eu

ROOT=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/tools/common.sh"
TRAIN=false
parse_arguments "$@"
shift "$SHIFT"

[ -n "$WEIGHT" ] || WEIGHT=model_best
if [ ! -f "$WEIGHT" ]; then
    case "$WEIGHT" in
        */* | *.pth | *.safetensors) ;;
        *) WEIGHT="$RUN/model/$WEIGHT.pth" ;;
    esac
fi
run test --config-file "$CONFIG_PATH" --options "save_path=$RUN/test" "weight=$WEIGHT" "$@"
