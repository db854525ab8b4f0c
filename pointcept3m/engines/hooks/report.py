"""The hook that writes run.json while training and report.html when it ends."""

import json
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

from pointcept3m import __version__
from pointcept3m.engines.defaults import write_json
from pointcept3m.engines.hooks.builder import HOOKS
from pointcept3m.engines.report import write_report
from pointcept3m.ops._library import status as ops_status
from pointcept3m.utils import comm
from pointcept3m.utils.hook import HookBase
from pointcept3m.utils.machine import usable_cores

REPOSITORY = Path(__file__).resolve().parents[3]

@HOOKS.register_module()
class ReportWriter(HookBase):
    """Writes <save_path>/run.json (command, commit, seed, versions, throughput, memory) and report.html at the end.

    Stands last in the list of hooks, so that what the others write is in the page. Throughput counts the time of
    steps, their data included, and not that of evaluations.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.steps = 0
        self.step_seconds = self.mark = 0.0

    def before_train(self) -> None:
        path = Path(self.trainer.save_path) / "run.json"
        earlier = json.loads(path.read_text()) if self.trainer.global_step and path.is_file() else {}
        self.facts = {**earlier, **describe_run(self.trainer)}
        if earlier:
            resumed = {"step": self.trainer.global_step, "time": self.facts["started"]}
            self.facts.update(started=earlier.get("started"), resumed=[*earlier.get("resumed", []), resumed])
        self._save()

    def before_epoch(self) -> None:
        self.mark = time.monotonic()

    def after_step(self) -> None:
        now = time.monotonic()
        self.step_seconds += now - self.mark
        self.mark = now
        self.steps += 1

    def after_epoch(self) -> None:
        self._save()

    def after_train(self) -> None:
        self._save()
        if comm.is_main_process():
            self.trainer.logger.info(f"report: {write_report(self.trainer.save_path)}")

    def _save(self) -> None:
        self.facts.update(steps=self.trainer.global_step, seconds=round(self.trainer.elapsed(), 3), memory_mib=peak_memory_mib())
        if self.steps:
            pace = self.steps / self.step_seconds
            self.facts.update(steps_per_second=pace, samples_per_second=pace * self.trainer.cfg.batch_size)
        if torch.cuda.is_available():
            self.facts["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        if comm.is_main_process():
            write_json(Path(self.trainer.save_path) / "run.json", self.facts)


def describe_run(trainer: Any) -> dict[str, Any]:
    """What repeats the run of `trainer` and on what it runs, as JSON values."""
    on_gpu = torch.device(trainer.device).type == "cuda"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command_line(),
        "commit": commit(),
        "seed": trainer.seed,
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "device": torch.cuda.get_device_name(trainer.device) if on_gpu else f"CPU ({platform.machine()}), {usable_cores()} cores",
        "ops": ops_status(),
        "versions": f"pointcept3m {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "processes": f"{comm.get_world_size()}, {torch.get_num_threads()}",
    }


def commit() -> str | None:
    """The commit of the checkout that this package runs from, " with changes" where files differ; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    if not (REPOSITORY / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):  # no git, or no commit yet: the run does not depend on it
        return None


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
