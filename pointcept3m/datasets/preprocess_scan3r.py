"""Raw 3RScan to scene folders: points with colours and objects, posed RGB-D frames with masks, and what moved between scans.

    raw_root/<scan>/  (or raw_root/scans/<scan>/)
        labels.instances.annotated.v2.ply       vertices with objectId, faces; its colours are a palette of labels
        semseg.v2.json                          the labels of the objects (or objects.json of 3DSSG in raw_root or raw_root/files)
        mesh.refined.v2.obj, mesh.refined.mtl, mesh.refined_0.png           the same mesh with its texture, for the colours
        sequence/ or sequence.zip               frame-000000.{color.jpg,depth.pgm,pose.txt} ... and _info.txt
    3RScan.json   in raw_root or raw_root/files: places, splits, transforms between scans, what moved

A place is named after its reference scan, and an object has one id in all scans of it. Scans keep their own axes (z up); scene.json
has the transform to those of the reference. Scans of the hidden test set have no labels and no transforms: points and frames alone.
Matrices in 3RScan.json are column by column, in metres (its FAQ says millimetres; the files and its own code have metres).
"""

import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from pointcept3m.datasets.preprocess_scenes import Job, SceneReport, save_arrays
from pointcept3m.datasets.readers.ply import read_ply
from pointcept3m.structures.camera import SizeHW
from pointcept3m.structures.images import read_color
from pointcept3m.structures.scene import check_intrinsic, check_pose, natural_key, read_pose
from pointcept3m.structures.scene_objects import SceneFacts, SceneObject, write_facts
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

META, OBJECTS = "3RScan.json", "objects.json"
LABELS, SEMANTICS, MESH = "labels.instances.annotated.v2.ply", "semseg.v2.json", "mesh.refined.v2.obj"
COLOR = ".color.jpg"
TYPES = {"train": "train", "val": "val", "validation": "val", "test": "test"}
MOVED_DEGREES, MOVED_METRES = 1.0, 0.05  # beyond either a thing counts as moved (CrossOver's release)
FAR = 100.0  # metres: no two scans of a room are so far apart; millimetres are
SAME_VERTEX = 0.05  # metres between a labelled vertex and its counterpart in the textured mesh


@dataclass(frozen=True)
class Scan:
    """What 3RScan.json says of a scan: its split, place, transform to the reference [4, 4] (None there, and where it is not
    given), and rigid changes: (id in the reference, id here, [4, 4] from the reference's axes to this scan's)."""

    name: str
    split: str
    place: str
    to_reference: NDArray | None = None
    rigid: tuple[tuple[int, int, NDArray], ...] = ()


def read_scans(path: Path) -> dict[str, Scan]:
    """All scans of 3RScan.json by name. Raises: FileNotFoundError; ValueError naming the place or scan whose entry is not as it
    should be, or whose transform is not rigid."""
    found: dict[str, Scan] = {}
    for entry in load_json(path, list, "3RScan's list of places"):
        try:
            place, kind, rescans = entry["reference"], entry["type"], entry.get("scans", [])
            split = TYPES[kind]
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}: wanted places with reference, type (one of {', '.join(TYPES)}) and scans, got {str(entry)[:120]!r}") from None
        found[place] = Scan(place, split, place)
        for scan in rescans:
            name = str(scan.get("reference", ""))
            where = f"{path}: scan {name or place!r}"
            if not name or name in found:
                raise ValueError(f"{where}: wanted rescans with a reference of their own, each once, got {str(scan)[:120]!r}")
            motion = _matrix(scan["transform"], where) if scan.get("transform") else None
            try:
                changes = tuple((int(r["instance_reference"]), int(r["instance_rescan"]), _matrix(r["transform"], where)) for r in scan.get("rigid", ()))
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where}: wanted rigid changes with instance_reference, instance_rescan and transform ({error!r})") from error
            found[name] = Scan(name, split, place, motion, changes)
    return found


def _matrix(numbers: Any, where: str) -> NDArray[np.float64]:
    """[4, 4] of 16 numbers column by column, in metres."""
    try:
        matrix = np.array(numbers, np.float64).reshape(4, 4).T
    except (TypeError, ValueError):
        raise ValueError(f"{where}: wanted a transform of 16 numbers, got {str(numbers)[:80]!r}") from None
    check_pose(matrix, f"{where}: transform")
    if np.abs(matrix[:3, 3]).max() > FAR:
        raise ValueError(f"{where}: a transform shifts by {matrix[:3, 3].tolist()}; wanted metres, these seem to be millimetres")
    return matrix


def jobs_of(raw_root: str | Path, output_root: str | Path, splits: Sequence[str], settings: ObjectSettings,
            lists: Mapping[str, str | Path] | None = None) -> list[Job]:  # fmt: skip
    """A job for each scan of `splits` below raw_root, sorted by name.

    lists: split -> text file of scan names, in place of the splits in 3RScan.json. Raises: FileNotFoundError where there are no
    scans or no 3RScan.json; ValueError where none is of these splits, or a list names a scan that 3RScan.json does not have.
    """
    raw_root, output_root = Path(raw_root), Path(output_root)
    meta = find_file(raw_root, META, "files")
    scans, listed = read_scans(meta), read_lists(lists or {})
    strange = next((name for name in listed if name not in scans), None)
    if strange is not None:
        raise ValueError(f"{meta}: knows no scan {strange!r}, which a list names; {near_names(strange, scans)}")
    folder = raw_root / "scans" if (raw_root / "scans").is_dir() else raw_root
    there = sorted(path for path in folder.iterdir() if path.name in scans and path.is_dir())
    if not there:
        raise FileNotFoundError(f"{folder}: has none of the {len(scans)} scans of {meta.name}, e.g. {next(iter(scans), '')}/{LABELS}")
    table = find_file(raw_root, OBJECTS, "files")
    labels = _labels_of_all(table) if table.is_file() else {}
    referrals = referrals_of(settings.referrals)
    jobs = []
    for path in there:
        split = listed.get(path.name) if listed else scans[path.name].split
        if split in splits:
            arguments = (path, scans[path.name], labels.get(path.name), referrals.get(path.name, []))
            jobs.append(Job(output_root / split / path.name, arguments))
    if not jobs:
        raise ValueError(f"{folder}: none of its {len(there)} scans is of the splits {', '.join(splits)}")
    return jobs


def fill_scan(folder: Path, report: SceneReport, settings: ObjectSettings, raw: Path, scan: Scan, labels: dict[int, str] | None,
              referrals: Sequence[tuple[int, str]]) -> None:  # fmt: skip
    """Writes one scan. Raises: whatever makes it unreadable, naming the file."""
    hidden = scan.split == "test" and not (raw / LABELS).is_file()
    if hidden:
        coord, faces, color = read_textured(raw / MESH)
        instance, objects = np.full(len(coord), NONE), []
        report.note("scans of the hidden test set, without labels")
    else:
        mesh = read_ply(raw / LABELS)
        coord, faces, instance = mesh.coord, mesh.faces, mesh.columns("objectId")[:, 0].astype(np.int64)
        instance[instance <= 0] = NONE
        color = colors_for(coord, raw / MESH)
        if labels is None or (raw / SEMANTICS).is_file():  # the scan's own file first
            labels = read_labels(raw / SEMANTICS)
        objects = objects_of_points(coord, instance, labels, report)
    arrays = {"coord": coord, "color": color, "normal": vertex_normals(coord, faces), "instance": instance.astype(np.int32)}
    save_arrays(folder, report, arrays)
    if not hidden:
        save_objects(folder, report, objects, settings, referrals)
    is_reference = scan.name == scan.place
    if not is_reference and scan.to_reference is None:
        report.note("rescans without a transform to their reference")
    back = None if scan.to_reference is None else scan.to_reference.tolist()
    moved = moved_objects(scan, objects, report)
    write_facts(folder, SceneFacts(scan.place, "", None if is_reference else scan.place, back, moved, "3rscan", same_ids=not is_reference))
    if settings.frame_stride:
        caster = mesh_of_objects(coord, faces, instance, objects, report) if settings.masks and not hidden else None
        with open_sequence(raw, settings) as (sequence, names):
            info = read_info(sequence / "_info.txt")
            write_frames(folder, report, frames_of(sequence, names, info, report), settings, caster, info["depth"])


# objects


def read_labels(path: Path) -> dict[int, str]:
    """id -> label of the objects of semseg.v2.json. Raises: FileNotFoundError; ValueError naming the file."""
    content = load_json(path, dict, f"the labels of a scan (or {OBJECTS} of 3DSSG beside {META})")
    try:
        return {int(group["objectId"]): str(group["label"]).strip() for group in content["segGroups"] if str(group["label"]).strip()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: wanted segGroups, each with objectId and label ({type(error).__name__}: {error})") from error


def _labels_of_all(path: Path) -> dict[str, dict[int, str]]:
    """scan -> {id: label}, of 3DSSG's objects.json."""
    try:
        return {entry["scan"]: {int(o["id"]): str(o["label"]).strip() for o in entry["objects"]} for entry in load_json(path, dict, "3DSSG's objects")["scans"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: wanted scans, each with scan and objects of id and label ({type(error).__name__}: {error})") from error


def moved_objects(scan: Scan, objects: Sequence[SceneObject], report: SceneReport) -> list[int]:
    """Ids of the objects that stand elsewhere than in the reference: turned by more than 1 degree or shifted by more than 5 cm
    against what the transform of the scan says, the limits by which CrossOver's release tells moved from static.

    The shift is that of the object's centre: measured at the origin of the axes, a turn of a far thing would be a long shift.
    """
    if scan.to_reference is None:
        return []
    centers = {thing.id: np.array([*thing.center, 1.0]) for thing in objects}
    moved = set()
    report.note("moved objects whose id is another in the reference", sum(old != new for old, new, _ in scan.rigid))
    report.note("moved objects that are not among the scan's, left out", sum(new not in centers for _, new, _ in scan.rigid))
    for _, number, motion in scan.rigid:
        if number in centers:
            change = scan.to_reference @ motion  # within the reference's axes: from where it stood to where it stands
            angle = np.degrees(np.arccos(np.clip((np.trace(change[:3, :3]) - 1) / 2, -1, 1)))
            shift = scan.to_reference @ centers[number] - np.linalg.solve(motion, centers[number])
            if angle > MOVED_DEGREES or np.linalg.norm(shift[:3]) > MOVED_METRES:
                moved.add(number)
    return sorted(moved)


# colours


def colors_for(coord: NDArray, path: Path) -> NDArray[np.uint8]:
    """Colours uint8 [N, 3] of labelled vertices, those of the nearest vertices of the textured mesh.

    Raises: as `read_textured`; ValueError where one vertex in a hundred has none within 5 cm.
    """
    vertices, _, color = read_textured(path)
    if len(vertices) == len(coord) and np.abs(vertices - coord).max() < 1e-3:
        return color
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(vertices).query(coord)
    lost = int((distance > SAME_VERTEX).sum())
    if lost > 0.01 * len(coord):
        raise ValueError(f"{path}: {lost} of {len(coord)} vertices of {LABELS} have none within {SAME_VERTEX} m here; are they of one scan and one version?")
    return color[nearest]


def read_textured(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint8]]:
    """(vertices [V, 3], faces [F, 3], colours uint8 [V, 3]) of an .obj with colours or one texture.

    A vertex has the mean of its corners' texels. Raises: FileNotFoundError; ValueError naming the file: lines that are no numbers,
    faces that are no triangles or name what is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mesh; colours come from it, those of {LABELS} are a palette of labels; {near_files(path)}")
    lines: dict[str, list[str]] = {"v": [], "vt": [], "f": [], "mtllib": []}
    for line in path.read_text(errors="replace").splitlines():
        kind, _, rest = line.partition(" ")
        if kind in lines:
            lines[kind].append(rest)
    try:
        vertex = np.array([line.split() for line in lines["v"]], np.float64)
        corners = np.array([[corner.split("/")[:2] for corner in line.split()] for line in lines["f"]], np.int64)
        uv = np.array([line.split()[:2] for line in lines["vt"]], np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: wanted lines v x y z, vt u v and f a/b c/d e/f of triangles ({error})") from error
    if vertex.ndim != 2 or vertex.shape[1] < 3 or corners.ndim != 3 or corners.shape[1] != 3:
        raise ValueError(f"{path}: wanted vertices and triangles, got {list(vertex.shape)} and {list(corners.shape)}")
    limits = (len(vertex), len(uv)) if corners.shape[2] == 2 else (len(vertex),)
    if (corners < 1).any() or (corners.max(axis=(0, 1)) > limits).any():
        raise ValueError(f"{path}: faces name vertices and texels up to {corners.max(axis=(0, 1)).tolist()}, there are {list(limits)}")
    faces = corners[..., 0] - 1
    if vertex.shape[1] >= 6:
        scale = 255 if vertex[:, 3:6].max(initial=0) <= 1 else 1
        return vertex[:, :3].astype(np.float32), faces, np.clip(np.rint(vertex[:, 3:6] * scale), 0, 255).astype(np.uint8)
    if corners.shape[2] != 2:
        raise ValueError(f"{path}: has neither colours at its vertices nor places in a texture")
    texture = read_color(_texture(path, lines["mtllib"]))
    u, v = uv[corners[..., 1] - 1].reshape(-1, 2).T  # v counts from below
    column = np.clip((u * texture.shape[1]).astype(np.int64), 0, texture.shape[1] - 1)
    row = np.clip(((1 - v) * texture.shape[0]).astype(np.int64), 0, texture.shape[0] - 1)
    texel, owner = texture[row, column].astype(np.float64), faces.reshape(-1)
    count = np.bincount(owner, minlength=len(vertex))
    color = np.stack([np.bincount(owner, texel[:, k], len(vertex)) for k in range(3)], axis=1) / np.maximum(count, 1)[:, None]
    return vertex[:, :3].astype(np.float32), faces, np.rint(color).astype(np.uint8)


def _texture(path: Path, libraries: Sequence[str]) -> Path:
    """The picture that the materials of a mesh name. Raises ValueError where they name several; FileNotFoundError where none is there."""
    named = []
    for library in libraries:
        if (path.parent / library.strip()).is_file():
            text = (path.parent / library.strip()).read_text(errors="replace")
            named += [line.split(maxsplit=1)[1].strip() for line in text.splitlines() if line.strip().startswith("map_Kd ")]
    if len(set(named)) > 1:
        raise ValueError(f"{path}: its materials have the textures {', '.join(sorted(set(named)))}; wanted one, as 3RScan's meshes have")
    picture = path.parent / (named[0] if named else "mesh.refined_0.png")
    if not picture.is_file():
        raise FileNotFoundError(f"{picture}: no such picture, the texture of {path.name}; {near_files(picture)}")
    return picture


# frames


@contextmanager
def open_sequence(raw: Path, settings: ObjectSettings) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of the chosen frames) of a scan: sequence/, or what is chosen of sequence.zip in a temporary folder.

    Raises: FileNotFoundError where there is neither, or no picture in it; ValueError where the zip is damaged.
    """
    unpacked, archive = raw / "sequence", raw / "sequence.zip"
    if unpacked.is_dir():
        yield unpacked, _chosen((path.name for path in unpacked.iterdir()), settings, unpacked)
        return
    if not archive.is_file():
        raise FileNotFoundError(f"{unpacked}: no such folder, nor {archive.name}; --frame-stride 0 writes points only")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(archive) as packed:
                there = {Path(name).name: name for name in packed.namelist()}
                frames = _chosen(there, settings, archive)
                for name in ["_info.txt", *(f"{frame}{kind}" for frame in frames for kind in (COLOR, ".depth.pgm", ".pose.txt"))]:
                    if name in there:
                        (Path(folder) / name).write_bytes(packed.read(there[name]))
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{archive}: is no readable zip ({error})") from error
        yield Path(folder), frames


def _chosen(files: Iterable[str], settings: ObjectSettings, where: Path) -> list[str]:
    names = sorted((name[: -len(COLOR)] for name in files if name.endswith(COLOR)), key=natural_key)
    if not names:
        raise FileNotFoundError(f"{where}: wanted pictures frame-000000{COLOR} there, found none")
    return spaced(names, settings)


def read_info(path: Path) -> dict[str, tuple[NDArray[np.float64], SizeHW]]:
    """{"color": (intrinsic [3, 3], (H, W)), "depth": ...} of _info.txt. Raises: FileNotFoundError; ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, the cameras of a sequence; {near_files(path)}")
    said = dict((part.strip() for part in line.split("=", 1)) for line in path.read_text().splitlines() if "=" in line)
    found = {}
    for kind, name in (("color", "Color"), ("depth", "Depth")):
        try:
            matrix = np.array(said[f"m_calibration{name}Intrinsic"].split(), np.float64).reshape(4, 4)[:3, :3]
            size = int(said[f"m_{kind}Height"]), int(said[f"m_{kind}Width"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: wanted m_calibration{name}Intrinsic of 16 numbers, m_{kind}Width and m_{kind}Height ({error})") from error
        found[kind] = check_intrinsic(matrix, f"{path}: m_calibration{name}Intrinsic"), size
    return found


def frames_of(sequence: Path, names: Sequence[str], info: Mapping[str, tuple[NDArray, SizeHW]], report: SceneReport) -> Iterator[RawFrame]:
    """The frames of `names` that have a pose and depth; others are counted in notes."""
    for name in names:
        depth = sequence / f"{name}.depth.pgm"
        if not depth.is_file():
            report.note("pictures without depth, left out")
            continue
        try:
            pose = read_pose(sequence / f"{name}.pose.txt")
        except (FileNotFoundError, ValueError):
            report.note("pictures without a pose, or with one that is none, left out")
            continue
        yield RawFrame(name, sequence / f"{name}{COLOR}", depth, pose, *info["color"])
