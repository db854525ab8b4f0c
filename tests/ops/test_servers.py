"""The tests of the ops again, with each of the other things that can serve an op in place of the compiled CPU kernels.

The plain-torch twins; the CPU kernels without SIMD, as a machine without AVX2 runs them; the CUDA kernels in the
emulator, their threads in two orders. All run at the same time as the first of these tests waits for its own.
"""

import os
import platform
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PLAIN = """
set -e
POINTCEPT3M_PLAIN=1 POINTCEPT3M_CUDA=0 "$PYTHON" setup.py -q build_ext --build-lib "$FOLDER" --build-temp "$FOLDER/objects"
mv "$FOLDER/pointcept3m/_ops.so" "$FOLDER/kernels.so"
"""
EMULATED = 'sh tests/cuda_emulator/build.sh "$FOLDER/kernels.so"'
SERVERS = {  # how the library is built, and the environment
    "twins": ("", {"POINTCEPT3M_NATIVE": "0"}),
    "plain CPU kernels": (PLAIN, {}),
    "emulated CUDA kernels": (EMULATED, {"P3M_EMULATOR_ORDER": "forward"}),
    "emulated CUDA kernels, threads shuffled": (EMULATED, {"P3M_EMULATOR_ORDER": "random"}),
}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("POINTCEPT3M_SERVER" in os.environ, reason="is run by itself"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process a server, all started at once."""
    processes = {}
    for name, (build, settings) in SERVERS.items():
        if "emulated" in name and platform.machine() != "x86_64":
            continue
        folder = tmp_path_factory.mktemp("server")
        kernels = {"POINTCEPT3M_OPS": str(folder / "kernels.so")} if build else {}
        environment = {**os.environ, **settings, **kernels, "FOLDER": str(folder), "PYTHON": sys.executable,
                       "OMP_NUM_THREADS": "1", "POINTCEPT3M_SERVER": name}  # fmt: skip
        tests = '"$PYTHON" -m pytest -p no:cacheprovider -m "not long and not gpu" --maxfail 5 tests/ops'
        log = open(folder / "log.txt", "w+")
        command = f"{build}\n{tests}" if build else tests
        processes[name] = subprocess.Popen(
            ["sh", "-c", command], cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
        ), log  # fmt: skip
    yield processes
    for process, log in processes.values():
        process.kill()
        log.close()


@pytest.mark.parametrize("server", SERVERS)
def test_ops_served_by(server, runs):
    if server not in runs:
        pytest.skip("the emulator is for x86-64")
    process, log = runs[server]
    code = process.wait()
    log.seek(0)
    said = log.read()
    assert code == 0, said[-6000:]
    assert " passed" in said
