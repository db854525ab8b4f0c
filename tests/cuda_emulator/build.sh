#!/bin/sh
# sh tests/cuda_emulator/build.sh LIBRARY.so [SOURCE.cu ...]   compiles csrc's CUDA kernels to run on the CPU
#
# Without sources, all of csrc/*/*_cuda.cu. `POINTCEPT3M_OPS=LIBRARY.so` then loads it in place of the CPU kernels: ops
# called with CPU tensors run the CUDA code. PYTHON names the Python whose torch is used, CXXFLAGS adds flags.
set -eu
cd "$(dirname "$0")/../.."
library=$1
shift
[ $# -gt 0 ] || set -- csrc/*/*_cuda.cu
torch=$("${PYTHON:-python3}" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
for source in tests/cuda_emulator/emulator.cpp csrc/common/algorithms_cuda.cu "$@"; do echo "$source"; done | sort -u |
  xargs -P "$(nproc)" -I SOURCE sh -c 'g++ -x c++ -c "$1" -o "$2/$(echo "$1" | tr / _).o" -std=c++20 -O2 -g1 -fPIC \
    -fvisibility=hidden -Wall -Wno-psabi -Wno-unknown-pragmas -DP3M_EMULATE_CUDA \
    -DTORCH_TARGET_VERSION=0x020a000000000000 -Icsrc -Itests/cuda_emulator \
    -I"$3/include" -I"$3/include/torch/csrc/api/include" ${CXXFLAGS:-}' sh SOURCE "$objects" "$torch"
g++ -shared "$objects"/*.o -L"$torch/lib" -ltorch_cpu ${CXXFLAGS:-} -o "$library"
