"""What `python -m pointcept3m.ops` says of the compiled libraries, and what happens where one is missing."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from pointcept3m.ops import _library
from tests.conftest import REPOSITORY

CALL = "import torch\nfrom pointcept3m import ops\nfor r in ('sum', 'max'): ops.scatter(torch.rand(3), torch.tensor([0, 1, 0]), reduce=r)"


def run(*arguments, **settings):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("POINTCEPT3M_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env={**environment, **settings}, capture_output=True, text=True
    )


def test_status_names_both_libraries():
    said = run("-m", "pointcept3m.ops", "--status").stdout
    assert "compiled CPU library" in said and "compiled CUDA library" in said


def test_twins_asked_for_are_no_news():
    result = run("-c", CALL, POINTCEPT3M_NATIVE="0")
    assert result.returncode == 0 and result.stderr == ""


def test_a_library_that_is_named_must_exist():
    result = run("-c", CALL, POINTCEPT3M_OPS="/nowhere/_ops.so")
    assert result.returncode != 0 and "POINTCEPT3M_OPS names /nowhere/_ops.so, and there is no such file" in result.stderr


def test_a_missing_library_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(_library, "_native", False)
    monkeypatch.setattr(_library, "_status", "not built (for this test)")
    monkeypatch.setattr(_library, "_warned", set())
    monkeypatch.delenv("POINTCEPT3M_NATIVE", raising=False)
    with caplog.at_level("WARNING", logger="pointcept3m"):
        _library._say_twin_serves("scatter_sum", "cpu")
        _library._say_twin_serves("scatter_mean", "cpu")
    assert [record.message for record in caplog.records] == [
        "ops run in plain torch on cpu, slower: compiled CPU library not built (for this test)"
    ]


@pytest.mark.skipif("POINTCEPT3M_SERVER" in os.environ, reason="about the installed libraries")
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_where_nvcc_is_the_cuda_library_is_built_and_loaded():
    said = run("-m", "pointcept3m.ops", "--status").stdout
    if "POINTCEPT3M_CUDA=0 asked for none" in said:
        pytest.skip("the package was installed with POINTCEPT3M_CUDA=0")
    assert "compiled CUDA library loaded from" in said, said
    if not torch.cuda.is_available() and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        assert "sm_80, sm_90, sm_100" in said  # every kernel compiles for each of them
