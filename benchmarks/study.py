"""What the studies share: train one run in a process of its own unless it is finished, gather scores, write them down."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def arguments(description: str, output: str) -> argparse.ArgumentParser:
    """The options of every study; `output` is the result file below benchmarks/results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/rooms"), help="generated rooms (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("exp/study"), help="folder of the run folders (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results" / output)
    parser.add_argument("--options", nargs="+", default=[], help="settings on top of every run's config")
    return parser


def train(config: str, folder: Path, options: Sequence[str], threads: int) -> dict:
    """The metrics of the run in `folder`: trained now, continued where it was stopped, or found finished."""
    metrics = folder / "metrics.json"
    if not finished(folder):
        command = [sys.executable, "tools/train.py", "--config-file", config]
        if (folder / "model" / "model_last.pth").exists():
            command.append("--resume")
        command += ["--options", f"save_path={str(folder)!r}", *options]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "stdout.txt", "a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"{folder}: training ended with {done.returncode}; the reason is at the end of {log.name}")
    return json.loads(metrics.read_text())["metrics"]


def finished(folder: Path) -> bool:
    """Whether the run there has come to its end: metrics.json is the last thing that a training writes."""
    return (folder / "metrics.json").exists()


def summarise(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean, standard deviation (of the sample) and the values themselves."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0, "runs": list(values)}


def write_record(path: Path, content: dict) -> None:
    """Writes `content` as JSON after the command, commit, date and machine that made it."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    record = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def cell(score: dict | None, wanted: int | None = None) -> str:
    """`mean ± std` for a table, "-" where nothing was measured; with fewer runs than `wanted` it says how many."""
    if not score:
        return "-"
    number = len(score["runs"])
    spread = f" ± {score['std']:.3f}" if number > 1 else ""
    return f"{score['mean']:.3f}{spread}" + (f" ({number} of {wanted} seeds)" if wanted and number < wanted else "")
