"""What preprocessings into scene folders share: a scene is written whole or not at all, and one that is there is not made anew.

A data set gives jobs, one a scene, and a function that fills the folder of a job; `preprocess` does the rest, `run_tool` for a tool.
Where a tool has joined torchrun's processes (`joined`), each takes its share.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.camera import SizeHW
from pointcept3m.utils import comm
from pointcept3m.utils.files import TEMPORARY, atomic_folder
from pointcept3m.utils.processes import as_done

DONE = ".done"
ADDED = ".added"
SPLITS = ("train", "val", "test")
IGNORE_INDEX = -1


@dataclass
class SceneReport:
    """What came of one scene: counts, what is worth saying about it (sentence -> how often), and what made it fail."""

    name: str
    split: str
    num_points: int = 0
    num_frames: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def note(self, what: str, count: int = 1) -> None:
        """Adds `count` to the note `what`; nothing for 0."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count


@dataclass(frozen=True)
class Job:
    """A scene to write: its folder <output_root>/<split>/<name>, and the arguments that fill it."""

    target: Path
    arguments: tuple[Any, ...]


Fill = Callable[..., None]  # fill(folder, report, settings, *arguments)


def preprocess(fill: Fill, jobs: Sequence[Job], settings: Any, workers: int = 2, skip_broken: bool = False,
               progress: Callable[[int, int, SceneReport], None] | None = None, pieces: Sequence[str] = ()) -> list[SceneReport]:  # fmt: skip
    """Writes the folder of each job; returns a report on each, in their order. Under torchrun a process does its share, and all
    return all reports.

    Scenes that are already there, whole and with the same settings, are left as they are.

    Args:
        fill: a function of a module, called as fill(folder, report, settings, *job.arguments) in one of `workers` processes
            (0: in this one). It writes into `folder`, which takes the target's place at the end.
        settings: a dataclass of plain values.
        skip_broken: go on past a scene that cannot be read; its report has `error`. Otherwise the first such scene ends
            the run with its own error.
        progress: called with (scenes done, scenes in all, report) after each scene.
        pieces: files and folders that `fill` may write and that are added to a folder which is there already, in place of those
            of an earlier run; none: `fill` writes the whole folder.
    """
    reports: dict[tuple[str, str], SceneReport] = {}
    share = jobs[comm.get_rank() :: comm.get_world_size()]
    meeting = comm.Meeting()
    for report in as_done(_attempt, [(fill, job, settings, skip_broken, tuple(pieces)) for job in share], workers):
        reports[report.split, report.name] = report
        meeting.beat()
        if progress:
            progress(len(reports), len(share), report)
    meeting.wait()
    reports = {key: report for part in comm.all_gather(reports) for key, report in part.items()}
    return [reports[job.target.parent.name, job.target.name] for job in jobs]


def run_tool(fill: Fill, jobs_of: Callable[[], Sequence[Job]], settings: Any, args: argparse.Namespace, pieces: Sequence[str] = ()) -> int:
    """A tool's whole work on its jobs, shared out where torchrun started it: progress on stderr, at the end the summary.

    args: has `workers` and `skip_broken`; others as `preprocess`. Returns 1 where a scene was skipped as broken, else 0.
    """
    with joined() as talks:
        reports = preprocess(fill, jobs_of(), settings, args.workers, args.skip_broken, show_progress(), pieces)
    if talks:
        print(summary(reports))
    return int(any(report.error for report in reports))


@contextmanager
def joined() -> Iterator[bool]:
    """Joins the processes of torchrun, if any, for the block; yields whether this is the one that talks."""
    comm.init_process_group(deadline=1800)
    try:
        yield comm.is_main_process()
    finally:
        comm.destroy_process_group()


def _attempt(fill: Fill, job: Job, settings: Any, skip_broken: bool, pieces: tuple[str, ...]) -> SceneReport:
    try:
        return _add(fill, job, settings, pieces) if pieces else _write(fill, job, settings)
    except (OSError, ValueError, KeyError) as error:
        if not skip_broken:
            raise
        return SceneReport(job.target.name, job.target.parent.name, error=f"{type(error).__name__}: {error}")


def _write(fill: Fill, job: Job, settings: Any) -> SceneReport:
    target, stamp = job.target, json.loads(json.dumps(asdict(settings)))
    if target.exists():
        if not (target / DONE).is_file():
            raise FileExistsError(f"{target}: is there but was not written by this preprocessing; move it away or choose another output folder")
        known = json.loads((target / DONE).read_text())
        if known.get("settings") == stamp:
            return SceneReport(**known["report"])
    report = SceneReport(target.name, target.parent.name)
    with atomic_folder(target) as part:
        fill(part, report, settings, *job.arguments)
        (part / DONE).write_text(json.dumps({"settings": stamp, "report": asdict(report)}, indent=1))
    return report


def _add(fill: Fill, job: Job, settings: Any, pieces: tuple[str, ...]) -> SceneReport:
    """As `_write`, into a folder that is there: pieces are made beside and moved in, and the marker comes last."""
    target, stamp, marker = job.target, json.loads(json.dumps(asdict(settings))), job.target / ADDED
    known = json.loads(marker.read_text()) if marker.is_file() else None
    strange = next((name for name in pieces if known is None and (target / name).exists()), None)
    if strange:
        raise FileExistsError(f"{target / strange}: is there but was not written by this preprocessing; move it away")
    if known and known.get("settings") == stamp:
        return SceneReport(**known["report"])
    report = SceneReport(target.name, target.parent.name)
    part = target / f"{ADDED}{TEMPORARY}{os.getpid()}"
    for leftover in target.glob(f"{ADDED}{TEMPORARY}*"):
        shutil.rmtree(leftover)
    part.mkdir()
    try:
        fill(part, report, settings, *job.arguments)
        marker.write_text("{}")  # what is there from now on is ours, but not whole
        for name in pieces:
            old = target / name
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
            if (part / name).exists():
                os.replace(part / name, old)
        (part / ADDED).write_text(json.dumps({"settings": stamp, "report": asdict(report)}, indent=1))
        os.replace(part / ADDED, marker)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report


def save_arrays(folder: Path, report: SceneReport, arrays: dict[str, NDArray]) -> None:
    """Writes `<name>.npy` for each of `arrays`, which begin with coord. Raises ValueError where coord is not finite or empty."""
    coord = arrays["coord"]
    bad = int((~np.isfinite(coord)).any(axis=1).sum())
    if bad or not len(coord):
        raise ValueError(f"scene {report.name!r}: wanted finite points, {bad} of {len(coord)} are not finite")
    for name, array in arrays.items():
        if len(array) != len(coord):
            raise ValueError(f"scene {report.name!r}: {len(array)} values of {name} for {len(coord)} points")
        np.save(folder / f"{name}.npy", array)
    report.num_points = len(coord)


def save_camera(folder: Path, name: str, pose: NDArray | None, intrinsic: NDArray | None) -> None:
    """pose/<name>.txt and intrinsic/<name>.txt, each [4, 4], of what is not None."""
    for kind, matrix in (("pose", pose), ("intrinsic", intrinsic)):
        if matrix is not None:
            square = np.eye(4)
            square[: len(matrix), : len(matrix)] = matrix
            (folder / kind).mkdir(exist_ok=True)
            np.savetxt(folder / kind / f"{name}.txt", square, fmt="%.9f")


def save_color(path: Path, color: NDArray[np.uint8], size: SizeHW) -> None:
    """A colour picture as JPEG of `size` (H, W): averaged where it shrinks."""
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(color)
    if size != color.shape[:2]:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    image.save(path, quality=95)


def shrunk(size: SizeHW, width: int) -> SizeHW:
    """`size` (H, W) brought down to `width`, proportions kept; itself where it is no wider, or for 0."""
    if not 0 < width < size[1]:
        return size
    return round(size[0] * width / size[1]), width


def show_progress() -> Callable[[int, int, SceneReport], None]:
    """A `progress` for `preprocess` that prints a line a scene to stderr, with the time left."""
    start = time.monotonic()

    def show(done: int, count: int, report: SceneReport) -> None:
        left = (time.monotonic() - start) / done * (count - done)
        state = f"FAILED {report.error}" if report.error else f"{report.num_points} points, {report.num_frames} frames"
        print(f"[{done}/{count}] {report.split}/{report.name}: {state} ({left:.0f} s left)", file=sys.stderr)

    return show


def summary(reports: Sequence[SceneReport]) -> str:
    """What a person wants to know at the end: scenes by split, counts, what was noted in how many scenes, failures."""
    good = [report for report in reports if not report.error]
    splits = ", ".join(f"{split} {sum(r.split == split for r in good)}" for split in dict.fromkeys(r.split for r in good))
    lines = [f"{len(good)} scenes ({splits}), {sum(r.num_points for r in good)} points, {sum(r.num_frames for r in good)} frames"]
    notes: dict[str, list[int]] = {}
    for report in good:
        for what, count in report.notes.items():
            notes.setdefault(what, []).append(count)
    lines += [f"{what}: {sum(counts)} in {len(counts)} scenes" for what, counts in notes.items()]
    lines += [f"skipped {report.split}/{report.name}: {report.error}" for report in reports if report.error]
    return "\n".join(lines)
