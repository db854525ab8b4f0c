"""`pointcept3m demo`: rooms, pretraining, evaluation and a report, with no GPU, no data and no network.

Three steps, each of which a second call skips where it is finished: generate rooms, pretrain (held-out views and a
linear probe are evaluated on the way), write the report. All of it lies in one folder:

    <output>/rooms/{train,val}/room*/    the generated scenes
    <output>/run/                        the run folder of the pretraining: pictures, metrics, weights, report.html
    <output>/demo.json                   what was asked for and which steps are finished
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pointcept3m.utils.files import atomic_write
from pointcept3m.utils.logger import Progress, format_seconds

CONFIG = "gaussiancross/rooms.py"
STATE = "demo.json"
# Seeds of the validation rooms start here, so that no room of any seed is in both splits.
FIRST_VAL_SEED = 500_000
SEEDS_APART = 1000


@dataclass(frozen=True)
class Plan:
    """How much the demo does. Two demos with equal plans make the same files."""

    seed: int
    num_train_rooms: int = 32
    num_val_rooms: int = 6
    num_frames: int = 24
    options: tuple[str, ...] = ()  # settings on top of the config, "name=value"


def plan_for(seed: int, fast: bool) -> Plan:
    """The plan of `--seed` and `--fast`."""
    if seed < 0 or seed >= FIRST_VAL_SEED // SEEDS_APART:
        raise ValueError(f"--seed must lie in 0..{FIRST_VAL_SEED // SEEDS_APART - 1}, got {seed}")
    if fast:
        return Plan(seed, num_train_rooms=2, num_val_rooms=1, num_frames=16, options=("epoch=8", "eval_epoch=2"))
    return Plan(seed)


def run_demo(output: Path, fast: bool = False, seed: int = 0, restart: bool = False) -> dict[str, Any]:
    """Runs the steps that are not finished and prints where their results lie; returns the run's metrics.json.

    Raises: ValueError where `output` holds a demo with other settings, or something that is no demo.
    """
    started = time.monotonic()
    plan = plan_for(seed, fast)
    state = open_folder(output, plan, restart)
    rooms, run = output / "rooms", output / "run"
    steps: list[tuple[str, str, Callable[[], None]]] = [
        ("rooms", "generate rooms", lambda: make_rooms(rooms, plan)),
        ("pretrain", "pretrain and evaluate", lambda: pretrain(rooms, run, plan)),
        ("report", "write the report", lambda: report(run)),
    ]
    for number, (name, title, step) in enumerate(steps, 1):
        if name in state["finished"]:
            print(f"[{number}/{len(steps)}] {title}: finished before ({format_seconds(state['finished'][name])})", flush=True)
            continue
        print(f"[{number}/{len(steps)}] {title}", flush=True)
        begun = time.monotonic()
        step()
        state["finished"][name] = time.monotonic() - begun
        save_state(output, state)
    results = json.loads((run / "metrics.json").read_text())
    print(summary(results.get("metrics", {}), output, run, time.monotonic() - started), flush=True)
    return results


def open_folder(output: Path, plan: Plan, restart: bool) -> dict[str, Any]:
    """The state of the demo in `output`: {"plan", "finished": {step: seconds}}, empty for a new folder.

    Raises: ValueError where a demo with another plan lies there, or other files that a restart must not remove.
    """
    path = output / STATE
    wanted = json.loads(json.dumps(asdict(plan)))
    state = {"plan": wanted, "finished": {}}
    if path.is_file():
        found = json.loads(path.read_text())
        if restart:
            for folder in ("rooms", "run"):
                shutil.rmtree(output / folder, ignore_errors=True)
        elif found.get("plan") == wanted:
            return found
        else:
            raise ValueError(f"{output} holds a demo with other settings; --restart does it again, --output names another folder")
    elif output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no demo; --output names another folder")
    output.mkdir(parents=True, exist_ok=True)
    save_state(output, state)
    return state


def save_state(output: Path, state: Mapping[str, Any]) -> None:
    """Writes the state, whole or not at all."""
    text = json.dumps(state, indent=2) + "\n"
    atomic_write(output / STATE, lambda stream: stream.write(text.encode()))


def make_rooms(rooms: Path, plan: Plan) -> None:
    """Writes the rooms of both splits; those that are complete already are kept."""
    from pointcept3m.datasets.rooms import write_rooms
    from pointcept3m.utils.machine import usable_cores

    first = plan.seed * SEEDS_APART
    splits = [("train", plan.num_train_rooms, first), ("val", plan.num_val_rooms, FIRST_VAL_SEED + first)]
    with Progress(plan.num_train_rooms + plan.num_val_rooms, "rooms", interval=5.0) as bar:
        for split, count, first_seed in splits:
            write_rooms(
                rooms, split, count, first_seed, num_frames=plan.num_frames, workers=usable_cores(), progress=lambda *_: bar.update()
            )


def pretrain(rooms: Path, run: Path, plan: Plan) -> None:
    """Trains with configs/gaussiancross/rooms.py in `run`; continues where an earlier call was stopped."""
    import torch

    from pointcept3m.engines.launch import train_main

    # One process, this one: where there are more GPUs, launch would replace the demo by torchrun, and no report follow.
    arguments = ["--num-gpus", str(int(torch.cuda.is_available())), *training_arguments(rooms, run, plan)]
    if (run / "model" / "model_last.pth").is_file():
        arguments.append("--resume")
    status = train_main(arguments)
    if status:
        raise SystemExit(status)


def training_arguments(rooms: Path, run: Path, plan: Plan) -> list[str]:
    """What `pointcept3m train` takes to make the same run."""
    settings = [f"data_root={str(rooms)!r}", f"save_path={str(run)!r}", f"seed={plan.seed}", *plan.options]
    return ["--config-file", str(find_config(CONFIG)), "--options", *settings]


def find_config(name: str) -> Path:
    """The path of a config that comes with the project: in its checkout, or in the installed package.

    Raises: FileNotFoundError where neither has it.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / name).is_file():
            path = folder / name
            return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path
    raise FileNotFoundError(f"configs/{name} is neither in {package.parent} nor in {package}; is the installation complete?")


def report(run: Path) -> None:
    """Writes report.html once more, so that it also stands where the training was finished by an earlier call."""
    from pointcept3m.engines.report import write_report

    write_report(run)


def summary(metrics: Mapping[str, float], output: Path, run: Path, seconds: float) -> str:
    """The last lines of the demo: the three main numbers, before and after, and where to look."""
    from pointcept3m.engines.report import AT_START, format_metric

    lines = ["", f"Done in {format_seconds(seconds)}. Scores on views and rooms that were not trained on, before and after:"]
    for name, label in (("psnr", "colour, PSNR"), ("depth_mae", "depth, mean error"), ("probe_mIoU", "classes, linear probe mIoU")):
        if name in metrics:
            before = metrics.get(name + AT_START)
            start = f"{format_metric(name, before):>9} -> " if before is not None else " " * 13
            lines.append(f"  {label:<28}{start}{format_metric(name, metrics[name])}")
    places = [
        ("report", run / "report.html"),
        ("pictures", run / "pictures"),
        ("scores", run / "metrics.json"),
        ("weights", run / "model"),
        ("rooms", output / "rooms"),
    ]
    return "\n".join([*lines, "", *(f"  {label:<10}{path}" for label, path in places)])
