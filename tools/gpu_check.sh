#!/bin/sh
# sh tools/gpu_check.sh [FOLDER]      for a machine with an NVIDIA GPU; about 8 minutes
#
# Builds both kernel libraries for the GPU at hand, runs the tests marked gpu, replays the tests of the ops on CUDA, runs
# the benchmarks against gsplat, spconv and torch_scatter where these are installed, a short pretraining at the paper's
# size, and compute-sanitizer where it is installed. What it finds goes into FOLDER (default: benchmarks/results/gpu):
# summary.md, with the machine, the versions and each step's result, and one file a step. A step that fails or outlasts
# its time is named in the summary and does not keep the others from running; the exit code is the number of such steps.
#
# PYTHON names the Python whose torch is used. MINUTES (default 8) bounds the whole run.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=${1:-benchmarks/results/gpu}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
deadline=$(($(date +%s) + 60 * ${MINUTES:-8}))
failed=0
summary=$folder/summary.md
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# step NAME SECONDS COMMAND...   runs a command, at most SECONDS and never past the deadline; its output is NAME.txt
step() {
  name=$1 limit=$2
  shift 2
  left=$((deadline - $(date +%s)))
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 10 ]; then
    echo "| $name | no time was left | |" | tee -a "$summary"
    failed=$((failed + 1))
    return
  fi
  began=$(date +%s)
  timeout "$limit" "$@" >"$folder/$name.txt" 2>&1
  code=$?
  result=passed
  [ $code -eq 124 ] && result="stopped after $limit s"
  [ $code -ne 0 ] && [ $code -ne 124 ] && result="failed ($code)"
  [ $code -ne 0 ] && failed=$((failed + 1))
  echo "| $name | $result | $(($(date +%s) - began)) s |" | tee -a "$summary"
}

{
  echo "# GPU check"
  echo
  echo "\`sh tools/gpu_check.sh\`, $(date +%F), commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "nvidia-smi found no GPU"
  "$python" -c 'import torch; print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.get_num_threads()} CPU threads")'
  echo
  echo "| step | result | time |"
  echo "|---|---|---|"
} | tee "$summary"

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "gpu_check.sh: torch sees no GPU" | tee -a "$summary" >&2
  exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Most steps take a fraction of what they are allowed; those whose result is needed most come first.
step build 180 env POINTCEPT3M_CUDA=1 POINTCEPT3M_REQUIRE_NATIVE=1 "$python" setup.py -q build_ext --inplace
step served 30 "$python" -m pointcept3m.ops
step tests_gpu 60 "$python" -m pytest -p no:cacheprovider -m gpu tests
# Every call that the tests of the ops make on the CPU, made again on the GPU and compared (tests/ops/replay.py).
replayed="not gpu and not long" without="not opcheck and not compil"
step tests_replayed 90 env POINTCEPT3M_REPLAY=cuda "$python" -m pytest -p no:cacheprovider -s -m "$replayed" -k "$without" tests/ops
for op in rasterize sparse_conv scatter voxelize neighbours cluster; do
  step "bench_$op" 45 "$python" "benchmarks/bench_$op.py" --device cuda --repeats 5
done
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "sanitizer_$tool" 40 env POINTCEPT3M_REPLAY=cuda compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest \
      -p no:cacheprovider -x -m "$replayed" -k "by_hand" tests/ops
  done
else
  echo "| sanitizer | compute-sanitizer is not installed | |" | tee -a "$summary"
  failed=$((failed + 1))
fi
# The paper's model and image size on generated rooms; the teacher's weights are random, as no timing depends on them.
step rooms 45 "$python" tools/preprocess/rooms.py --output-root "$scratch/rooms" --train 4 --num-frames 8 --size 480 640 --workers 8
step pretrain_step 60 "$python" benchmarks/bench_pretrain_step.py -c configs/gaussiancross/scannet.py --steps 6 --options \
  data_root="$scratch/rooms" batch_size=4 model.teacher.model_name=vit_base_patch16_224 model.teacher.weight=None \
  model.teacher.random_init=True
# A distillation of LSeg, DINOv2 and Stable Diffusion at the paper's size against the release's way: seconds and memory.
step bench_distill 45 "$python" benchmarks/bench_distill.py --device cuda --scene "$scratch/rooms/train/room000000"
# The downstream recipes at their size on the same rooms: the logs tell seconds a step and the peak of memory.
for recipe in semseg-spunet-v1m1-0-base insseg-pointgroup-v1m1-0-spunet-base; do
  step "train_$recipe" 45 "$python" tools/train.py --config-file "configs/scannet/$recipe.py" --num-gpus 1 --options \
    data_root="$scratch/rooms" save_path="$scratch/$recipe" batch_size=4 num_worker=8 epoch=12 eval_epoch=1 evaluate=False
done
echo "$failed of the steps did not pass" | tee -a "$summary"
exit "$failed"
