"""Structured3D's files: cameras, boxes of objects and the structure of a house. Millimetres there, metres here; z is up.

    scene_XXXXX/annotation_3d.json   junctions, lines, planes; semantics: rooms (their ID is the room's folder), doors, windows
    scene_XXXXX/bbox_3d.json         [{ID, basis: one axis a row, coeffs: half lengths, centroid}]; ID is the value in instance.png
    .../camera_pose.txt              eye, view direction, up, half of the horizontal and of the vertical field of view, 1
    .../camera_xyz.txt               eye of a panorama, whose middle looks along +y and whose right along +x

(Structured3D's documentation says that panoramas look along -y. Its own visualize_mesh.py, and all code that puts panoramas and
perspectives together, has +y.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.object_boxes import read_obb
from pointcept3m.datasets.preprocess_objects import load_json
from pointcept3m.structures.camera import SizeHW
from pointcept3m.structures.scene import check_pose
from pointcept3m.utils.files import near_files

MM = 1000.0
OPENINGS = ("door", "window")
# a panorama's axes (x right, y down, z to its middle) to the world's
PANORAMA = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def read_camera(path: Path, size: SizeHW) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(pose [4, 4] camera->world, intrinsic [3, 3] for pictures of `size` (H, W)) of a perspective's camera_pose.txt.

    Raises: FileNotFoundError; ValueError naming the file: not 12 numbers, no direction, fields of view beyond 0 to 90 degrees.
    """
    numbers = _numbers(path, (11, 12), "eye, view direction, up, two fields of view and 1")
    forward, up, half = numbers[3:6], numbers[6:9], numbers[9:11]
    right = np.cross(forward, up)
    if not (np.linalg.norm(forward) > 1e-6 and np.linalg.norm(right) > 1e-6 and (half > 0).all() and (half < np.pi / 2).all()):
        raise ValueError(f"{path}: wanted a view direction, another one up, and half fields of view in radians, got {numbers[3:11].tolist()}")
    pose = np.eye(4)
    z, x = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    pose[:3] = np.column_stack([x, np.cross(z, x), z, numbers[:3] / MM])
    (height, width), (tan_x, tan_y) = size, np.tan(half)
    intrinsic = np.array([[width / 2 / tan_x, 0, width / 2], [0, height / 2 / tan_y, height / 2], [0, 0, 1]])
    return check_pose(pose, str(path)), intrinsic


def read_eye(path: Path) -> NDArray[np.float64]:
    """Where a panorama was taken, [3] metres. Raises: FileNotFoundError; ValueError naming the file."""
    return _numbers(path, (3,), "x y z") / MM


def _numbers(path: Path, counts: tuple[int, ...], what: str) -> NDArray[np.float64]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {near_files(path)}")
    try:
        numbers = np.array(path.read_text().split(), np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: wanted {what} ({error})") from error
    if len(numbers) not in counts or not np.isfinite(numbers).all():
        raise ValueError(f"{path}: wanted {what}, finite, got {len(numbers)} numbers: {numbers[:12].tolist()}")
    return numbers


def read_boxes(path: Path) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """ID -> (centroid [3], lengths [3], axes [3, 3], one a row) of bbox_3d.json. Raises: FileNotFoundError; ValueError naming file and box."""
    found = {}
    for number, entry in enumerate(load_json(path, list, "Structured3D's boxes")):
        where = f"{path}: box {number}"
        try:
            name = int(entry["ID"])
            told = {"centroid": np.divide(entry["centroid"], MM), "axesLengths": 2 * np.abs(np.divide(entry["coeffs"], MM)), "normalizedAxes": entry["basis"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: wanted ID, basis, coeffs and centroid, got {str(entry)[:80]!r}") from error
        if name in found:
            raise ValueError(f"{where}: ID {name} stands there twice")
        found[name] = read_obb(told, where)
    return found


@dataclass(frozen=True)
class Structure:
    """A house. junction [J, 3] metres · ends [L, 2]: the junctions of each line, -1 where it has not two · of_plane [P, L] bool: which lines lie on a plane
    · kind [P]: ceiling, floor or wall · rooms: ID -> (type, its planes) · openings: (door or window, its planes)."""

    junction: NDArray[np.float64]
    ends: NDArray[np.int64]
    of_plane: NDArray[np.bool_]
    kind: list[str]
    rooms: Mapping[int, tuple[str, list[int]]]
    openings: list[tuple[str, list[int]]]

    def plan(self, room: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(walls, doors, windows) of a room, segments [W, 2, 2] from (x, y) to (x, y): sides of its floor, and the holes in its walls."""
        planes = self.rooms[room][1]
        hole = np.zeros(len(self.ends), bool)
        for _, sides in self.openings:
            hole |= self.of_plane[sides].any(axis=0)
        floor = [p for p in planes if self.kind[p] == "floor"] or [p for p in planes if self.kind[p] == "ceiling"]
        lines = self.of_plane[floor].any(axis=0) & ~hole & (self.ends >= 0).all(axis=1)
        walls = self.junction[self.ends[lines]][..., :2]
        found: dict[str, list[NDArray]] = {kind: [] for kind in OPENINGS}
        for kind, sides in self.openings:
            for wall in (p for p in planes if self.kind[p] == "wall"):
                lines = self.of_plane[wall] & self.of_plane[sides].any(axis=0)
                corner = self.junction[np.unique(self.ends[lines][self.ends[lines] >= 0])][:, :2]
                gap = np.linalg.norm(corner[:, None] - corner[None], axis=2)
                if len(corner) and gap.max() > 0.05:
                    found[kind].append(corner[list(np.unravel_index(gap.argmax(), gap.shape))])
        return walls, *(np.array(found[kind]).reshape(-1, 2, 2) for kind in OPENINGS)


def read_structure(path: Path) -> Structure:
    """A house's annotation_3d.json. Raises: FileNotFoundError; ValueError naming the file and what of it is not as it should be."""
    content = load_json(path, dict, "Structured3D's structure of a house")
    try:
        junction = np.array([j["coordinate"] for j in content["junctions"]], np.float64).reshape(-1, 3) / MM
        kind = [str(plane["type"]) for plane in content["planes"]]
        of_plane = np.array(content["planeLineMatrix"], bool).reshape(len(kind), len(content["lines"]))
        at = np.array(content["lineJunctionMatrix"], bool).reshape(len(content["lines"]), len(junction))
        named = [(int(s["ID"]), str(s["type"]), [int(p) for p in s["planeID"]]) for s in content["semantics"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: wanted junctions, lines, planes, semantics and their two matrices ({type(error).__name__}: {error})") from error
    if not np.isfinite(junction).all():
        raise ValueError(f"{path}: {int((~np.isfinite(junction).all(axis=1)).sum())} of {len(junction)} junctions are not finite")
    bad = next(((name, p) for name, _, planes in named for p in planes if not 0 <= p < len(kind)), None)
    if bad is not None:
        raise ValueError(f"{path}: semantic {bad[0]} names plane {bad[1]}, there are {len(kind)}")
    ends = np.full((len(at), 2), -1)
    whole = at.sum(axis=1) == 2
    ends[whole] = np.nonzero(at[whole])[1].reshape(-1, 2)
    rooms = {name: (what, planes) for name, what, planes in named if what not in (*OPENINGS, "outwall")}
    return Structure(junction, ends, of_plane, kind, rooms, [(what, planes) for _, what, planes in named if what in OPENINGS])
