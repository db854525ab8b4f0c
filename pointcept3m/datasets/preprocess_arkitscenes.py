"""ARKitScenes (3dod) to scene folders: the mesh's points, objects by annotated boxes, posed RGB-D frames with masks.

    raw_root/3dod/{Training,Validation}/<video>/  (or raw_root/{Training,Validation}/<video>/, or raw_root/scans/<video>/)
        <video>_3dod_mesh.ply, <video>_3dod_annotation.json
        <video>_frames/lowres_wide/<video>_<time>.png, lowres_depth/, lowres_wide_intrinsics/<video>_<time>.pincam, lowres_wide.traj
    3dod_train_val_splits.csv   in raw_root, raw_root/files or raw_root/threedod: video_id, visit_id, fold

Videos of one visit show one place; the first of them in the table (of the same split) is the reference. How their axes lie to each other is not
published. The i-th box of an annotation has id i + 1, as SceneVerse's referrals count. A point in several boxes belongs to the
smallest: a pillow's, not the bed's (SceneVerse and CrossOver take the last in the file). Trajectories are world->camera.
"""

import csv
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.object_boxes import box_of_obb, inside_obb, read_obb
from pointcept3m.datasets.preprocess_objects import (
    NONE,
    ObjectSettings,
    RawFrame,
    find_file,
    load_json,
    mesh_of_objects,
    read_lists,
    referrals_of,
    save_objects,
    spaced,
    write_frames,
)
from pointcept3m.datasets.preprocess_scannet import vertex_normals
from pointcept3m.datasets.preprocess_scenes import Job, SceneReport, save_arrays
from pointcept3m.datasets.readers.ply import read_ply
from pointcept3m.structures.camera import invert_pose
from pointcept3m.structures.scene import check_intrinsic, check_pose, natural_key
from pointcept3m.structures.scene_objects import SceneFacts, SceneObject, write_facts, write_objects
from pointcept3m.utils.files import near_files

TABLE = "3dod_train_val_splits.csv"
FOLDS = {"Training": "train", "Validation": "val"}
SAME_TIME = 0.005  # seconds between a picture and its pose or camera, as ARKitScenes' own loader allows


class Visit(NamedTuple):
    """What the table says of a video: its split and place."""

    split: str
    place: str


def read_visits(path: Path) -> dict[str, Visit]:
    """All videos of 3dod_train_val_splits.csv; one without a visit (NA) is a place of its own.

    Raises: FileNotFoundError; ValueError naming the line that is not as it should be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, the table of videos, visits and folds in ARKitScenes' repository; {near_files(path)}")
    found: dict[str, Visit] = {}
    with open(path, newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        for row in rows:
            video, visit, fold = (row.get(key) or "" for key in ("video_id", "visit_id", "fold"))
            if not video or fold not in FOLDS:
                raise ValueError(f"{path}, line {rows.line_num}: wanted video_id, visit_id and fold ({', '.join(FOLDS)}), got {dict(row)}")
            found[video] = Visit(FOLDS[fold], visit if visit not in ("", "NA") else video)
    return found


def jobs_of(raw_root: str | Path, output_root: str | Path, splits: Sequence[str], settings: ObjectSettings,
            lists: Mapping[str, str | Path] | None = None) -> list[Job]:  # fmt: skip
    """A job for each video of `splits` below raw_root that the table has, sorted by name.

    lists: split -> text file of videos, in place of the folds. Raises: FileNotFoundError where there are no videos or no table;
    ValueError where none is of these splits.
    """
    raw_root, output_root = Path(raw_root), Path(output_root)
    table = find_file(raw_root, TABLE, "files", "threedod", "3dod", "metadata")
    visits, listed = read_visits(table), read_lists(lists or {})
    places = [raw_root / part / fold for part in ("", "3dod") for fold in FOLDS] + [raw_root / "scans"]
    there = sorted(path for place in places if place.is_dir() for path in place.iterdir() if path.name in visits and path.is_dir())
    if not there:
        raise FileNotFoundError(f"{raw_root}: wanted 3dod/Training/<video>, Training/<video> or scans/<video> there, of videos in {table.name}")
    referrals = referrals_of(settings.referrals)
    split_of = listed if listed else {video: visit.split for video, visit in visits.items()}
    first: dict[tuple[str, str], str] = {}  # one visit of the official table is in both folds: each has a reference of its own
    for video, visit in visits.items():
        if video in split_of:
            first.setdefault((visit.place, split_of[video]), video)
    jobs = []
    for path in there:
        place, split = visits[path.name].place, split_of.get(path.name, "")
        if split in splits:
            jobs.append(Job(output_root / split / path.name, (path, place, first[place, split], referrals.get(path.name, []))))
    if not jobs:
        raise ValueError(f"{raw_root}: none of its {len(there)} videos is of the splits {', '.join(splits)}")
    return jobs


def fill_video(folder: Path, report: SceneReport, settings: ObjectSettings, raw: Path, place: str, first: str,
               referrals: Sequence[tuple[int, str]]) -> None:  # fmt: skip
    """Writes one video of a place whose reference is `first`. Raises: whatever makes it unreadable, naming the file."""
    mesh = read_ply(raw / f"{raw.name}_3dod_mesh.ply")
    objects, instance = read_objects_of(raw / f"{raw.name}_3dod_annotation.json", mesh.coord, report)
    arrays = {"coord": mesh.coord, "color": mesh.color, "normal": vertex_normals(mesh.coord, mesh.faces), "instance": instance}
    save_arrays(folder, report, arrays)
    if objects:
        save_objects(folder, report, objects, settings, referrals)
    else:
        report.note("videos without an annotated object")
        write_objects(folder, [])
    write_facts(folder, SceneFacts(place, "", None if first == raw.name else first, None, [], "arkitscenes"))
    if settings.frame_stride:
        caster = mesh_of_objects(mesh.coord, mesh.faces, instance, objects, report) if settings.masks else None
        write_frames(folder, report, frames_of(raw / f"{raw.name}_frames", raw.name, settings, report), settings, caster)


def read_objects_of(path: Path, coord: NDArray, report: SceneReport) -> tuple[list[SceneObject], NDArray[np.int32]]:
    """(objects, instance [N]) of the boxes of an annotation. Raises: FileNotFoundError; ValueError naming the file and the box."""
    content = load_json(path, dict, "the boxes of a video")
    entries = content.get("data", [])
    if not isinstance(entries, list):
        raise ValueError(f"{path}: wanted a list of boxes as data, got {type(entries).__name__}")
    objects, boxes = [], []
    for number, entry in enumerate(entries):
        where = f"{path}: box {number}"
        label = str(entry.get("label", "") if isinstance(entry, dict) else "").replace("_", " ").strip()
        if not label or not isinstance(entry.get("segments"), dict):
            raise ValueError(f"{where}: wanted label and segments, got {str(entry)[:120]!r}")
        boxes.append(read_obb(entry["segments"].get("obbAligned"), f"{where} ({label})"))
        objects.append(SceneObject(number + 1, label, *box_of_obb(*boxes[-1])))
    instance = np.full(len(coord), NONE, np.int32)
    # the largest first, so that the smallest has the last word
    for row in sorted(range(len(boxes)), key=lambda k: -float(np.prod(boxes[k][1]))):
        instance[inside_obb(coord, *boxes[row])] = row + 1
    report.note("objects without a point of their own", len(objects) - len(np.setdiff1d(instance, [NONE])))
    return objects, instance


# frames


def frames_of(folder: Path, video: str, settings: ObjectSettings, report: SceneReport) -> Iterator[RawFrame]:
    """The chosen pictures with camera, pose and depth, others are counted in notes; a frame is called by its time.

    Raises: FileNotFoundError where there is no picture or no trajectory; ValueError naming the file that is none.
    """
    pictures = {path.stem.removeprefix(f"{video}_"): path for path in (folder / "lowres_wide").glob("*.png")}
    if not pictures:
        raise FileNotFoundError(f"{folder / 'lowres_wide'}: wanted pictures {video}_<time>.png there, found none; --frame-stride 0 writes points only")
    times, poses = read_trajectory(folder / "lowres_wide.traj")
    cameras = {path.stem.removeprefix(f"{video}_"): path for path in (folder / "lowres_wide_intrinsics").glob("*.pincam")}
    camera_names = sorted(cameras, key=float)
    camera_times = [float(name) for name in camera_names]
    for name in spaced(sorted(pictures, key=natural_key), settings):
        pose, camera = _nearest(times, float(name)), _nearest(camera_times, float(name))
        depth = folder / "lowres_depth" / pictures[name].name
        lacking = [kind for kind, lacks in (("pose", pose is None), ("camera", camera is None), ("depth", not depth.is_file())) if lacks]
        if lacking:
            report.note(f"pictures without {' or '.join(lacking)}, left out")
            continue
        intrinsic, size = read_pincam(cameras[camera_names[camera]])
        yield RawFrame(name, pictures[name], depth, poses[pose], intrinsic, size)


def _nearest(times: Sequence[float], time: float) -> int | None:
    """The place of the nearest of sorted times, None where it is further off than SAME_TIME."""
    after = bisect_left(times, time)
    best = min((k for k in (after - 1, after) if 0 <= k < len(times)), key=lambda k: abs(times[k] - time), default=None)
    return best if best is not None and abs(times[best] - time) <= SAME_TIME else None


def read_trajectory(path: Path) -> tuple[list[float], NDArray[np.float64]]:
    """(times in seconds, sorted; poses [T, 4, 4] camera->world) of a .traj: time, axis times angle (3) and shift (3) from world to
    camera, a line each. Raises: FileNotFoundError; ValueError naming the file: no line, or one that is none."""
    from scipy.spatial.transform import Rotation

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such trajectory; {near_files(path)}")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        rows = np.array(lines, np.float64).reshape(-1, 7)
    except ValueError as error:
        raise ValueError(f"{path}: wanted 7 numbers a line, time, rotation and shift ({error})") from error
    if not len(rows):
        raise ValueError(f"{path}: the trajectory is empty")
    if not np.isfinite(rows).all():
        raise ValueError(f"{path}: {int((~np.isfinite(rows)).any(axis=1).sum())} of {len(rows)} lines are not finite")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    extrinsic = np.tile(np.eye(4), (len(rows), 1, 1))
    extrinsic[:, :3, :3], extrinsic[:, :3, 3] = Rotation.from_rotvec(rows[:, 1:4]).as_matrix(), rows[:, 4:]
    poses = invert_pose(extrinsic)
    check_pose(poses[int(np.abs(poses[:, :3, 3]).max(axis=1).argmax())], f"{path}: the pose furthest off")
    return rows[:, 0].tolist(), poses


def read_pincam(path: Path) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """(intrinsic [3, 3], (H, W)) of a .pincam: width, height, focal lengths, principal point. Raises ValueError naming the file."""
    try:
        width, height, fx, fy, cx, cy = (float(word) for word in path.read_text().split())
    except ValueError as error:
        raise ValueError(f"{path}: wanted width, height, two focal lengths and a principal point ({error})") from error
    return check_intrinsic(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), str(path)), (int(height), int(width))
