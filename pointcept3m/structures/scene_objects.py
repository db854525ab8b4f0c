"""What a scene folder says of its objects and of itself, beside points and frames. This file alone knows these files.

    objects.json                    one entry an object: id (as in instance.npy), label, box, CAD model and its pose, texts
    scene.json                      place, category, reference scan and what moved since
    cad/<name>.npy                  [S, 3] points on a CAD model's surface, in its own axes
    floorplan.png, floorplan.json   the picture, its scale and where it lies
    mask/<frame>.png                16 bit: id of the object that a pixel shows, plus one; 0 none

All are optional: a scene without a file lacks what it says, and nothing else changes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.images import read_color, read_integer_image
from pointcept3m.structures.scene import MAX_COORD, check_pose, load_array
from pointcept3m.utils.files import near_files, replacing
from pointcept3m.utils.registry import near_names

SCENE_FILES = ("coord.npy", "objects.json", "floorplan.png", "floorplan.jpg", "floorplan.jpeg")  # any of them makes a folder a scene


def is_scene_folder(path: str | Path) -> bool:
    """Whether a folder is a scene, with points, objects, a floorplan or frames; a hidden one, which is still being written, is not."""
    path = Path(path)
    return not path.name.startswith(".") and path.is_dir() and ((path / "color").is_dir() or any((path / name).is_file() for name in SCENE_FILES))


@dataclass
class SceneObject:
    """One object. Metres, the scene's axes.

    id: its value in instance.npy and, plus one, in masks · label: a class name · center [3], size [3] along its own
    axes, heading: turn of its box about z in radians · cad: name of a file in cad/, or None · cad_pose [4, 4]: the CAD
    model's axes to the scene's (it may scale), None where the model is known and its pose is not · texts: sentences that
    tell it from others, none of them empty.
    """

    id: int
    label: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    heading: float = 0.0
    cad: str | None = None
    cad_pose: list[list[float]] | None = None
    texts: list[str] = field(default_factory=list)

    @property
    def box(self) -> NDArray[np.float32]:
        """float32 [6]: centre and extent along the scene's axes."""
        cos, sin = abs(np.cos(self.heading)), abs(np.sin(self.heading))
        x, y, z = self.size
        return np.array([*self.center, x * cos + y * sin, x * sin + y * cos, z], dtype=np.float32)


@dataclass
class SceneFacts:
    """place: scans of one place share it · category: kind of room ("" unknown) · reference: name of the scan of this place
    that `moved` and `to_reference` refer to, None in that scan itself · to_reference [4, 4]: this scan's axes to the
    reference's · moved: ids of objects that stand elsewhere than there · same_ids: objects have the ids that they have there
    · dataset: where the scene is from.
    """

    place: str
    category: str = ""
    reference: str | None = None
    to_reference: list[list[float]] | None = None
    moved: list[int] = field(default_factory=list)
    dataset: str = ""
    same_ids: bool = False


@dataclass(frozen=True)
class Floorplan:
    """A plan from above: image uint8 [H, W, 3], north (+y) up · metres_per_pixel · (left, top): x and y, in metres, of the
    upper left corner of the first pixel · heading: how far the plan's axes are turned about z against the scene's, radians;
    x, y, left and top are in the plan's own. A plan of unknown scale has metres_per_pixel None."""

    image: NDArray[np.uint8]
    metres_per_pixel: float | None = None
    left: float = 0.0
    top: float = 0.0
    heading: float = 0.0

    def pixel(self, xy: NDArray) -> NDArray[np.float64]:
        """(column, row) [N, 2], centre of the first pixel at 0.5, of points xy [N, 2] in metres, in the scene's axes."""
        if self.metres_per_pixel is None:
            raise ValueError("this floorplan has no scale (metres_per_pixel), so no point has a place on it")
        if self.heading:
            cos, sin = np.cos(self.heading), np.sin(self.heading)
            xy = np.asarray(xy) @ np.array([[cos, -sin], [sin, cos]])
        return np.stack([xy[:, 0] - self.left, self.top - xy[:, 1]], axis=1) / self.metres_per_pixel


def write_objects(root: str | Path, objects: Sequence[SceneObject]) -> None:
    """Writes objects.json, checked as `read_objects` checks it."""
    path = Path(root) / "objects.json"
    entries = [asdict(thing) for thing in objects]
    _objects_of(path, {"objects": entries})
    _write_json(path, {"objects": entries})


def read_objects(root: str | Path) -> list[SceneObject] | None:
    """The objects of a scene folder in the order of their ids, None where it has no objects.json.

    Raises: ValueError naming file and object: an id twice or negative, a label or text that is empty, a box that is not
        finite or of no size, a pose that is no 4x4 matrix.
    """
    path = Path(root) / "objects.json"
    return sorted(_objects_of(path, _read_json(path)), key=lambda thing: thing.id) if path.is_file() else None


def write_facts(root: str | Path, facts: SceneFacts) -> None:
    """Writes scene.json, checked as `read_facts` checks it."""
    path = Path(root) / "scene.json"
    _facts_of(path, asdict(facts))
    _write_json(path, asdict(facts))


def read_facts(root: str | Path) -> SceneFacts:
    """What scene.json says; where there is none, a place of the scene's own name and nothing else.

    Raises: ValueError naming the file and the entry.
    """
    path = Path(root) / "scene.json"
    return _facts_of(path, _read_json(path)) if path.is_file() else SceneFacts(place=Path(root).name)


def write_cad(root: str | Path, name: str, points: NDArray) -> Path:
    """Writes cad/<name>.npy, surface points [S, 3]."""
    path = Path(root) / "cad" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    points = _cad_points(path, np.asarray(points, dtype=np.float32))
    with replacing(path) as part, open(part, "wb") as stream:
        np.save(stream, points)
    return path


def read_cad(root: str | Path, name: str) -> NDArray[np.float32]:
    """Surface points float32 [S, 3] of a CAD model. Raises FileNotFoundError, or ValueError naming the file."""
    path = Path(root) / "cad" / f"{name}.npy"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: objects.json names this CAD model and there is no such file; {near_files(path)}")
    return _cad_points(path, load_array(path))


def write_floorplan(root: str | Path, plan: Floorplan) -> None:
    """Writes floorplan.png and, where its scale is known, floorplan.json."""
    from PIL import Image

    root = Path(root)
    with replacing(root / "floorplan.png") as part:
        Image.fromarray(plan.image).save(part, format="PNG")
    if plan.metres_per_pixel is not None:
        told = {"metres_per_pixel": plan.metres_per_pixel, "left": plan.left, "top": plan.top}
        _write_json(root / "floorplan.json", told | ({"heading": plan.heading} if plan.heading else {}))


def read_floorplan(root: str | Path) -> Floorplan | None:
    """The floorplan of a scene folder (floorplan.png or .jpg), None where it has none. Raises ValueError naming the file."""
    root = Path(root)
    path = next((root / f"floorplan{suffix}" for suffix in (".png", ".jpg", ".jpeg") if (root / f"floorplan{suffix}").is_file()), None)
    if path is None:
        return None
    image = read_color(path)
    told = root / "floorplan.json"
    if not told.is_file():
        return Floorplan(image)
    entry = _read_json(told)
    values = [entry.get(key) for key in ("metres_per_pixel", "left", "top")] + [entry.get("heading", 0.0)]
    if not all(_is_number(value) for value in values) or values[0] <= 0:
        raise ValueError(f"{told}: wanted metres_per_pixel > 0, left and top (and heading), got {entry}")
    return Floorplan(image, *(float(value) for value in values))


def write_mask(root: str | Path, frame: str, ids: NDArray) -> None:
    """Writes mask/<frame>.png of object ids [H, W], -1 for none."""
    from PIL import Image

    path = Path(root) / "mask" / f"{frame}.png"
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.min() < -1 or ids.max() > 65534:
        raise ValueError(f"{path}: wanted object ids [H, W] from -1 to 65534, got {ids.dtype} {list(ids.shape)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        Image.fromarray((ids + 1).astype(np.uint16)).save(part, format="PNG")


def read_mask(root: str | Path, frame: str) -> NDArray[np.int64]:
    """Object ids int64 [H, W] of the pixels of a frame, -1 for none. Raises FileNotFoundError, or ValueError naming the file."""
    path = Path(root) / "mask" / f"{frame}.png"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no mask of this frame; {near_files(path)}")
    return read_integer_image(path, "a 16-bit picture of object ids in one channel").astype(np.int64) - 1


# the entries


def _objects_of(path: Path, content: Any) -> list[SceneObject]:
    entries = content.get("objects") if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError(f'{path}: wanted {{"objects": [...]}}, got {_short(content)}')
    objects, seen = [], set()
    for number, entry in enumerate(entries):
        where = f"{path}: object {number}"
        _check_keys(where, entry, SceneObject, ("id", "label", "center", "size"))
        thing = SceneObject(**entry)
        if not isinstance(thing.id, int) or isinstance(thing.id, bool) or thing.id < 0:
            raise ValueError(f"{where}: id must be a whole number from 0, got {thing.id!r}")
        if thing.id in seen:
            raise ValueError(f"{where}: id {thing.id} stands there twice")
        seen.add(thing.id)
        _check_object(f"{where} (id {thing.id})", thing)
        objects.append(thing)
    return objects


def _check_object(where: str, thing: SceneObject) -> None:
    if not isinstance(thing.label, str) or not thing.label.strip():
        raise ValueError(f"{where}: label must be a name, got {thing.label!r}")
    for key in ("center", "size"):
        value = getattr(thing, key)
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_number(v) and abs(v) <= MAX_COORD for v in value):
            raise ValueError(f"{where}: {key} must be three lengths in metres, got {value!r}")
        setattr(thing, key, tuple(float(v) for v in value))
    if min(thing.size) <= 0:
        raise ValueError(f"{where}: size must be positive, got {thing.size}")
    if not _is_number(thing.heading):
        raise ValueError(f"{where}: heading must be an angle in radians, got {thing.heading!r}")
    if thing.cad is not None and (not isinstance(thing.cad, str) or not thing.cad or "/" in thing.cad or thing.cad.startswith(".")):
        raise ValueError(f"{where}: cad must be the name of a file in cad/ without its ending, got {thing.cad!r}")
    if thing.cad_pose is not None:
        _check_matrix(f"{where}: cad_pose", thing.cad_pose)
    if not isinstance(thing.texts, list) or not all(isinstance(text, str) and text.strip() for text in thing.texts):
        raise ValueError(f"{where}: texts must be a list of sentences, none of them empty, got {_short(thing.texts)}")


def _facts_of(path: Path, entry: Any) -> SceneFacts:
    _check_keys(str(path), entry, SceneFacts, ("place",))
    facts = SceneFacts(**entry)
    for key in ("place", "category", "dataset"):
        if not isinstance(getattr(facts, key), str) or (key == "place" and not facts.place):
            raise ValueError(f"{path}: {key} must be a name, got {getattr(facts, key)!r}")
    if facts.reference is not None and (not isinstance(facts.reference, str) or not facts.reference):
        raise ValueError(f"{path}: reference must be the name of a scene or null, got {facts.reference!r}")
    if facts.to_reference is not None:
        check_pose(_check_matrix(f"{path}: to_reference", facts.to_reference), f"{path}: to_reference")
    if not isinstance(facts.same_ids, bool):
        raise ValueError(f"{path}: same_ids must be true or false, got {facts.same_ids!r}")
    if not isinstance(facts.moved, list) or not all(isinstance(i, int) and i >= 0 for i in facts.moved):
        raise ValueError(f"{path}: moved must be a list of object ids, got {_short(facts.moved)}")
    return facts


def _check_keys(where: str, entry: Any, kind: type, required: Sequence[str]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: wanted an entry with {', '.join(required)}, got {_short(entry)}")
    known = tuple(kind.__dataclass_fields__)
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: {key!r} is unknown; {near_names(key, known)}")
    missing = [key for key in required if key not in entry]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")


def _check_matrix(where: str, value: Any) -> NDArray[np.float64]:
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"{where} must be a 4x4 matrix with last row 0 0 0 1, got {_short(value)}")
    return matrix


def _cad_points(path: Path, points: NDArray) -> NDArray[np.float32]:
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0 or points.dtype.kind != "f":
        raise ValueError(f"{path}: wanted points on a surface, floats [S, 3], got {points.dtype} {list(points.shape)}")
    points = points.astype(np.float32)
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: {int((~np.isfinite(points).all(axis=1)).sum())} of {len(points)} points are not finite")
    return points


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{path}: not JSON ({error})") from error


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        Path(part).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
