"""One scene: teachers look at its frames, what they see is averaged on its points, and written with the visible points."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.engines.fusion.views import Views, ViewSettings, find_visible, read_views
from pointcept3m.models.teachers import Teacher
from pointcept3m.ops.view_fusion import fuse_views
from pointcept3m.structures.fused_features import (
    FusedFeatures,
    check_masks,
    feature_path,
    open_features,
    write_features,
)
from pointcept3m.structures.scene import Frame, Scene
from pointcept3m.utils.files import TEMPORARY


@dataclass(frozen=True)
class Output:
    """Where features go and how they are stored. root None: into the scene folders. overwrite: finished files too."""

    root: Path | None = None
    storage: str = "pca"
    components: int | None = None
    overwrite: bool = False


@dataclass
class TeacherReport:
    """One file: whether it was there already, its channels, storage, bytes, and the cosine kept (mean, first percentile)."""

    dim: int
    storage: str
    num_bytes: int
    cosine: tuple[float, float]
    found: bool = False


@dataclass
class SceneReport:
    """What came of one scene. skipped: why nothing was written, though nothing is wrong; error: what is."""

    split: str
    name: str
    num_points: int = 0
    num_visible: int = 0
    views_per_point: float = 0.0
    num_frames: int = 0
    left_out: list[str] = field(default_factory=list)
    teachers: dict[str, TeacherReport] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: str = ""
    error: str = ""


def fuse_scene(
    scene: Scene,
    teachers: Mapping[str, Teacher],
    settings: ViewSettings,
    output: Output,
    batch: int = 8,
    device: str = "cpu",
    progress: Callable[[], None] = lambda: None,
) -> SceneReport:
    """Fuses the features of `teachers` onto the points of `scene` and writes one file each.

    A file that these settings, frames, points and weights made already is left as it is. The sums are float32 on
    `device`, of the visible points alone: [M, dim] of all teachers at once. `progress` is called after each batch.

    Raises: ValueError where the scene's frames are unusable, depth has other units, or files of other teachers that lie
        there have another mask; the scene is named.
    """
    start = time.monotonic()
    coord = scene.load("coord")
    report = SceneReport(scene.split, scene.name, len(coord))
    if not scene.has_frames:
        report.skipped = f"there are no frames in {scene.frames_root}"
        return report
    views = read_views(scene, settings)
    report.num_frames, report.left_out = len(views.names), views.left_out
    records = {name: _record(teacher, views, settings, output) for name, teacher in teachers.items()}
    finished = {} if output.overwrite else {name: file for name in teachers if (file := _finished(scene, name, coord, records[name], output))}
    missing = {name: teacher for name, teacher in teachers.items() if name not in finished}
    if missing:
        points = torch.from_numpy(np.ascontiguousarray(coord))
        find_visible(scene, points, views, settings)
        mask = views.mask
        if not mask.any():
            report.skipped = f"none of its {len(coord)} points is visible in one of {len(views.names)} frames"
            report.seconds = time.monotonic() - start
            return report
        _check_others(scene, mask, coord, missing, settings, output)
        totals, count = _accumulate(scene, missing, views, points[torch.from_numpy(mask)], settings, batch, device, progress)
        report.views_per_point = float(count.double().mean())
        for name in missing:
            features = totals.pop(name).div_(count[:, None]).cpu()
            details = {**records[name], "views_per_point": report.views_per_point}
            path = feature_path(scene.root, name, output.root)
            try:
                write_features(path, features, mask, name, scene.name, coord, output.storage, output.components, details)
            except ValueError as error:
                raise ValueError(f"{scene.root}: {error}") from error
            progress()
    files = {name: open_features(feature_path(scene.root, name, output.root), coord=coord) for name in teachers}
    check_masks(list(files.values()))
    first = next(iter(files.values()))
    report.num_visible = len(first)
    report.views_per_point = float(first.details["views_per_point"])
    for name, file in files.items():
        report.teachers[name] = TeacherReport(file.dim, file.storage, file.path.stat().st_size, file.cosine, name in finished)
    report.seconds = time.monotonic() - start
    return report


def _record(teacher: Teacher, views: Views, settings: ViewSettings, output: Output) -> dict[str, Any]:
    """What makes a file: two with the same record are the same file."""
    return {
        "fingerprint": teacher.fingerprint, "frames": len(views.names), "views": views.digest, "size": list(views.size),
        "color_size": list(views.color_size), "border": views.border, "tolerance": settings.tolerance if settings.depth else None,
        "sampling": settings.sampling, "wanted_storage": output.storage, "wanted_components": output.components,
    }  # fmt: skip


def _finished(scene: Scene, name: str, coord: NDArray, record: Mapping[str, Any], output: Output) -> FusedFeatures | None:
    """The file of an earlier run that is what this one would write; None where it is missing, damaged or of anything else."""
    try:
        file = open_features(feature_path(scene.root, name, output.root), coord=coord)
    except (FileNotFoundError, ValueError):  # what it would be is made anew now
        return None
    return file if all(file.details.get(key) == value for key, value in record.items()) else None


def _check_others(
    scene: Scene, mask: NDArray[np.bool_], coord: NDArray, missing: Mapping[str, Any], settings: ViewSettings, output: Output
) -> None:
    """Raises ValueError where the file of a teacher that is not fused now has another mask than this run's."""
    own = feature_path(scene.root, "x", output.root)
    paths = own.parent.glob("*.safetensors") if output.root is None else output.root.glob(f"*/{scene.split}/{own.name}")
    for path in sorted(paths):
        name = path.stem if output.root is None else path.parent.parent.name
        if name in missing or TEMPORARY in path.name:
            continue
        advice = f"fuse {name!r} again too: {fuse_command(scene, name, settings, output)}; or write to another --feature-root"
        try:
            other = open_features(path, coord=coord)
        except ValueError as error:
            raise ValueError(f"{error}; since {', '.join(missing)} shall lie beside it, {advice}") from error
        different = int(np.count_nonzero(other.mask != mask))
        if different:
            made = ", ".join(f"{key} {other.details.get(key)}" for key in ("frames", "tolerance", "size", "border"))
            raise ValueError(
                f"scene {scene.name!r}: {name!r} ({path}) and {', '.join(missing)}, to be fused now, would not go together: "
                f"{different} of {len(mask)} points are visible in one and not in the other. {name!r} was fused with {made}; {advice}"
            )


def fuse_command(scene: Scene, teacher: str, settings: ViewSettings, output: Output) -> str:
    """The command line that fuses `teacher` anew for the data set of `scene` with these settings."""
    words = ["python", "tools/preprocess/fuse_features.py", "--data-root", str(scene.root.parent.parent), "--split", scene.split]
    words += ["--teacher", teacher]
    if output.root is not None:
        words += ["--feature-root", str(output.root)]
    if scene.frames_root != scene.root:
        words += ["--frames-root", str(scene.frames_root.parent)]
    words += ["--tolerance", f"{settings.tolerance:g}"] if settings.depth else ["--no-depth"]
    words += ["--depth-side", str(settings.side), "--border", str(settings.border)]
    defaults = ViewSettings()
    for flag, key in (("--every", "every"), ("--frames-per-scene", "frames_per_scene"), ("--holdout", "holdout")):
        if getattr(settings, key) != getattr(defaults, key):
            words += [flag, str(getattr(settings, key))]
    return shlex.join(words + ["--skip-bad-frames"] * settings.skip_bad_frames + ["--overwrite"])


def _accumulate(
    scene: Scene, teachers: Mapping[str, Teacher], views: Views, points: torch.Tensor, settings: ViewSettings, batch: int, device: str,
    progress: Callable[[], None],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:  # fmt: skip
    """({teacher: sum of features [M, dim]}, views [M] that show each) of the visible `points` [M, 3], on `device`."""
    points = points.to(device)
    totals = {name: torch.zeros(len(points), teacher.dim, device=device) for name, teacher in teachers.items()}
    counts = {name: torch.zeros(len(points), dtype=torch.int32, device=device) for name in teachers}
    used = views.shown.any(dim=1).nonzero()[:, 0].tolist()
    batches = [used[start : start + batch] for start in range(0, len(used), batch)]
    for rows, frames in zip(batches, _read_ahead(scene, views, batches), strict=True):
        images = torch.from_numpy(np.stack([frame.rgb for frame in frames])).movedim(-1, 1).contiguous().to(device)
        names = [frame.name for frame in frames]
        cameras = [None if array is None else array[rows].to(device) for array in (views.intrinsic, views.extrinsic, views.depth)]
        for name, teacher in teachers.items():
            maps = teacher(images, names)
            if not torch.isfinite(maps).all():
                raise ValueError(f"scene {scene.name!r}: teacher {name!r} gave values that are not finite for {', '.join(names)}")
            fuse_views(
                totals[name], counts[name], points, maps, cameras[0], cameras[1], views.size, cameras[2],
                settings.tolerance, views.border, settings.sampling,
            )  # fmt: skip
        progress()
    count = next(iter(counts.values()))
    seen = views.shown[:, torch.from_numpy(views.mask)].sum(dim=0, dtype=torch.int32).to(device)
    for name, other in counts.items():
        assert torch.equal(other, seen), f"{name}: views counted while fusing differ from those found visible before"
    return totals, count


def _read_ahead(scene: Scene, views: Views, batches: Sequence[Sequence[int]]) -> Iterator[list[Frame]]:
    """The frames of each batch, of which the next is decoded while one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for rows in [*batches, None]:
            coming = pool.submit(lambda rows=rows: [scene.frame(views.names[row], views.color_size) for row in rows]) if rows else None
            if waiting is not None:
                yield waiting.result()
            waiting = coming
