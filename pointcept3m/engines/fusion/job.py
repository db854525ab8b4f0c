"""All scenes of a data set: shared out to processes, resumed where a run stopped, told as a table at the end."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pointcept3m.engines.fusion.scene import Output, SceneReport, fuse_scene
from pointcept3m.engines.fusion.teachers import build_teachers
from pointcept3m.engines.fusion.views import DATASETS, DatasetDefaults, ViewSettings, choose_frames
from pointcept3m.engines.scene_jobs import check_workers, run_scenes
from pointcept3m.structures.fused_features import feature_path
from pointcept3m.structures.scene import Scene
from pointcept3m.utils.files import TEMPORARY
from pointcept3m.utils.registry import near_names

logger = logging.getLogger("pointcept3m")


@dataclass(frozen=True)
class Job:
    """What a run is asked to do, but for the scenes: teachers by name as configs, settings, where to, on what."""

    teachers: Mapping[str, Mapping[str, Any]]
    settings: ViewSettings = field(default_factory=ViewSettings)
    output: Output = field(default_factory=Output)
    frames_root: Path | None = None
    batch: int = 8
    device: str = "cpu"
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if not self.teachers:
            raise ValueError("no teacher is named, so there is nothing to fuse")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")


def guess_dataset(data_root: str | Path, name: str | None = None) -> tuple[str, DatasetDefaults]:
    """(data set, its defaults) by `name`, or by the folder's; ScanNet's where neither tells."""
    if name is not None and name not in DATASETS:
        raise KeyError(f"no data set is called {name!r}; {near_names(name, DATASETS)}")
    folder = str(Path(data_root).resolve()).lower()
    found = name or next((known for known in DATASETS if known in Path(folder).name), None)
    found = found or next((known for known in DATASETS if known in folder), "scannet")
    return found, DATASETS[found]


def find_scenes(data_root: str | Path, splits: Sequence[str], names: Sequence[str] | None = None) -> list[Path]:
    """The scene folders <data_root>/<split>/*, sorted; of `names` alone if given.

    Raises: FileNotFoundError where a split is not there or empty; KeyError for a name that none has.
    """
    root, found = Path(data_root), []
    for split in splits:
        folder = root / split
        if not folder.is_dir():
            if any(root.glob("*/coord.npy")):
                raise FileNotFoundError(f"{folder}: no such split; {root} holds scenes itself: give --data-root {root.parent} --split {root.name}")
            others = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
            raise FileNotFoundError(f"{folder}: no such split; {near_names(split, others) if others else f'{root} has no folder of scenes'}")
        scenes = sorted(path for path in folder.iterdir() if (path / "coord.npy").is_file())
        if not scenes:
            raise FileNotFoundError(f"{folder}: no scene in it (no folder has a coord.npy)")
        found += scenes
    known = {path.name for path in found}
    for name in names or ():
        if name not in known:
            raise KeyError(f"no scene {name!r} in {root}, split {' or '.join(splits)}; {near_names(name, known)}")
    return [path for path in found if names is None or path.name in names]


def choose_device(word: str) -> str:
    """The device that `word` names; "auto" and "cuda" are this process's own GPU. Raises ValueError where it is not there."""
    if word == "auto":
        word = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(word).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {word}: torch finds no GPU here")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if word == "cuda" else word


def fuse_scenes(folders: Sequence[Path], job: Job, workers: int = 0) -> list[SceneReport]:
    """Fuses all scenes, this process its share of them; returns the reports of all processes, in the order of `folders`.

    Under torchrun the scenes are shared out by their numbers of frames. workers: processes on this machine; 0 works here.

    Raises: what a scene raises, with the scene named; with `skip_broken` it is reported in `error` and the others go on.
    """
    check_workers(workers)
    build_teachers(job.teachers, job.device)  # what is wrong with them shows before any work
    return run_scenes(folders, job, fuse_folder, lambda folder: _num_frames(folder, job), line, "fused scenes", workers)


def fuse_folder(folder: Path, job: Job, progress: Any = lambda: None) -> SceneReport:
    """One scene folder; an error becomes its report's with `job.skip_broken`."""
    start = time.monotonic()
    try:
        for name in job.teachers:
            path = feature_path(folder, name, job.output.root)
            for leftover in path.parent.glob(f"{path.stem}{TEMPORARY}*"):  # of a run that was killed while writing it
                leftover.unlink(missing_ok=True)
        teachers = build_teachers(job.teachers, job.device)
        return fuse_scene(Scene(folder, job.frames_root), teachers, job.settings, job.output, job.batch, job.device, progress)
    except (OSError, ValueError, KeyError) as error:
        if not job.skip_broken:
            raise
        message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        return SceneReport(folder.parent.name, folder.name, error=message, seconds=time.monotonic() - start)


def _num_frames(folder: Path, job: Job) -> int:
    """How many frames of a scene are fused, 0 where that cannot be told: who gets the scene says why."""
    try:
        return len(choose_frames(Scene(folder, job.frames_root), job.settings)[0])
    except (OSError, ValueError, KeyError):
        return 0


def line(report: SceneReport) -> str:
    """What a log says of one scene."""
    if report.error:
        return f"FAILED {report.error}"
    if report.skipped:
        return f"skipped: {report.skipped}"
    kept = ", ".join(f"{name} {'found' if t.found else f'{t.cosine[0]:.4f}'}" for name, t in report.teachers.items())
    share = report.num_visible / report.num_points
    bad = f", {len(report.left_out)} frames without a usable pose or depth left out" if report.left_out else ""
    return (
        f"{share:.1%} of {report.num_points} points visible in {report.num_frames} frames, {report.views_per_point:.1f} views a point{bad}; "
        f"cosine kept: {kept} ({report.seconds:.1f} s)"
    )


def summary(reports: Sequence[SceneReport]) -> str:
    """The table at the end: what was made, how much it takes against the release's float16, what it kept, what is missing."""
    done = [report for report in reports if report.teachers]
    made = sum(any(not teacher.found for teacher in report.teachers.values()) for report in done)
    skipped, broken = [r for r in reports if r.skipped], [r for r in reports if r.error]
    lines = [f"scenes   {made} fused, {len(done) - made} already there, {len(skipped)} skipped, {len(broken)} failed"]
    visible, points = sum(r.num_visible for r in done), sum(r.num_points for r in done)
    if done:
        views = sum(r.views_per_point * r.num_visible for r in done) / visible
        lines.append(f"points   {visible} of {points} visible ({visible / points:.1%}), {views:.1f} views a point")
        lines.append(f"{'teacher':<12} {'dim':>5} {'storage':>8} {'bytes':>15} {'a point':>8} {'float16':>8} {'ratio':>6}  cosine kept: mean, lowest 1 %")
    for name in done[0].teachers if done else ():
        files = [(report.teachers[name], report.num_visible) for report in done]
        total, dim = sum(file.num_bytes for file, _ in files), files[0][0].dim
        mean = sum(file.cosine[0] * count for file, count in files) / visible
        low = min(file.cosine[1] for file, _ in files)
        storage = "/".join(sorted({file.storage for file, _ in files}))
        lines.append(f"{name:<12} {dim:>5} {storage:>8} {total:>15,} {total / visible:>8.1f} {2 * dim:>8} {total / visible / 2 / dim:>6.1%}  {mean:.5f}, {low:.5f}")
    lines += [f"skipped  {r.split}/{r.name}: {r.skipped}" for r in skipped] + [f"failed   {r.split}/{r.name}: {r.error}" for r in broken]
    return "\n".join(lines)

