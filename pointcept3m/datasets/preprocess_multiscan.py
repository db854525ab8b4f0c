"""MultiScan to scene folders: the annotated mesh's points and objects, posed pictures with masks.

    raw_root/<scan>/  (or raw_root/scenes/<scan>/), scan = scene_00000_00
        <scan>.ply                  vertices with colours, faces with objectId
        <scan>.annotations.json     objects: objectId, label ("chair.3"), obb
        <scan>.json                 the kind of room (scene.type), streams with sizes
        <scan>.jsonl                a camera a line: transform (ARKit's axes) and intrinsics, column by column
        <scan>.align.json           coordinate_transform: the mesh's axes to those of the cameras
        sequence/                   pictures taken out of <scan>.mp4 (see `SAY_FFMPEG`), named by their number
    scans_split.csv   in raw_root, raw_root/files or raw_root/benchmark: scanId, split

Scans of one place share the first two parts of their name (CrossOver's release takes the first, so that all scans are of one
place); <place>_00 is the reference. How scans of a place lie to each other is not published. Depth is not written.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.object_boxes import box_of_obb, read_obb
from pointcept3m.datasets.preprocess_matterport import vote
from pointcept3m.datasets.preprocess_objects import (
    NONE,
    ObjectSettings,
    RawFrame,
    find_file,
    load_json,
    mesh_of_objects,
    objects_of_points,
    read_lists,
    referrals_of,
    save_objects,
    spaced,
    write_frames,
)
from pointcept3m.datasets.preprocess_scannet import vertex_normals
from pointcept3m.datasets.preprocess_scenes import SPLITS, Job, SceneReport, save_arrays
from pointcept3m.datasets.readers.ply import Ply, read_ply
from pointcept3m.structures.scene import COLOR_SUFFIXES, check_intrinsic, check_pose
from pointcept3m.structures.scene_objects import SceneFacts, write_facts
from pointcept3m.utils.files import near_files

TABLE = "scans_split.csv"
REMOVE = "remove"  # the label of what the annotators would have cut away
SCAN = re.compile(r"(scene_\d{5})_(\d{2})")
TO_OPENCV = np.diag([1.0, -1, -1, 1])  # ARKit's cameras have y up and look along -z
SAY_FFMPEG = "mkdir {0}/sequence && ffmpeg -i {0}/{1}.mp4 -vf 'select=not(mod(n\\,{2}))' -vsync 0 -q:v 2 -start_number 0 {0}/sequence/%06d.jpg"


@dataclass(frozen=True)
class Settings(ObjectSettings):
    """`ObjectSettings`, and sequence_stride: picture number k of sequence/ is frame k * sequence_stride of the video."""

    sequence_stride: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_stride < 1:
            raise ValueError(f"sequence_stride must be at least 1, got {self.sequence_stride}")


def jobs_of(raw_root: str | Path, output_root: str | Path, splits: Sequence[str], settings: Settings,
            lists: Mapping[str, str | Path] | None = None) -> list[Job]:  # fmt: skip
    """A job for each scan of `splits` below raw_root, sorted by name.

    lists: split -> text file of scans, in place of scans_split.csv. Raises: FileNotFoundError where there are no scans or no
    table; ValueError where none is of these splits.
    """
    raw_root, output_root = Path(raw_root), Path(output_root)
    listed = read_lists(lists) if lists else read_splits(find_file(raw_root, TABLE, "files", "benchmark", "dataset/benchmark"))
    folder = raw_root / "scenes" if (raw_root / "scenes").is_dir() else raw_root
    there = sorted(path for path in folder.iterdir() if SCAN.fullmatch(path.name) and path.is_dir())
    if not there:
        raise FileNotFoundError(f"{folder}: wanted folders scene_00000_00 there, found none")
    referrals = referrals_of(settings.referrals)
    jobs = [Job(output_root / listed[path.name] / path.name, (path, referrals.get(path.name, [])))
            for path in there if listed.get(path.name) in splits]  # fmt: skip
    if not jobs:
        raise ValueError(f"{folder}: none of its {len(there)} scans is of the splits {', '.join(splits)}")
    return jobs


def read_splits(path: Path) -> dict[str, str]:
    """scan -> split of scans_split.csv; scans that it gives none are left out. Raises: FileNotFoundError; ValueError naming the line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, the splits in dataset/benchmark/ of MultiScan's repository (or give --lists); {near_files(path)}")
    found = {}
    with open(path, newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        for row in rows:
            scan, split = row.get("scanId"), row.get("split")
            if not scan or split not in (*SPLITS, ""):
                raise ValueError(f"{path}, line {rows.line_num}: wanted scanId and split ({', '.join(SPLITS)} or nothing), got {dict(row)}")
            if split:
                found[scan] = split
    return found


def fill_scan(folder: Path, report: SceneReport, settings: Settings, raw: Path, referrals: Sequence[tuple[int, str]]) -> None:
    """Writes one scan. Raises: whatever makes it unreadable, naming the file."""
    scan = raw.name
    labels, boxes = read_annotation(raw / f"{scan}.annotations.json")
    mesh = read_ply(raw / f"{scan}.ply")
    coord, color, faces, face_id = kept_parts(mesh, labels)
    instance = vote(faces, np.where(np.isin(face_id, list(labels)), face_id, NONE), len(coord))
    report.note("faces whose object the annotation does not have", int((~np.isin(face_id, [*labels, NONE, 0])).sum()))
    objects = objects_of_points(coord, instance, {k: label for k, label in labels.items() if label != REMOVE}, report)
    for thing in objects:
        if thing.id in boxes:
            thing.center, thing.size, thing.heading = box_of_obb(*boxes[thing.id])
    arrays = {"coord": coord, "color": color, "normal": vertex_normals(coord, faces), "instance": instance.astype(np.int32)}
    save_arrays(folder, report, arrays)
    save_objects(folder, report, objects, settings, referrals)
    place, number = SCAN.fullmatch(scan).groups()
    write_facts(folder, SceneFacts(place, room_kind(raw / f"{scan}.json"), None if number == "00" else f"{place}_00", None, [], "multiscan"))
    if settings.frame_stride:
        caster = mesh_of_objects(coord, faces, instance, objects, report) if settings.masks else None
        write_frames(folder, report, frames_of(raw, settings, report), settings, caster)


# objects


def read_annotation(path: Path) -> tuple[dict[int, str], dict[int, tuple[NDArray, NDArray, NDArray]]]:
    """(id -> label without its number, "wall_cabinet.1" as "wall cabinet"; id -> box as `read_obb` has it, where there is one).

    Raises: FileNotFoundError; ValueError naming the file and the object.
    """
    entries = load_json(path, dict, "the annotation of a scan").get("objects")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: wanted a list of objects, got {type(entries).__name__}")
    labels, boxes = {}, {}
    for number, entry in enumerate(entries):
        where = f"{path}: object {number}"
        try:
            name, label = int(entry["objectId"]), str(entry["label"]).split(".")[0].replace("_", " ").strip().lower()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: wanted objectId and label, got {str(entry)[:120]!r}") from error
        if name <= 0 or name in labels or not label:
            raise ValueError(f"{where}: wanted an objectId from 1, each once, and a label, got {name} and {label!r}")
        labels[name] = REMOVE if label.startswith(REMOVE) else label
        if entry.get("obb") is not None:
            boxes[name] = read_obb(entry["obb"], f"{where} ({label})")
    return labels, boxes


def kept_parts(mesh: Ply, labels: Mapping[int, str]) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """(coord [N, 3], color [N, 3], faces [F, 3], objectId of each face [F]) without the faces that are to be removed and their
    vertices. Raises: ValueError where faces have no objectId, or all are to be removed."""
    if "objectId" not in mesh.face:
        raise ValueError(f"{mesh.path}: its faces have no objectId, they have {sorted(mesh.face)}; wanted MultiScan's annotated mesh")
    face_id = mesh.face["objectId"].astype(np.int64)
    keep = ~np.isin(face_id, [name for name, label in labels.items() if label == REMOVE])
    if keep.all():
        return mesh.coord, mesh.color, mesh.faces, face_id
    used, place = np.unique(mesh.faces[keep], return_inverse=True)
    if not len(used):
        raise ValueError(f"{mesh.path}: all of its {len(keep)} faces are labelled {REMOVE!r}")
    return mesh.coord[used], mesh.color[used], place.reshape(-1, 3), face_id[keep]


def room_kind(path: Path) -> str:
    """The kind of room of a scan's metadata, in lower case; "" where they do not say."""
    scene = load_json(path, dict, "the metadata of a scan").get("scene")
    return str(scene.get("type") or "").strip().lower() if isinstance(scene, dict) else ""


# frames


def frames_of(raw: Path, settings: Settings, report: SceneReport) -> Iterator[RawFrame]:
    """The chosen pictures of sequence/; those without a pose are counted in a note.

    Raises: FileNotFoundError where there is no picture, naming the command that makes them, or no cameras; ValueError where pictures and
    cameras cannot belong together, or a file is not as it should be.
    """
    pictures = {}
    for path in (raw / "sequence").iterdir() if (raw / "sequence").is_dir() else ():
        digits = re.search(r"(\d+)$", path.stem)
        if path.suffix in COLOR_SUFFIXES and digits:
            pictures[int(digits[1]) * settings.sequence_stride] = path
    if not pictures:
        say = SAY_FFMPEG.format(raw, raw.name, settings.sequence_stride)
        raise FileNotFoundError(f"{raw / 'sequence'}: has no pictures of the video; this takes them out: {say} (--frame-stride 0 writes points only)")
    cameras = raw / f"{raw.name}.jsonl"
    if not cameras.is_file():
        raise FileNotFoundError(f"{cameras}: no such file, the cameras of the video; {near_files(cameras)}")
    lines = [line for line in cameras.read_text(encoding="utf-8").splitlines() if line.strip()]
    _check_numbers(raw, sorted(pictures), len(lines), settings.sequence_stride)
    size, to_mesh = color_size(raw / f"{raw.name}.json"), np.linalg.inv(read_alignment(raw / f"{raw.name}.align.json"))
    for number in spaced(sorted(pictures), settings):
        where = f"{cameras}, line {number + 1}"
        pose, intrinsic = read_camera(lines[number], where)
        try:
            check_pose(pose, where)
        except ValueError:
            report.note("pictures with a pose that is none, left out")
            continue
        yield RawFrame(f"{number:06d}", pictures[number], None, to_mesh @ pose, check_intrinsic(intrinsic, where), size)


def _check_numbers(raw: Path, numbers: Sequence[int], count: int, stride: int) -> None:
    """Raises ValueError where frame numbers cannot be those of a video with `count` cameras."""
    told = f"{raw / 'sequence'}: {len(numbers)} pictures are frames {numbers[0]} to {numbers[-1]}, and the video has {count} cameras"
    if numbers[-1] >= count:
        raise ValueError(f"{told}; --sequence-stride {stride} says how many frames lie between two pictures, 1 where their names are frames of the video")
    if stride == 1 and len(numbers) > 9 and numbers[-1] - numbers[0] + 1 == len(numbers) <= count // 2:
        raise ValueError(f"{told}; if every n-th frame was taken and they were counted anew, say so by --sequence-stride")


def color_size(path: Path) -> tuple[int, int]:
    """(H, W) of the video. Raises: FileNotFoundError; ValueError naming the file."""
    streams = load_json(path, dict, "the metadata of a scan").get("streams")
    for stream in streams if isinstance(streams, list) else ():
        if isinstance(stream, dict) and stream.get("type") == "color_camera" and len(stream.get("resolution") or ()) == 2:
            return int(stream["resolution"][0]), int(stream["resolution"][1])
    raise ValueError(f"{path}: wanted a stream of type color_camera with its resolution, got {str(streams)[:120]!r}")


def read_alignment(path: Path) -> NDArray[np.float64]:
    """[4, 4] from the mesh's axes to the cameras'. Raises: FileNotFoundError; ValueError where it is none, or not rigid."""
    numbers = load_json(path, dict, "how mesh and cameras lie to each other").get("coordinate_transform")
    return check_pose(_columns(numbers, 4, f"{path}: coordinate_transform"), f"{path}: coordinate_transform")


def read_camera(line: str, where: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(pose [4, 4] camera->world with x right, y down, z forward; intrinsic [3, 3]) of a line of a .jsonl. Raises ValueError."""
    try:
        entry = json.loads(line)
        transform, intrinsics = entry["transform"], entry["intrinsics"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: wanted a camera with transform and intrinsics ({type(error).__name__}: {error})") from error
    pose = _columns(transform, 4, f"{where}: transform")
    with np.errstate(divide="ignore", invalid="ignore"):
        return pose / pose[3, 3] @ TO_OPENCV, _columns(intrinsics, 3, f"{where}: intrinsics")


def _columns(numbers: object, side: int, where: str) -> NDArray[np.float64]:
    """A square matrix of numbers column by column."""
    try:
        return np.array(numbers, np.float64).reshape(side, side).T
    except (TypeError, ValueError):
        raise ValueError(f"{where}: wanted {side * side} numbers, got {str(numbers)[:80]!r}") from None
