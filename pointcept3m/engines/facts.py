"""What repeats a run and on what it runs: command, commit, seed, versions, device."""

import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pointcept3m import __version__
from pointcept3m.ops._library import status as ops_status
from pointcept3m.utils import comm
from pointcept3m.utils.machine import usable_cores

REPOSITORY = Path(__file__).resolve().parents[2]


def describe_run(model: nn.Module, device: torch.device | str, seed: int | None) -> dict[str, Any]:
    """What stands in run.json from the start of a training or test, as JSON values."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command_line(),
        "commit": git_state()[0],
        "seed": seed,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()}), {usable_cores()} cores",
        "ops": ops_status(),
        "versions": f"pointcept3m {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "processes": f"{comm.get_world_size()}, {torch.get_num_threads()}",
    }


def memory_facts() -> dict[str, float]:
    """The largest memory so far, in MiB: of this process, and of its GPU where there is one."""
    facts = {"memory_mib": peak_memory_mib()}
    if torch.cuda.is_available():
        facts["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return facts


def memory_words() -> str:
    """`memory_facts` as words, e.g. "peak memory 812 MiB, 5,120 MiB on the GPU"."""
    facts = memory_facts()
    on_gpu = f", {facts['gpu_memory_mib']:,.0f} MiB on the GPU" if "gpu_memory_mib" in facts else ""
    return f"peak memory {facts['memory_mib']:,.0f} MiB{on_gpu}"


def git_state() -> tuple[str | None, str]:
    """The commit of the checkout that this package runs from (" with changes" where files differ), and those changes.

    (None, "") outside of a checkout, and where there is no git or no commit yet: the run does not depend on it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True).stdout

    if not (REPOSITORY / ".git").exists():
        return None, ""
    try:
        commit, diff = git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None, ""
    return commit + (" with changes" if diff else ""), diff


def save_code_state(folder: Path) -> None:
    """Writes `code.diff`, the changes since the commit that run.json names: together the code of the run."""
    if comm.is_main_process() and (diff := git_state()[1]):
        (folder / "code.diff").write_text(diff, encoding="utf-8")


def command_line() -> str:
    """The command of this process as one would type it, with the variables of the environment that change results."""
    names = sorted(name for name in os.environ if name.startswith("POINTCEPT3M_") or name == "OMP_NUM_THREADS")
    variables = [f"{name}={quote(os.environ[name])}" for name in names]
    if Path(sys.argv[0]).name in ("pointcept3m", "cli.py"):
        words = ["pointcept3m", *sys.argv[1:]]
    else:
        words = ["python", *sys.orig_argv[1:]]
    return " ".join([*variables, *map(quote, words)])


def quote(word: str) -> str:
    """`word` as a POSIX shell reads it back; in double quotes where it holds single ones, which is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"\\$`!') else shlex.quote(word)


def peak_memory_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
