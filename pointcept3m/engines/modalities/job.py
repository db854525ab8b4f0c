"""All scenes of a data set through a recipe: shared out to processes, resumed where a run stopped, told as a table."""

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pointcept3m.engines.modalities.extract import ModalitySettings, extract_scene, record
from pointcept3m.engines.modalities.recipe import Recipe, build_recipe
from pointcept3m.engines.scene_jobs import check_workers, run_scenes
from pointcept3m.structures.modality_features import (
    OBJECT_MODALITIES,
    TOKENS,
    ModalityFeatures,
    modality_path,
    read_modalities,
    write_modalities,
)
from pointcept3m.structures.scene_objects import SCENE_FILES, is_scene_folder
from pointcept3m.utils.files import TEMPORARY
from pointcept3m.utils.registry import near_names

logger = logging.getLogger("pointcept3m")


@dataclass(frozen=True)
class Job:
    """What a run is asked to do, but for the scenes.

    recipe: (name, config) as `recipe_config` gives · feature_root: where files go, None into the scene folders · frames_root:
    where frames lie, if not there · batch: pictures that an encoder sees at once · overwrite: finished files too.
    """

    recipe: tuple[str, Mapping[str, Any]]
    settings: ModalitySettings = field(default_factory=ModalitySettings)
    feature_root: Path | None = None
    frames_root: Path | None = None
    batch: int = 64
    device: str = "cpu"
    overwrite: bool = False
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    def build(self) -> Recipe:
        """The encoders, built once in a process."""
        return _build(json.dumps([self.recipe[0], dict(self.recipe[1])]), self.device, self.batch)


@dataclass
class SceneReport:
    """What came of one scene: objects, how many of them have each modality, tokens of each; found: whether it was there already."""

    split: str
    name: str
    num_objects: int = 0
    known: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    has_points: bool = False
    num_bytes: int = 0
    found: bool = False
    seconds: float = 0.0
    error: str = ""


@functools.cache
def _build(recipe: str, device: str, batch: int) -> Recipe:
    name, config = json.loads(recipe)
    return build_recipe({**config, "name": name}, device, batch=batch)


def find_scenes(data_root: str | Path, splits: Sequence[str], names: Sequence[str] | None = None) -> list[Path]:
    """The scene folders <data_root>/<split>/*, sorted, with or without points; of `names` alone if given. Hidden folders, which others
    are still writing, are none.

    Raises: FileNotFoundError where a split is not there or empty; KeyError for a name that none has.
    """
    root, found = Path(data_root), []
    for split in splits:
        folder = root / split
        if not folder.is_dir():
            others = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
            raise FileNotFoundError(f"{folder}: no such split; {near_names(split, others) if others else f'{root} has no folder of scenes'}")
        scenes = sorted(path for path in folder.iterdir() if is_scene_folder(path))
        if not scenes:
            raise FileNotFoundError(f"{folder}: no scene in it (no folder has color/ or one of {', '.join(SCENE_FILES)})")
        found += scenes
    known = {path.name for path in found}
    for name in names or ():
        if name not in known:
            raise KeyError(f"no scene {name!r} in {root}, split {' or '.join(splits)}; {near_names(name, known)}")
    return [path for path in found if names is None or path.name in names]


def extract_scenes(folders: Sequence[Path], job: Job, workers: int = 0) -> list[SceneReport]:
    """Features of all scenes, this process its share of them; returns the reports of all, in the order of `folders`.

    Under torchrun the scenes are shared out by the number of their pictures. workers: processes on this machine; 0 works here.

    Raises: what a scene raises, naming its file; with `skip_broken` it is reported in `error` and the others go on.
    """
    check_workers(workers)
    job.build()  # what is wrong with the encoders shows before any work
    return run_scenes(folders, job, extract_folder, lambda folder: sum(1 for _ in (folder / "mask").glob("*.png")), line, "scenes", workers)


def extract_folder(folder: Path, job: Job, tick: Callable[[], None] = lambda: None) -> SceneReport:
    """One scene folder: its file is kept if it is what this run would write, else made; errors as `extract_scenes` has them."""
    start = time.monotonic()
    try:
        path = modality_path(folder, job.recipe[0], job.feature_root)
        for leftover in path.parent.glob(f"{path.stem}{TEMPORARY}*"):  # of a run that was killed while writing it
            leftover.unlink(missing_ok=True)
        recipe = job.build()
        features = None if job.overwrite else _finished(path, folder, recipe, job)
        found = features is not None
        if features is None:
            features = extract_scene(folder, recipe, job.settings, job.frames_root, tick)
            write_modalities(path, features)
        return SceneReport(
            folder.parent.name, folder.name, len(features), {name: int(mask.sum()) for name, mask in features.known.items()},
            {name: len(rows) for name, rows in features.tokens.items()}, (folder / "coord.npy").is_file(), path.stat().st_size, found,
            time.monotonic() - start,
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        if not job.skip_broken:
            raise
        message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        return SceneReport(folder.parent.name, folder.name, error=message, seconds=time.monotonic() - start)


def _finished(path: Path, folder: Path, recipe: Recipe, job: Job) -> ModalityFeatures | None:
    """The file of an earlier run that is what this one would write; None where it is missing, damaged or of anything else."""
    try:
        features = read_modalities(path)
    except (FileNotFoundError, ValueError):  # what it would be is made anew now
        return None
    wanted = record(folder, recipe, job.settings, job.frames_root)
    same = features.encoders == recipe.encoders and all(features.details.get(key) == value for key, value in wanted.items())
    return features if same else None


def line(report: SceneReport) -> str:
    """What a log says of one scene."""
    if report.error:
        return f"FAILED {report.error}"
    parts = [f"{report.known.get(name, 0)} {name}" for name in OBJECT_MODALITIES]
    tokens = ", ".join(f"{count} of {name}" for name, count in report.tokens.items()) or "none"
    return f"{'found: ' if report.found else ''}{report.num_objects} objects ({', '.join(parts)}); tokens: {tokens} ({report.seconds:.1f} s)"


def summary(reports: Sequence[SceneReport]) -> str:
    """The table at the end: how many objects and scenes have which modality, which scenes lack some, what failed."""
    done, broken = [r for r in reports if not r.error], [r for r in reports if r.error]
    found = sum(report.found for report in done)
    lines = [f"scenes   {len(done) - found} made, {found} already there, {len(broken)} failed; {sum(r.num_bytes for r in done):,} bytes"]
    objects = sum(report.num_objects for report in done)
    if objects:
        lines.append(f"{'objects':<10} {objects:>7}")
        for name in OBJECT_MODALITIES:
            count = sum(report.known.get(name, 0) for report in done)
            lines.append(f"  {name:<8} {count:>7}  {count / objects:6.1%} of objects")
    if done:
        lines.append(f"{'scenes':<10} {len(done):>7}")
        have = {"point": [report.has_points for report in done], **{name: [report.tokens.get(name, 0) > 0 for report in done] for name in TOKENS}}
        lines += [f"  {name:<9} {sum(there):>6}  {sum(there) / len(there):6.1%} of scenes" for name, there in have.items()]
    lacking: dict[str, list[str]] = {}
    for report in done:
        missing = ([] if report.has_points else ["point"]) + [name for name in TOKENS if not report.tokens.get(name)]
        if missing:
            lacking.setdefault(", ".join(missing), []).append(f"{report.split}/{report.name}")
    for missing, names in lacking.items():
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        lines.append(f"without {missing}: {shown}")
    return "\n".join(lines + [f"failed   {r.split}/{r.name}: {r.error}" for r in broken])
