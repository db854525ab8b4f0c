"""Raw ScanNet to scene folders: points and labels in Pointcept's `.npy` layout, and posed RGB-D frames.

    raw_root/scans/sceneXXXX_YY/       .sens, _vh_clean_2.ply, .aggregation.json, _vh_clean_2.0.010000.segs.json,
                                       label-filt/ or _2d-label-filt.zip (only for label pictures)
    raw_root/scans_test/sceneXXXX_YY/  .sens, _vh_clean_2.ply
    raw_root/scannetv2-labels.combined.tsv, and scannetv2_{train,val,test}.txt (without these, the official split)

A scene is written under a temporary name and renamed when it is whole, so a run that was stopped continues where it
stopped. Frames keep the number they have in the `.sens` file, and so do their labels.
"""

import csv
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pointcept3m.datasets.readers.ply import read_ply
from pointcept3m.datasets.readers.sens import SensReader
from pointcept3m.datasets.scannet_labels import (
    IGNORE_INDEX,
    NYU40_TO_SCANNET20,
    SCANNET200_IDS,
    lookup_table,
    scannet_split,
)
from pointcept3m.utils.processes import as_done
from pointcept3m.utils.registry import near_names

DONE = ".done"
SPLITS = ("train", "val", "test")
LABEL_TABLE = "scannetv2-labels.combined.tsv"
_MAX_JSON = 1 << 30


@dataclass(frozen=True)
class Settings:
    """What the user chose. `frame_stride` 0 writes no frames; `num_frames` 0 writes all that the stride leaves."""

    frame_stride: int = 20
    num_frames: int = 0
    keep_color_size: bool = False
    label_images: bool = True
    version: int = 1

    def __post_init__(self) -> None:
        if self.frame_stride < 0 or self.num_frames < 0:
            raise ValueError(f"frame_stride and num_frames must not be negative, got {self.frame_stride} and {self.num_frames}")


@dataclass
class SceneReport:
    """What came of one scene: counts, and what was missing or unknown."""

    name: str
    split: str
    num_points: int = 0
    num_frames: int = 0
    lost_poses: int = 0
    unknown_labels: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class LabelTable:
    """ScanNet's label table: raw category -> (id, NYU40 id), and NYU40 id by raw id (0 unknown)."""

    by_name: dict[str, tuple[int, int]]
    nyu40_by_id: np.ndarray


def read_label_table(path: str | Path) -> LabelTable:
    """Reads `scannetv2-labels.combined.tsv`. Raises: FileNotFoundError, or ValueError naming a missing column or bad row."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: ScanNet's label table is missing; it comes with ScanNet's download script")
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        for column in ("id", "raw_category", "nyu40id"):
            if column not in (rows.fieldnames or ()):
                raise ValueError(f"{path}: has no column {column!r}; {near_names(column, rows.fieldnames or ())}")
        by_name: dict[str, tuple[int, int]] = {}
        for row in rows:
            try:
                number, nyu40 = int(row["id"]), int(row["nyu40id"])
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {rows.line_num}: wanted numbers as id and nyu40id, got {row['id']!r}, {row['nyu40id']!r}") from None
            if not (0 < number < 1 << 16 and 0 <= nyu40 <= 40):
                raise ValueError(f"{path}, line {rows.line_num}: wanted id from 1 to 65535 and nyu40id up to 40, got {number}, {nyu40}")
            by_name.setdefault(row["raw_category"], (number, nyu40))
    table = np.zeros(1 << 16, np.uint8)
    for number, nyu40 in by_name.values():
        table[number] = nyu40
    return LabelTable(by_name, table)


def find_scenes(raw_root: str | Path, splits: Sequence[str] = SPLITS) -> list[tuple[Path, str]]:
    """(folder, split) of each scene of `splits` below raw_root, sorted by name.

    The split lists at raw_root decide, and scenes in none of them are left out; where there are no lists, the official
    numbers of ScanNet v2 decide.

    Raises: FileNotFoundError where raw_root has no scenes, ValueError for an unknown split.
    """
    raw_root = Path(raw_root)
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; {near_names(split, SPLITS)}")
    lists = {split: raw_root / f"scannetv2_{split}.txt" for split in SPLITS}
    listed = {name: split for split, path in lists.items() if path.is_file() for name in path.read_text().split()}
    folders = sorted(path for part in ("scans", "scans_test") for path in (raw_root / part).glob("scene*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"{raw_root}: wanted ScanNet's folders scans/sceneXXXX_YY or scans_test/sceneXXXX_YY there, found none")
    found = [(folder, listed.get(folder.name) if listed else scannet_split(folder.name)) for folder in folders]
    return [(folder, split) for folder, split in found if split in splits]


def preprocess_scannet(raw_root: str | Path, output_root: str | Path, settings: Settings | None = None,
                       frames_root: str | Path | None = None, splits: Sequence[str] = SPLITS, workers: int = 2,
                       skip_broken: bool = False, progress: Callable[[int, int, SceneReport], None] | None = None,
                       ) -> list[SceneReport]:  # fmt: skip
    """Writes every scene of `splits` to output_root/<split>/<scene>; returns a report on each.

    Scenes that are already there, whole and with the same settings, are left as they are.

    Args:
        frames_root: where frames go, as frames_root/<scene>; into the scene's own folder if None.
        workers: processes; 0 works in this one.
        skip_broken: go on past a scene that cannot be read; its report has `error`. Otherwise the first such scene ends
            the run with its own error.
        progress: called with (scenes done, scenes in all, report) after each scene.
    """
    settings = settings or Settings()
    jobs = find_scenes(raw_root, splits)
    if not jobs:
        raise ValueError(f"{raw_root}: none of its scenes is of the splits {', '.join(splits)}; its split lists name other scenes")
    table = read_label_table(Path(raw_root) / LABEL_TABLE)
    output_root = Path(output_root)
    frames_root = None if frames_root is None else Path(frames_root)
    reports = []
    work = [(folder, split, output_root, frames_root, settings, table, skip_broken) for folder, split in jobs]
    for report in as_done(_attempt, work, workers):
        reports.append(report)
        if progress:
            progress(len(reports), len(jobs), report)
    return sorted(reports, key=lambda report: report.name)


def _attempt(folder: Path, split: str, output_root: Path, frames_root: Path | None, settings: Settings, table: LabelTable,
             skip_broken: bool) -> SceneReport:  # fmt: skip
    try:
        return preprocess_scene(folder, split, output_root, frames_root, settings, table)
    except (OSError, ValueError, KeyError) as error:
        if not skip_broken:
            raise
        return SceneReport(folder.name, split, error=f"{type(error).__name__}: {error}")


def preprocess_scene(folder: Path, split: str, output_root: Path, frames_root: Path | None, settings: Settings,
                     table: LabelTable) -> SceneReport:  # fmt: skip
    """Writes one scene; see `preprocess_scannet`. Raises: whatever makes the scene unreadable, naming the file."""
    target = output_root / split / folder.name
    stamp = {"settings": asdict(settings), "frames_root": str(frames_root) if frames_root else None}
    kept = _finished(target, stamp)
    if kept:
        return kept
    report = SceneReport(folder.name, split)
    part = _fresh_part(target)
    try:
        for name, array in read_points(folder, split != "test", table, report).items():
            np.save(part / f"{name}.npy", array)
        if settings.frame_stride:
            frames = part if frames_root is None else _fresh_part(frames_root / folder.name)
            try:
                write_frames(folder, frames, settings, table, report)
                if frames_root is not None:
                    _replace(frames, frames_root / folder.name)
            finally:
                if frames != part:
                    shutil.rmtree(frames, ignore_errors=True)
        (part / DONE).write_text(json.dumps({**stamp, "report": asdict(report)}, indent=1))
        _replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report


def _finished(target: Path, stamp: dict) -> SceneReport | None:
    """The report of a scene that is already done with these settings. Raises FileExistsError where a stranger is in the way."""
    if not target.exists():
        return None
    if not (target / DONE).is_file():
        raise FileExistsError(f"{target}: is there but was not written by this preprocessing; move it away or choose another output folder")
    known = json.loads((target / DONE).read_text())
    if {key: known.get(key) for key in stamp} != stamp:
        return None
    frames_root = stamp["frames_root"]
    if frames_root and stamp["settings"]["frame_stride"] and not (Path(frames_root) / target.name).is_dir():
        return None
    return SceneReport(**known["report"])


def _fresh_part(target: Path) -> Path:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def _replace(part: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)


# points


def read_points(folder: Path, labelled: bool, table: LabelTable, report: SceneReport) -> dict[str, np.ndarray]:
    """The arrays of a scene by file name.

    coord [N, 3] float32 metres · color [N, 3] uint8 · normal [N, 3] float32, of the mesh · segment20, segment200 [N] int64
    · instance [N] int32, the `id` of the group; all -1 where nothing is labelled.
    """
    mesh = read_ply(folder / f"{folder.name}_vh_clean_2.ply")
    coord = mesh.coord
    if not np.isfinite(coord).all():
        raise ValueError(f"{mesh.path}: {int((~np.isfinite(coord)).any(axis=1).sum())} of {len(coord)} vertices are not finite")
    if not len(mesh.faces):
        raise ValueError(f"{mesh.path}: has no faces, from which the normals come")
    report.num_points = len(coord)
    arrays = {"coord": coord, "color": mesh.color, "normal": vertex_normals(coord, mesh.faces)}
    segment20 = np.full(len(coord), IGNORE_INDEX, np.int64)
    segment200, instance = segment20.copy(), np.full(len(coord), IGNORE_INDEX, np.int32)
    if labelled:
        _read_annotation(folder, table, report, segment20, segment200, instance)
    return {**arrays, "segment20": segment20, "segment200": segment200, "instance": instance}


def vertex_normals(coord: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals of vertices, float32 [N, 3]: the sum of the faces around each, weighted by area; zero where there is none."""
    corner = coord[faces].astype(np.float64)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    total = np.stack([sum(np.bincount(faces[:, k], normal[:, axis], len(coord)) for k in range(3)) for axis in range(3)], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return (total / np.maximum(length, 1e-20)).astype(np.float32)


def _read_annotation(folder: Path, table: LabelTable, report: SceneReport, segment20: np.ndarray, segment200: np.ndarray,
                     instance: np.ndarray) -> None:  # fmt: skip
    path = folder / f"{folder.name}_vh_clean_2.0.010000.segs.json"
    segment = np.asarray(_read_json(path, "segIndices", list))
    if segment.shape != segment20.shape or segment.dtype.kind != "i":
        raise ValueError(f"{path}: wanted one integer for each of {len(segment20)} vertices, got {segment.dtype} of shape {list(segment.shape)}")
    names, place = np.unique(segment, return_inverse=True)
    to200 = lookup_table(SCANNET200_IDS, 1 << 16)
    path = folder / f"{folder.name}.aggregation.json"
    unknown: Counter[str] = Counter()
    for group in _read_json(path, "segGroups", list):
        try:
            number, label, members = int(group["id"]), str(group["label"]), np.asarray(group["segments"], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: wanted groups with id, label and segments, got {str(group)[:80]!r}") from error
        inside = np.isin(names, members)[place]
        instance[inside] = number
        if label not in table.by_name:
            unknown[label] += int(inside.sum())
        raw_id, nyu40 = table.by_name.get(label, (0, 0))
        segment20[inside] = NYU40_TO_SCANNET20[nyu40]
        segment200[inside] = to200[raw_id]
    report.unknown_labels = dict(unknown)


def _read_json(path: Path, key: str, kind: type) -> list:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: wanted ScanNet's annotation there; scenes without it belong to the test split")
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path}: wanted at most {_MAX_JSON} bytes, it has {path.stat().st_size}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no valid JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise ValueError(f"{path}: wanted an object with a {kind.__name__} {key!r}")
    return content[key]


# frames


def choose_frames(num_frames: int, valid: Callable[[int], bool], settings: Settings) -> tuple[list[int], int]:
    """(numbers of the frames to write, how many were passed over for a lost pose).

    Every `frame_stride`-th frame with a valid pose; of those, `num_frames` spread evenly where that is set.
    """
    wanted = range(0, num_frames, settings.frame_stride)
    good = [index for index in wanted if valid(index)]
    lost = len(wanted) - len(good)
    if settings.num_frames and len(good) > settings.num_frames:
        places = np.linspace(0, len(good) - 1, settings.num_frames).round().astype(int)
        good = [good[place] for place in places]
    return good, lost


def write_frames(folder: Path, target: Path, settings: Settings, table: LabelTable, report: SceneReport) -> None:
    """Writes color/ depth/ pose/ intrinsic/ and, where ScanNet's label pictures are at hand, label/ of chosen frames.

    Label pictures hold NYU40 ids (0 unlabelled) and lie in the depth camera, like the depth.
    """
    from PIL import Image

    with SensReader(folder / f"{folder.name}.sens") as sens, LabelImages(folder) as labels:
        chosen, report.lost_poses = choose_frames(len(sens), sens.pose_is_valid, settings)
        if not chosen:
            raise ValueError(f"{sens.path}: none of its {len(sens)} frames can be used: {report.lost_poses} of those chosen have no valid pose")
        has_labels = settings.label_images and labels.found
        if settings.label_images and not labels.found:
            report.missing.append("label pictures (label-filt/ or _2d-label-filt.zip)")
        for name in ("color", "depth", "pose", "intrinsic") + (("label",) if has_labels else ()):
            (target / name).mkdir()
        intrinsic_color = _write_cameras(sens, target, settings)
        (h, w), color_pixel = sens.depth_size, None
        for index in chosen:
            depth = sens.depth(index)
            if sens.depth_shift != 1000:
                depth = np.clip(np.round(depth * (1000 / sens.depth_shift)), 0, 65535).astype(np.uint16)
            Image.fromarray(depth).save(target / "depth" / f"{index}.png")
            np.savetxt(target / "pose" / f"{index}.txt", sens.pose(index), fmt="%.9f")
            color = sens.color(index)  # decoded even if kept as it is, so that a damaged picture is found now
            color_path = target / "color" / f"{index}.jpg"
            if settings.keep_color_size and sens.color_compression == "jpeg":
                color_path.write_bytes(sens.color_bytes(index))
            else:
                image = Image.fromarray(color)
                if not settings.keep_color_size:
                    image = image.resize((w, h), Image.Resampling.BILINEAR)
                image.save(color_path, quality=95)
            if has_labels:
                label = labels.read(index)
                if color_pixel is None:
                    color_pixel = _color_pixels(sens, label.shape, intrinsic_color)
                nyu40 = table.nyu40_by_id[label.astype(np.uint16)][color_pixel]
                Image.fromarray(nyu40).save(target / "label" / f"{index}.png")
        report.num_frames = len(chosen)


def _write_cameras(sens: SensReader, target: Path, settings: Settings) -> np.ndarray:
    """Writes the four matrices; the colour intrinsic for the size that is written. Returns it for the size in the file."""
    (h, w), (color_h, color_w) = sens.depth_size, sens.color_size
    scale = np.eye(4)
    if not settings.keep_color_size:
        scale[0, 0], scale[1, 1] = w / color_w, h / color_h  # pixel centres at index + 0.5: scaling needs no shift
    for name, matrix in (("intrinsic_color", scale @ sens.intrinsic_color), ("extrinsic_color", sens.extrinsic_color),
                         ("intrinsic_depth", sens.intrinsic_depth), ("extrinsic_depth", sens.extrinsic_depth)):  # fmt: skip
        if name.startswith("intrinsic") and not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
            raise ValueError(f"{sens.path}: {name} has no positive focal lengths: {matrix[:3, :3].tolist()}")
        np.savetxt(target / "intrinsic" / f"{name}.txt", matrix, fmt="%.9f")
    return sens.intrinsic_color[:3, :3]


def _color_pixels(sens: SensReader, label_size: tuple[int, int], intrinsic_color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row [H, W], column [H, W]) in a label picture of the centre of each depth pixel."""
    h, w = sens.depth_size
    rows, cols = np.mgrid[0:h, 0:w] + 0.5
    to_color = intrinsic_color @ np.linalg.inv(sens.intrinsic_depth[:3, :3])
    u, v, _ = np.einsum("ij,jhw->ihw", to_color, np.stack([cols, rows, np.ones_like(rows)]))
    u, v = u * (label_size[1] / sens.color_size[1]), v * (label_size[0] / sens.color_size[0])
    return np.clip(v.astype(int), 0, label_size[0] - 1), np.clip(u.astype(int), 0, label_size[1] - 1)


class LabelImages:
    """ScanNet's filtered 2D labels of a scene, from the folder label-filt/ or from its zip, by the frame's own number.

    kind: of the pictures, label-filt or instance-filt.
    """

    def __init__(self, folder: Path, kind: str = "label-filt"):
        self.kind = kind
        self.folder = next((folder / part / kind for part in ("", "data") if (folder / part / kind).is_dir()), folder / kind)
        self.path = folder / f"{folder.name}_2d-{kind}.zip"
        self.archive: zipfile.ZipFile | None = None
        if not self.folder.is_dir() and self.path.is_file():
            try:
                self.archive = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{self.path}: is no readable zip ({error})") from error

    @property
    def found(self) -> bool:
        """Whether there are label pictures at all."""
        return self.archive is not None or self.folder.is_dir()

    def __enter__(self) -> "LabelImages":
        return self

    def __exit__(self, *_: object) -> None:
        if self.archive:
            self.archive.close()

    def read(self, index: int) -> np.ndarray:
        """Raw category ids of a frame, [H, W] integers. Raises: FileNotFoundError or ValueError naming the picture."""
        from PIL import Image

        if self.archive:
            name = f"{self.kind}/{index}.png"
            if name not in self.archive.NameToInfo:
                raise FileNotFoundError(f"{self.path}: has no {name}")
            source, where = self.archive.open(name), f"{self.path}: {name}"
        else:
            where = str(self.folder / f"{index}.png")
            source = open(where, "rb")  # noqa: SIM115 (closed by the with below)
        try:
            with source, Image.open(source, formats=["PNG"]) as image:
                label = np.asarray(image)
        except (OSError, SyntaxError, zipfile.BadZipFile) as error:
            raise ValueError(f"{where}: cannot be read as PNG ({error})") from error
        if label.ndim != 2 or label.dtype.kind not in "iu":
            raise ValueError(f"{where}: wanted one channel of integers, got {label.dtype} of shape {list(label.shape)}")
        return label
