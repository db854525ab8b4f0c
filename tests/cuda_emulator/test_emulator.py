"""The emulator's own promises. The CUDA kernels run in it in tests/ops/test_servers.py."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pointcept3m.ops  # noqa: F401  (declares the ops)

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator is for x86-64"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]


@pytest.fixture(scope="module")
def selftest(tmp_path_factory):
    """`selftest(code, order)` runs Python code that calls the kernels of selftest_cuda.cu as `ops`."""
    library = tmp_path_factory.mktemp("selftest") / "selftest.so"
    command = ["sh", str(HERE / "build.sh"), str(library), "tests/cuda_emulator/selftest_cuda.cu"]
    built = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]

    def run(code: str, order: str = "forward") -> subprocess.CompletedProcess:
        start = f"import torch; torch.ops.load_library({str(library)!r}); ops = torch.ops.pointcept3m_selftest\n"
        environment = {**os.environ, "P3M_EMULATOR_ORDER": order, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-c", start + code], env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_fragments_and_warps(selftest, order):
    result = selftest(
        """
a, b = torch.randn(16, 8), torch.randn(8, 8)
assert (ops.multiply_tiles(a, b) - a @ b).abs().max() < 1e-2
a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16()
torch.testing.assert_close(ops.multiply_tiles(a, b), a.float() @ b.float())
values = torch.randn(640)
torch.testing.assert_close(ops.sum_32(values), values.view(-1, 32).sum(1))
assert torch.equal(ops.reverse_64(values, True), values.view(-1, 64).flip(1).flatten())
""",
        order,
    )
    assert result.returncode == 0, result.stderr


def test_a_missing_barrier_shows(selftest):
    result = selftest("values = torch.randn(64); assert torch.equal(ops.reverse_64(values, False), values.flip(0))")
    assert result.returncode != 0 and "AssertionError" in result.stderr


def test_a_barrier_that_some_never_reach_is_named(selftest):
    result = selftest("ops.reverse_64(torch.randn(64), True); ops.half_a_barrier(torch.randn(64))")
    assert result.returncode != 0 and "threads wait for each other for ever" in result.stderr


def test_every_cuda_op_is_a_declared_op():
    """A kernel under a name that Python does not declare would never run."""
    names = torch._C._dispatch_get_all_op_names()
    declared = {name.split("::")[1] for name in names if name.startswith("pointcept3m::")}
    text = "".join(path.read_text() for path in REPOSITORY.glob("csrc/*/*_cuda.cu"))
    registered = {part.split('"')[1] for part in text.split("m.impl(")[1:]}
    assert registered and registered <= declared, registered - declared
