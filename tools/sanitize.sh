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
# Fibers change stacks under the sanitizer's feet, so variables on the stack are watched for the CPU kernels only.
checks="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# One copy of the kernels, with the vectors of AVX2 where the machine has them: three copies take minutes to compile.
vectors=
if grep -q avx2 /proc/cpuinfo 2>/dev/null; then vectors=-march=x86-64-v3; fi

build_cpu() {
  POINTCEPT3M_PLAIN=1 POINTCEPT3M_CUDA=0 POINTCEPT3M_CXXFLAGS="-O1 -g1 $vectors $checks" \
    "$python" setup.py -q build_ext --build-lib "$folder" --build-temp "$folder/objects"
  mv "$folder/pointcept3m/_ops.so" "$folder/cpu.so"
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
