#!/bin/sh
# sh tools/sanitize.sh [pytest arguments]
#
# Builds the CPU kernels, and the CUDA kernels for the emulator, with AddressSanitizer and UndefinedBehaviorSanitizer and
# runs the tests of the ops on both. A bad read or write, an overflow or a misaligned access ends the run with its place.
# PYTHON names the Python; ONLY=cpu or ONLY=cuda runs one of the two.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
command -v g++ >/dev/null || { echo "sanitize.sh: g++ is not installed" >&2; exit 1; }
runtime=$(g++ -print-file-name=libasan.so)
[ -f "$runtime" ] || { echo "sanitize.sh: g++ has no AddressSanitizer (libasan)" >&2; exit 1; }
# Python itself is not C++: with libstdc++ loaded first, the sanitizer finds what throws exceptions.
preload="$runtime $(g++ -print-file-name=libstdc++.so.6)"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
# Fibers change stacks under the sanitizer's feet, so variables on the stack are watched for the CPU kernels only.
checks="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"

build_cpu() {
  ls csrc/*/*_cpu.cpp | xargs -P "$(nproc)" -I SOURCE sh -c 'g++ -c "$1" -o "$2/$(echo "$1" | tr / _).o" -std=c++20 -O1 -g1 \
    -ffast-math -fno-finite-math-only -fPIC -fvisibility=hidden -Wno-psabi -DTORCH_TARGET_VERSION=0x020a000000000000 -Icsrc \
    -I"$3/include" -I"$3/include/torch/csrc/api/include" $4' sh SOURCE "$folder" "$torch" "$checks"
  g++ -shared "$folder"/csrc*.o -L"$torch/lib" -ltorch_cpu $checks -o "$folder/cpu.so"
}

run() {
  echo "sanitize.sh: tests of the ops with $1"
  shift
  env OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" LD_PRELOAD="$preload" \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 POINTCEPT3M_OPS="$1" \
    "$python" -m pytest -p no:cacheprovider --capture=sys -m "$2" tests/ops $extra
}

extra="$*"
if [ "${ONLY:-cpu}" = cpu ]; then
  build_cpu
  run "the CPU kernels" "$folder/cpu.so" "not gpu and not long"
fi
if [ "${ONLY:-cuda}" = cuda ]; then
  CXXFLAGS="$checks --param asan-stack=0" PYTHON=$python sh tests/cuda_emulator/build.sh "$folder/cuda.so"
  run "the emulated CUDA kernels" "$folder/cuda.so" "not gpu and not long and not not_emulated"
fi
