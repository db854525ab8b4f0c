"""Raw Structured3D to scene folders, one a room: fused points with labels and objects, posed pictures with masks, floorplans.

    raw_root/scene_XXXXX/  (or raw_root/Structured3D/scene_XXXXX/, as its archives unpack)
        annotation_3d.json, bbox_3d.json
        2D_rendering/<room>/perspective/full/<position>/{rgb_rawlight,depth,semantic,instance}.png, camera_pose.txt
        2D_rendering/<room>/panorama/full/{rgb_rawlight,depth,semantic,instance}.png, panorama/camera_xyz.txt
        2D_rendering/<room>/obj2tgid.json      (CrossOver's) id of an object -> SceneVerse's target_id

A room is a scene and a place of its own, scene_XXXXX_<room>, in the house's axes. Points are fused from the depth of perspectives
and panorama; panoramas are cut into views, which are pictures like others. Depth is along the axis of a perspective, and along the
ray of a panorama. A voxel has the class and the object that most pixels in it have. (Pointcept's preprocessing swaps x and y, which
mirrors rooms.)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.floorplan import render_floorplan
from pointcept3m.datasets.fusion import DepthFrame, FusionSettings, fuse_frames, voxel_keys
from pointcept3m.datasets.object_boxes import box_of_obb, solid_of, upright_box
from pointcept3m.datasets.preprocess_objects import (
    LARGEST,
    NONE,
    ObjectSettings,
    is_shell,
    load_json,
    read_lists,
    referrals_of,
    save_objects,
    spaced,
)
from pointcept3m.datasets.preprocess_scenes import (
    IGNORE_INDEX,
    Job,
    SceneReport,
    save_arrays,
    save_camera,
    save_color,
    shrunk,
)
from pointcept3m.datasets.readers.structured3d import (
    PANORAMA,
    Structure,
    read_boxes,
    read_camera,
    read_eye,
    read_structure,
)
from pointcept3m.datasets.scannet_labels import NYU40_NAMES, lookup_table
from pointcept3m.structures.camera import resize_nearest, scale_intrinsic, unproject
from pointcept3m.structures.images import read_color, read_depth, read_integer_image, write_depth
from pointcept3m.structures.panorama import look, view_intrinsic, view_rotation
from pointcept3m.structures.scene import natural_key
from pointcept3m.structures.scene_objects import SceneFacts, SceneObject, write_facts, write_floorplan, write_mask
from pointcept3m.utils.registry import near_names

# NYU40 ids of the 25 classes that Pointcept has, in its order
CLASS_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 18, 19, 22, 24, 25, 32, 34, 35, 38, 39, 40)
INVALID = frozenset(f"scene_{number:05d}" for number in (1155, 1192, 1714, 1816, 1852, 3398))  # its errata: "invalid scene"
BACKGROUND = 65535
FILES = ("rgb_rawlight.png", "depth.png", "semantic.png")
FAR = 20.0  # metres: beyond it depth is of what lies outside
LABEL_BITS = 22  # a label: 16 of an id plus one, and a class of 40
CUT = 90.0  # degrees: width of the views that are cut out of a panorama


@dataclass(frozen=True)
class Settings(ObjectSettings):
    """What the user chose. panorama_views: pictures cut out of a room's panorama, 0 none · voxel: metres between fused points."""

    frame_stride: int = 1
    panorama_views: int = 8
    voxel: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.panorama_views < 0 or not self.voxel > 0:
            raise ValueError(f"wanted panorama_views from 0 and voxel > 0, got {self.panorama_views} and {self.voxel}")


@dataclass(frozen=True)
class View:
    """A posed picture, decoded: color uint8 [H, W, 3], depth [H, W] metres along its axis, semantic [H, W] NYU40 ids (0 none), instance [H, W]
    ids (-1 none) or None."""

    name: str
    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    semantic: NDArray[np.int64]
    instance: NDArray[np.int64] | None
    pose: NDArray[np.float64]
    intrinsic: NDArray[np.float64]


def split_of(scene: str) -> str:
    """Structured3D's own splits: houses 0 to 2999 train, to 3249 val, to 3499 test."""
    number = int(scene.rpartition("_")[2])
    return "train" if number < 3000 else "val" if number < 3250 else "test"


def jobs_of(raw_root: str | Path, output_root: str | Path, splits: Sequence[str], settings: Settings,
            lists: Mapping[str, str | Path] | None = None) -> list[Job]:  # fmt: skip
    """A job for each room of `splits`, sorted; the six houses that Structured3D's errata call invalid are left out.

    lists: split -> text file of rooms scene_XXXXX_<room>, in place of the own splits. Raises: FileNotFoundError where there are no
    rooms; ValueError where none is of these splits, or a list names a room that is not there.
    """
    raw_root, output_root = Path(raw_root), Path(output_root)
    base = raw_root / "Structured3D" if (raw_root / "Structured3D").is_dir() else raw_root
    rooms = {f"{path.parts[-3]}_{path.name}": path for path in sorted(base.glob("scene_?????/2D_rendering/*")) if path.is_dir()}
    if not rooms:
        packed = next(raw_root.glob("**/Structured3D_*.zip"), None)
        hint = f"; {packed} is still packed" if packed else ""
        raise FileNotFoundError(f"{base}: wanted Structured3D's scene_XXXXX/2D_rendering/<room> there, found none{hint}")
    listed, referrals = read_lists(lists or {}), referrals_of(settings.referrals)
    strange = next((name for name in listed if name not in rooms), None)
    if strange is not None:
        raise ValueError(f"{base}: has no room {strange!r}, which a list names; {near_names(strange, rooms)}")
    jobs = []
    for name, path in rooms.items():
        scene = path.parts[-3]
        split = listed.get(name) if listed else split_of(scene)
        if split in splits and scene not in INVALID:
            jobs.append(Job(output_root / split / name, (path, referrals.get(name, []))))
    if not jobs:
        raise ValueError(f"{base}: none of its {len(rooms)} rooms is of the splits {', '.join(splits)}")
    return jobs


def fill_room(folder: Path, report: SceneReport, settings: Settings, room: Path, referrals: Sequence[tuple[int, str]]) -> None:
    """Writes one room. Raises: whatever makes it unreadable, naming the file."""
    house = room.parents[1]
    views, fused = read_views(room, settings, report)
    points = fuse_points(fused, settings)
    objects = find_objects(points, views, house / "bbox_3d.json", report)
    structure = read_structure(house / "annotation_3d.json") if (house / "annotation_3d.json").is_file() else None
    number = int(room.name) if room.name.isdigit() else NONE
    if structure is None or number not in structure.rooms:
        report.note("rooms without a structure (annotation_3d.json), and so without a kind and walls")
        kind, (walls, doors, windows) = "", np.zeros((3, 0, 2, 2))
    else:
        kind, (walls, doors, windows) = _kind(structure, number), structure.plan(number)
    objects = within(objects, walls, report)
    instance = points["instance"]
    instance[~np.isin(instance, [thing.id for thing in objects])] = NONE
    save_arrays(folder, report, points)
    write_facts(folder, SceneFacts(report.name, kind, dataset="structured3d"))
    save_objects(folder, report, objects, settings, _to_objects(room / "obj2tgid.json", referrals, report))
    if len(walls) or objects:
        solids = [solid_of((thing.center, thing.size, thing.heading)) for thing in objects]
        write_floorplan(folder, render_floorplan(walls, solids, doors=doors, windows=windows))
    else:
        report.note("rooms without a floorplan")
    if settings.frame_stride:
        for view in views:
            _write_view(folder, view, {thing.id for thing in objects} if settings.masks else None, report)


def _kind(structure: Structure, room: int) -> str:
    kind = structure.rooms[room][0]
    return "" if kind == "undefined" else kind


def _to_objects(path: Path, referrals: Sequence[tuple[int, str]], report: SceneReport) -> list[tuple[int, str]]:
    """Referrals by id: SceneVerse numbers the objects of a room anew, and CrossOver's obj2tgid.json says how."""
    if not referrals:
        return []
    if not path.is_file():
        report.note("referrals of rooms without obj2tgid.json, which says what objects they mean, left out", len(referrals))
        return []
    try:
        by_target = {int(target): int(name) for name, target in load_json(path, dict, "ids of objects to SceneVerse's").items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: wanted an object of ids to ids ({error})") from error
    return [(by_target.get(target, NONE), text) for target, text in referrals]


# pictures


def read_views(room: Path, settings: Settings, report: SceneReport) -> tuple[list[View], list[View]]:
    """(views to write, views to fuse) of a room: perspectives are both, a panorama is cut once for each.

    Raises: ValueError where the room has neither, or a picture is damaged or of another size than its depth.
    """
    folder = room / "perspective" / "full"
    positions = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=natural_key) if folder.is_dir() else []
    perspectives = []
    for position in spaced(positions, settings) if settings.frame_stride else positions:
        found = _read_pictures(folder / position, report)
        if found is not None:
            perspectives.append(_perspective(position, folder / position, found, settings.image_width))
    panorama = _read_pictures(room / "panorama" / "full", report) if (room / "panorama" / "full").is_dir() else None
    cut, cube = [], []
    if panorama is not None:
        eye = read_eye(room / "panorama" / "camera_xyz.txt")
        cut = [_cut(panorama, eye, 360 * k / settings.panorama_views, 0.0, CUT, f"panorama-{k}") for k in range(settings.panorama_views)]
        faces = [(90 * k, 0) for k in range(4)] + [(0, 90), (0, -90)]
        cube = [_cut(panorama, eye, yaw, pitch, CUT + 6, "") for yaw, pitch in faces]  # 6: edges of a picture have no normals
    if not perspectives and panorama is None:
        raise ValueError(f"{room}: has neither perspectives ({folder.relative_to(room)}/<position>) nor a panorama with {', '.join(FILES)}")
    return perspectives + cut, perspectives + cube


def _read_pictures(folder: Path, report: SceneReport) -> dict[str, NDArray] | None:
    """color, depth, semantic and, where it is there, instance (-1 none) of a folder; None, and a note, where one is missing."""
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if lacking:
        report.note(f"pictures without {' and '.join(lacking)}, left out")
        return None
    found = {"color": read_color(folder / FILES[0]), "depth": read_depth(folder / FILES[1], invalid=(0, BACKGROUND))}
    found["semantic"] = read_integer_image(folder / FILES[2], "NYU40 ids in one channel").astype(np.int64)
    if (folder / "instance.png").is_file():
        ids = read_integer_image(folder / "instance.png", "16-bit ids of objects in one channel").astype(np.int64)
        found["instance"] = np.where((ids == BACKGROUND) | (ids > LARGEST), NONE, ids)
    else:
        report.note("pictures without instance.png, and so without a mask")
    size = found["depth"].shape
    strange = next((kind for kind, image in found.items() if image.shape[:2] != size), None)
    if strange:
        shape = found[strange].shape
        raise ValueError(f"{folder}: {strange} has {shape[1]} x {shape[0]} pixels, depth {size[1]} x {size[0]}")
    if found["semantic"].max() > len(NYU40_NAMES):
        raise ValueError(f"{folder / FILES[2]}: has class {found['semantic'].max()}, NYU's go to {len(NYU40_NAMES)}")
    return found


def _perspective(name: str, folder: Path, found: Mapping[str, NDArray], width: int) -> View:
    own = found["depth"].shape
    size = shrunk(own, width)
    pose, intrinsic = read_camera(folder / "camera_pose.txt", own)
    maps = [resize_nearest(found[kind], size) if kind in found else None for kind in ("depth", "semantic", "instance")]
    return View(name, _resized(found["color"], size), *maps, pose, scale_intrinsic(intrinsic, own, size))


def _resized(color: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    return color if size == color.shape[:2] else np.asarray(Image.fromarray(color).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _cut(panorama: Mapping[str, NDArray], eye: NDArray, yaw: float, pitch: float, fov: float, name: str) -> View:
    """A square view of a panorama, with the panorama's own pixels in its middle row; depth along the ray becomes depth along the axis."""
    side = max(8, round(panorama["depth"].shape[1] * fov / 360))
    size, intrinsic, rotation = (side, side), view_intrinsic(fov, (side, side)), view_rotation(yaw, pitch)
    maps = {kind: look(image, rotation, intrinsic, size) for kind, image in panorama.items()}
    pose = np.eye(4)
    pose[:3] = np.column_stack([PANORAMA @ rotation, eye])
    longer = np.linalg.norm(unproject(np.ones(size), intrinsic), axis=-1)
    return View(name, maps["color"], (maps["depth"] / longer).astype(np.float32), maps["semantic"], maps.get("instance"), pose, intrinsic)


def _write_view(folder: Path, view: View, ids: set[int] | None, report: SceneReport) -> None:
    save_color(folder / "color" / f"{view.name}.jpg", view.color, view.color.shape[:2])
    (folder / "depth").mkdir(exist_ok=True)
    write_depth(folder / "depth" / f"{view.name}.png", view.depth)
    save_camera(folder, view.name, view.pose, view.intrinsic)
    if ids is not None and view.instance is not None:
        write_mask(folder, view.name, np.where(np.isin(view.instance, list(ids)), view.instance, NONE))
    report.num_frames += 1


# points and objects


def fuse_points(views: Sequence[View], settings: Settings) -> dict[str, NDArray]:
    """The arrays of a room's points: coord, color, normal, segment [N] int64 (place in CLASS_IDS, -1 none), instance [N] int32 (-1 none)."""
    # rendered depth has no noise to be filtered, and a panorama's pixels are as far apart as voxels
    limits = FusionSettings(settings.voxel, 0.05, FAR, edge=0.1, min_frames=1, min_neighbors=0, min_component=1)
    frames = (DepthFrame(view.color, view.depth, view.intrinsic, view.intrinsic, view.pose) for view in views)
    cloud = fuse_frames(frames, limits)
    label = vote(cloud.coord, (_labelled(view) for view in views), settings.voxel)
    semantic = np.where(label < 0, 0, label >> 16)
    classes = lookup_table(CLASS_IDS, len(NYU40_NAMES) + 1)[semantic]
    instance = np.where(label < 0, NONE, (label & 0xFFFF) - 1)
    return {"coord": cloud.coord, "color": cloud.color, "normal": cloud.normal, "segment": np.where(classes < 0, IGNORE_INDEX, classes).astype(np.int64),
            "instance": instance.astype(np.int32)}  # fmt: skip


def _labelled(view: View) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(points [P, 3], labels [P]: class times 2^16 plus id plus one) of the pixels of a view that have a depth."""
    seen = (view.depth > 0) & (view.depth <= FAR)
    ids = np.zeros(view.depth.shape, np.int64) if view.instance is None else view.instance + 1
    return unproject(view.depth, view.intrinsic, view.pose)[seen], ((view.semantic << 16) | ids)[seen]


def vote(coord: NDArray, labelled: Iterable[tuple[NDArray, NDArray]], voxel: float) -> NDArray[np.int64]:
    """The label that most of the labelled points in the voxel of each point coord [N, 3] have, of several the smallest; -1 where
    there is none."""
    keys, place = np.unique(voxel_keys(coord.astype(np.float64), voxel), return_inverse=True)
    found, counts = [], []
    for points, label in labelled:
        key = voxel_keys(points, voxel)
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        inside = keys[at] == key
        pair, count = np.unique((at[inside] << LABEL_BITS) | label[inside], return_counts=True)
        found.append(pair)
        counts.append(count)
    pair, row = np.unique(np.concatenate(found), return_inverse=True)
    count = np.bincount(row.reshape(-1), np.concatenate(counts), len(pair))
    owner = pair >> LABEL_BITS
    order = np.lexsort((pair, -count, owner))
    owner, first = np.unique(owner[order], return_index=True)
    result = np.full(len(keys), NONE, np.int64)
    result[owner] = pair[order[first]] & ((1 << LABEL_BITS) - 1)
    return result[place.reshape(-1)]


def find_objects(points: Mapping[str, NDArray], views: Sequence[View], path: Path, report: SceneReport) -> list[SceneObject]:
    """An object for each id that points have and that bounds no room: its class the one most of its pixels have, its box that of
    bbox_3d.json, or around its points."""
    boxes = read_boxes(path) if path.is_file() else {}
    if not path.is_file():
        report.note("rooms without bbox_3d.json, with boxes around points")
    classes: dict[int, NDArray] = {}
    for number, counts in _classes(views):
        classes[number] = classes.get(number, 0) + counts
    found = []
    for number in np.unique(points["instance"][points["instance"] >= 0]).tolist():
        semantic = int(classes[number].argmax()) if number in classes else 0
        if semantic == 0 or is_shell(NYU40_NAMES[semantic - 1]):
            report.note("ids of walls, or of no class, left out")
            continue
        if path.is_file() and number not in boxes:
            report.note("objects that bbox_3d.json does not have, with boxes around points")
        box = box_of_obb(*boxes[number]) if number in boxes else upright_box(points["coord"][points["instance"] == number])
        found.append(SceneObject(number, NYU40_NAMES[semantic - 1], *box))
    return found


def _classes(views: Sequence[View]) -> Iterator[tuple[int, NDArray]]:
    """(id, pixels of each class [41]) of the objects of each view; class 0 is none and does not count."""
    for view in views:
        if view.instance is not None:
            seen = view.instance >= 0
            ids, place = np.unique(view.instance[seen], return_inverse=True)
            counts = np.bincount(place.reshape(-1) * 41 + view.semantic[seen], minlength=41 * len(ids)).reshape(-1, 41)
            counts[:, 0] = 0
            yield from zip(ids.tolist(), counts, strict=True)


def within(objects: Sequence[SceneObject], walls: NDArray, report: SceneReport, margin: float = 0.3) -> list[SceneObject]:
    """The objects whose middle lies within the room's extent from above; what is seen of other rooms through doors does not."""
    if not len(walls):
        return list(objects)
    low, high = walls.reshape(-1, 2).min(axis=0) - margin, walls.reshape(-1, 2).max(axis=0) + margin
    kept = [thing for thing in objects if (low <= thing.center[:2]).all() and (thing.center[:2] <= high).all()]
    report.note("objects of other rooms, seen through doors, left out", len(objects) - len(kept))
    return kept
