"""What ScanNet says of objects, added to scenes of preprocess_scannet.py: objects.json, scene.json, cad/, mask/, floorplan.*.

    raw_root/scans/<scan>/   .aggregation.json, _vh_clean_2.0.010000.segs.json, .txt (axisAlignment, sceneType), _vh_clean_2.ply,
                             _2d-instance-filt.zip or instance-filt/ or data/instance-filt/ (masks; else rays are cast)
    full_annotations.json of Scan2CAD, a folder of ShapeNetCore.v2, a folder of SceneCAD's <scan>.json, SceneVerse's referrals

Scenes keep the scan's own axes. ScanNet's axis alignment gives the heading of boxes and floorplans alone, so a box has the size
of the axis-aligned box that everybody uses. Ids are those of instance.npy: `id` of a group of .aggregation.json. Its `objectId`,
by which SceneVerse means an object, and `objectId` + 1, which pictures of instances hold, are looked up there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.cad import read_mesh, sample_surface
from pointcept3m.datasets.floorplan import render_floorplan
from pointcept3m.datasets.object_boxes import Box, box_iou, upright_box
from pointcept3m.datasets.object_masks import LabelledMesh, View
from pointcept3m.datasets.preprocess_objects import (
    NONE,
    load_json,
    mesh_of_objects,
    objects_of_points,
    referrals_of,
    save_objects,
)
from pointcept3m.datasets.preprocess_scannet import LABEL_TABLE, LabelImages, LabelTable, read_label_table
from pointcept3m.datasets.preprocess_scenes import Job, SceneReport
from pointcept3m.datasets.readers.ply import read_ply
from pointcept3m.datasets.readers.scan2cad import CadModel, read_scan2cad
from pointcept3m.datasets.readers.scenecad import read_layout
from pointcept3m.datasets.scannet_labels import NYU40_NAMES
from pointcept3m.structures.camera import resize_nearest, transform_coord
from pointcept3m.structures.images import image_size
from pointcept3m.structures.scene import COLOR_SUFFIXES, Scene, natural_key
from pointcept3m.structures.scene_objects import (
    Floorplan,
    SceneFacts,
    SceneObject,
    write_cad,
    write_facts,
    write_floorplan,
    write_mask,
)
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names
from pointcept3m.utils.seed import mix_seed

PIECES = ("objects.json", "scene.json", "cad", "mask", "floorplan.png", "floorplan.json")
MASKS, LABELS = ("auto", "official", "cast", "none"), ("raw", "nyu40")


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    masks: "official" ScanNet's pictures, "cast" rays against the mesh, "auto" the first where a scan has them and else the second,
    "none" · labels: names as annotated ("raw"), or of NYU's 40 classes, which CrossOver's release compares objects by ("nyu40")
    · referrals: "" none, "template" our own sentences, or the path of SceneVerse's file · scan2cad, shapenet, layouts: paths, ""
    without · cad_iou: a CAD model belongs to the object whose box it overlaps most, if by more than this (0: paper and release)
    · cad_points: on its surface.
    """

    masks: str = "auto"
    labels: str = "raw"
    referrals: str = ""
    scan2cad: str = ""
    shapenet: str = ""
    layouts: str = ""
    cad_iou: float = 0.0
    cad_points: int = 5000
    version: int = 1

    def __post_init__(self) -> None:
        for key, known in (("masks", MASKS), ("labels", LABELS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key} {getattr(self, key)!r} is unknown; {near_names(getattr(self, key), known)}")
        if bool(self.scan2cad) != bool(self.shapenet):
            raise ValueError("CAD models need both Scan2CAD's annotation and the folder of ShapeNetCore.v2, got one of them")
        if not 0 <= self.cad_iou < 1 or self.cad_points < 1:
            raise ValueError(f"wanted cad_iou from 0 to below 1 and at least one of cad_points, got {self.cad_iou} and {self.cad_points}")


@dataclass(frozen=True)
class Posed:
    """A CAD model in a scan: mesh in its own axes, and its box in the scan's."""

    model: CadModel
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    box: Box

    @property
    def solid(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The mesh in the scan's axes."""
        return transform_coord(self.vertices, self.model.pose), self.faces


# jobs


def jobs_of(raw_root: str | Path, data_root: str | Path, splits: Sequence[str], settings: Settings, frames_root: str | Path | None = None) -> list[Job]:
    """A job for each scene folder of `splits` in data_root, sorted; run by `preprocess(fill_scene, ..., pieces=PIECES)`.

    frames_root: where frames lie as <frames_root>/<scene>/, if not in the scene folders. Raises: FileNotFoundError where there is
    no such scene, or a scene has no raw folder; what the readers of annotations raise.
    """
    raw_root, data_root = Path(raw_root), Path(data_root)
    scenes = [path for split in splits for path in sorted((data_root / split).glob("*")) if (path / "coord.npy").is_file()]
    if not scenes:
        raise FileNotFoundError(f"{data_root}: has no scene of the splits {', '.join(splits)}; tools/preprocess/scannet.py writes them")
    for folder in (settings.shapenet, settings.layouts):
        if folder and not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; {near_files(folder)}")
    table = read_label_table(raw_root / LABEL_TABLE) if settings.labels == "nyu40" else None
    models = read_scan2cad(settings.scan2cad) if settings.scan2cad else {}
    referrals = referrals_of(settings.referrals)
    wanted = [model.path(Path(settings.shapenet)) for path in scenes for model in models.get(path.name, ())]
    if wanted and not any(path.is_file() for path in wanted):
        raise FileNotFoundError(f"{wanted[0]}: no such file, nor any other of the {len(wanted)} models; is {settings.shapenet} ShapeNetCore.v2, unpacked?")
    for what, known in (("Scan2CAD", models), ("SceneVerse", referrals)):
        if known and not any(path.name in known for path in scenes):
            raise ValueError(f"{what}'s annotation says nothing of the {len(scenes)} scenes in {data_root}; it is of {next(iter(known))} and others")
    jobs = []
    for path in scenes:
        raw = next((raw_root / part / path.name for part in ("scans", "scans_test") if (raw_root / part / path.name).is_dir()), None)
        if raw is None:
            raise FileNotFoundError(f"{raw_root / 'scans' / path.name}: no such scan, of which {path} was made; {near_files(raw_root / 'scans' / path.name)}")
        frames = path if frames_root is None else Path(frames_root) / path.name
        jobs.append(Job(path, (path, raw, frames, table, models.get(path.name), referrals.get(path.name, []))))
    return jobs


def fill_scene(folder: Path, report: SceneReport, settings: Settings, scene: Path, raw: Path, frames: Path, table: LabelTable | None,
               models: list[CadModel] | None, referrals: Sequence[tuple[int, str]]) -> None:  # fmt: skip
    """Writes what `PIECES` names of one scene into `folder`. Raises: whatever makes it unreadable, naming the file."""
    name = scene.name
    info = read_info(raw / f"{name}.txt")
    first = f"{name.rpartition('_')[0]}_00"
    write_facts(folder, SceneFacts(first[:-3], info.get("sceneType", ""), None if name == first else first, dataset="scannet"))
    if not (raw / f"{name}.aggregation.json").is_file() and scene.parent.name == "test":
        report.note("scenes of the test split, without objects")
        return
    heading = -alignment_angle(info, raw / f"{name}.txt")
    points = Scene(scene)
    coord, instance = points.load("coord"), points.load("instance")
    report.num_points = len(coord)
    labels, by_object = read_objects_of(raw, instance, scene / "instance.npy", table)
    objects = objects_of_points(coord, instance, labels, report, heading)
    posed = list(_pose(models or (), Path(settings.shapenet), report))
    if settings.scan2cad and not models:
        report.note("scenes that Scan2CAD does not have")
    for thing, cad in zip(objects, assign(objects, [each.box for each in posed], settings.cad_iou, report), strict=True):
        if cad is not None:
            _add_cad(folder, thing, posed[cad], settings.cad_points)
    report.note("objects with a CAD model", sum(thing.cad is not None for thing in objects))
    known = [(by_object.get(number, NONE), text) for number, text in referrals]
    save_objects(folder, report, objects, settings, known)
    plan = draw_plan(Path(settings.layouts) / f"{name}.json" if settings.layouts else None, posed, heading, report)
    if plan is not None:
        write_floorplan(folder, plan)
    if settings.masks != "none":
        _write_masks(folder, report, settings, points if frames == scene else Scene(scene, frames.parent), raw, coord, instance, objects, by_object)


# annotation


def read_info(path: Path) -> dict[str, str]:
    """The entries `key = value` of a scan's .txt. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, which has the axis alignment and the kind of room; {near_files(path)}")
    return dict((part.strip() for part in line.split("=", 1)) for line in path.read_text(errors="replace").splitlines() if "=" in line)


def alignment_angle(info: Mapping[str, str], path: Path) -> float:
    """The angle about z, radians, by which axisAlignment turns a scan; 0 where there is none. Raises ValueError where it turns
    otherwise, or is no matrix."""
    if "axisAlignment" not in info:
        return 0.0
    try:
        matrix = np.array(info["axisAlignment"].split(), np.float64).reshape(4, 4)
    except ValueError:
        raise ValueError(f"{path}: wanted axisAlignment of 16 numbers, got {info['axisAlignment'][:80]!r}") from None
    flat = matrix[:2, :2]
    if not np.allclose(matrix[2, :3], (0, 0, 1), atol=1e-3) or not np.allclose(flat @ flat.T, np.eye(2), atol=1e-2) or np.linalg.det(flat) < 0:
        raise ValueError(f"{path}: axisAlignment is no turn about the vertical: {matrix.tolist()}")
    return float(np.arctan2(flat[1, 0], flat[0, 0]))


def read_objects_of(raw: Path, instance: NDArray, where: Path, table: LabelTable | None) -> tuple[dict[int, str], dict[int, int]]:
    """(id -> label, objectId -> id) of a scan's groups.

    Raises: FileNotFoundError; ValueError naming the files: groups that lack something, an id twice, instance [N] of `where` that is
        not what the annotation makes of the scan's vertices.
    """
    path, segs = raw / f"{raw.name}.aggregation.json", raw / f"{raw.name}_vh_clean_2.0.010000.segs.json"
    segment = np.asarray(load_json(segs, dict, "ScanNet's segments").get("segIndices", ()))
    if segment.shape != instance.shape or segment.dtype.kind != "i":
        raise ValueError(f"{segs}: {len(segment)} vertices, {where} has {len(instance)}; are they of one scan?")
    names, place = np.unique(segment, return_inverse=True)
    owner = np.full(len(names), NONE, np.int64)
    labels, by_object = {}, {}
    for group in load_json(path, dict, "ScanNet's groups").get("segGroups", ()):
        try:
            number, label, members = int(group["id"]), " ".join(str(group["label"]).split()), np.asarray(group["segments"], np.int64)
            object_id = int(group.get("objectId", number))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: wanted groups with id, label and segments, got {str(group)[:80]!r}") from error
        if number in labels or object_id in by_object:
            raise ValueError(f"{path}: id {number} or objectId {object_id} stands there twice")
        owner[np.isin(names, members)] = number
        labels[number], by_object[object_id] = _label(label, table), number
    wrong = int((owner[place] != instance).sum())
    if wrong:
        raise ValueError(f"{where}: {wrong} of {len(instance)} points have another id than {path} gives them; was it numbered anew?")
    return {number: label for number, label in labels.items() if label}, by_object


def _label(label: str, table: LabelTable | None) -> str:
    nyu40 = 0 if table is None else table.by_name.get(label, (0, 0))[1]
    return NYU40_NAMES[nyu40 - 1] if nyu40 else label


# CAD models and floorplans


def _pose(models: Iterable[CadModel], shapenet: Path, report: SceneReport) -> Iterator[Posed]:
    """The models whose meshes can be read, with boxes turned as they are; others become notes that name the file."""
    for model in models:
        try:
            vertices, faces = read_mesh(model.path(shapenet))
        except (FileNotFoundError, ValueError) as error:
            report.note(f"CAD models left out, {error}")
            continue
        corner = transform_coord(vertices[np.unique(faces)], model.pose)
        yield Posed(model, vertices, faces, upright_box(corner, _turn(model.pose)))


def _turn(pose: NDArray) -> float:
    """The direction from above, radians, of the first of a pose's axes but for the most upright one."""
    axes = pose[:3, :3] / np.linalg.norm(pose[:3, :3], axis=0)
    side = axes[:, 1 if np.argmax(np.abs(axes[2])) == 0 else 0]
    return float(np.arctan2(side[1], side[0]))


def assign(objects: Sequence[SceneObject], boxes: Sequence[Box], threshold: float, report: SceneReport) -> list[int | None]:
    """For each object the number of the CAD box that is its own: a box goes to the object that it overlaps most (IoU above
    `threshold`), and of several that go to one, the one that overlaps it most stays.

    CrossOver's release keeps the last of several, and lets walls and floors take part. What is left over is noted.
    """
    best: dict[int, tuple[float, int]] = {}
    alone = 0
    for number, box in enumerate(boxes):
        overlap = [box_iou(box, (thing.center, thing.size, thing.heading)) for thing in objects]
        row = int(np.argmax(overlap)) if overlap else -1
        if row < 0 or overlap[row] <= threshold:
            alone += 1
        elif row not in best or overlap[row] > best[row][0]:
            best[row] = (overlap[row], number)
    report.note("CAD models that overlap no object", alone)
    report.note("CAD models whose object has a better one", len(boxes) - alone - len(best))
    return [best[row][1] if row in best else None for row in range(len(objects))]


def _add_cad(folder: Path, thing: SceneObject, posed: Posed, count: int) -> None:
    name = posed.model.name
    if not (folder / "cad" / f"{name}.npy").is_file():
        write_cad(folder, name, sample_surface(posed.vertices, posed.faces, count, np.random.default_rng(mix_seed("cad", name))))
    thing.cad, thing.cad_pose = name, posed.model.pose.tolist()


def draw_plan(layout: Path | None, posed: Sequence[Posed], heading: float, report: SceneReport) -> Floorplan | None:
    """A plan along the aligned axes of the walls of a layout and the CAD models of a scan (as in the paper); None, and a note,
    where there is neither."""
    walls = np.zeros((0, 2, 2))
    if layout is not None and layout.is_file():
        walls = read_layout(layout).walls()
    elif layout is not None:
        report.note("scenes that SceneCAD does not have")
    if not len(walls) and not posed:
        report.note("scenes without a floorplan")
        return None
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, -sin], [sin, cos]])  # rows times it: the scan's axes to the plan's
    solids = []
    for each in posed:
        vertices, faces = each.solid
        solids.append((np.concatenate([vertices[:, :2] @ turn, vertices[:, 2:]], axis=1), faces))
    plan = render_floorplan(walls @ turn, solids)
    return Floorplan(plan.image, plan.metres_per_pixel, plan.left, plan.top, heading)


# masks


def _write_masks(folder: Path, report: SceneReport, settings: Settings, scene: Scene, raw: Path, coord: NDArray, instance: NDArray,
                 objects: Sequence[SceneObject], by_object: Mapping[int, int]) -> None:  # fmt: skip
    """mask/ of all pictures of a scene: ScanNet's own, or cast."""
    colors = scene.frames_root / "color"
    pictures = {path.stem: path for path in colors.iterdir() if path.suffix in COLOR_SUFFIXES} if colors.is_dir() else {}
    names = sorted(pictures, key=natural_key)
    report.num_frames = len(names)
    if not names:
        report.note("scenes without pictures, and so without masks")
        return
    with LabelImages(raw, "instance-filt") as official:
        if official.found and settings.masks != "cast":
            write = _official(official, objects, by_object, report)
        elif settings.masks == "official":
            raise FileNotFoundError(f"{official.path}: no such file, nor a folder instance-filt; --masks cast makes masks from the mesh")
        else:
            report.note("scenes whose masks were cast")
            write = _cast(scene, raw, coord, instance, objects, report)
        for name in names:
            ids = None if write is None else write(name, image_size(pictures[name]))
            if ids is not None:
                write_mask(folder, name, ids)


def _official(pictures: LabelImages, objects: Sequence[SceneObject], by_object: Mapping[int, int], report: SceneReport):
    """(name, (H, W)) -> ids [H, W] of ScanNet's picture, which holds objectId + 1."""
    table = np.full(1 << 16, NONE, np.int64)
    listed = {thing.id for thing in objects}
    for object_id, number in by_object.items():
        if 0 <= object_id < len(table) - 1 and number in listed:
            table[object_id + 1] = number
    named = np.zeros(len(table), bool)
    named[[0, *(k + 1 for k in by_object if 0 <= k < len(table) - 1)]] = True

    def ids(name: str, size: tuple[int, int]) -> NDArray[np.int64]:
        if not name.isdigit():
            raise ValueError(f"scene {report.name!r}: picture {name!r} is not named by its number in the recording, so {pictures.folder.name} has none for it")
        picture = pictures.read(int(name)).astype(np.int64)
        if abs(picture.shape[1] * size[0] / (picture.shape[0] * size[1]) - 1) > 0.03:
            where = f"{pictures.path if pictures.archive else pictures.folder}: {name}.png"
            raise ValueError(f"{where}: {picture.shape[1]} x {picture.shape[0]} pixels have another shape than the colour picture's {size[1]} x {size[0]}")
        strange = np.unique(picture)
        report.note("ids in pictures of instances that the annotation does not have", int((~named[strange]).sum()))
        return table[resize_nearest(picture, size)]

    return ids


def _cast(scene: Scene, raw: Path, coord: NDArray, instance: NDArray, objects: Sequence[SceneObject], report: SceneReport):
    """(name, (H, W)) -> ids [H, W] of what the rays of a picture's camera meet; None where nothing can be cast."""
    path = raw / f"{raw.name}_vh_clean_2.ply"
    mesh = read_ply(path)
    if len(mesh.coord) != len(coord) or np.abs(mesh.coord - coord).max() > 1e-3:
        raise ValueError(f"{path}: its vertices are not the points of {scene.root / 'coord.npy'}; masks are cast in the scan's own axes")
    caster: LabelledMesh | None = mesh_of_objects(coord, mesh.faces, instance, objects, report)
    if caster is None:
        return None
    posed = set(scene.frame_names)

    def ids(name: str, size: tuple[int, int]) -> NDArray[np.int64] | None:
        if name not in posed:
            report.note("pictures without a pose, and so without a mask")
            return None
        return caster.look(View(scene.intrinsic("color", name), scene.pose(name), size))[0]

    return ids
