"""What CrossOver needs of a room beside points and frames: objects, CAD models, masks, floorplan, referrals."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pointcept3m.datasets.cad import sample_surface
from pointcept3m.datasets.floorplan import WALL, render_floorplan
from pointcept3m.datasets.referrals import describe
from pointcept3m.datasets.rooms import furniture as fu
from pointcept3m.datasets.rooms.layout import ROOM_KINDS, SHELL, SPLITS, Room, RoomObject
from pointcept3m.datasets.rooms.render import Frames
from pointcept3m.structures.scene_objects import (
    Floorplan,
    SceneFacts,
    SceneObject,
    read_objects,
    write_cad,
    write_facts,
    write_floorplan,
    write_mask,
    write_objects,
)
from pointcept3m.utils.registry import near_names

CAD_POINTS = 2048
HAS_CAD = 0.8  # share of furniture with a CAD model
OTHER_MODEL = 0.25  # of those, share whose model is another variant of its kind, as the best match in a catalogue often is
STRETCH = 0.08  # spread of the others' sizes along each axis
WITHOUT_CAD = (*SHELL, "door", "window", "curtain", "picture", "radiator", "box", "books", "vase", "pillow", "plant")
IN_WALL = ("door", "window", "curtain", "picture")
# modality that a scene may lack -> its files; cad and text stand in objects.json besides
DROPPED = {
    "image": ("color", "depth", "pose", "label", "intrinsic", "mask"), "point": ("*.npy",), "cad": ("cad",), "text": (),
    "floorplan": ("floorplan.*",),
}  # fmt: skip


def draw_kind(seed: int, split: str) -> str:
    """The kind of room of a seed: each as likely."""
    rng = np.random.default_rng((seed, SPLITS.index(split), 61))
    return str(rng.choice(list(ROOM_KINDS)))


def write_room_modalities(path: Path, room: Room, frames: Frames, motion: np.ndarray, reference: str | None, moved: list[int]) -> None:
    """Writes objects.json, scene.json, cad/, mask/, floorplan.* of a room into its folder.

    motion [4, 4]: the room's axes to those of the files. reference: name of the place's first scan, None in that one.
    """
    objects, models = room_objects(room, motion)
    for name, points in models.items():
        write_cad(path, name, points)
    write_objects(path, objects)
    back = None if reference is None else np.linalg.inv(motion).tolist()
    if back is not None:
        back[3] = [0.0, 0.0, 0.0, 1.0]
    write_facts(path, SceneFacts(f"room{room.seed:06d}", room.category, reference, back, moved, "rooms", same_ids=reference is not None))
    ids = np.array([-1 if o.category in SHELL else o.id for o in room.objects] + [-1])  # the last serves pixels of nothing
    for k in range(len(frames.pose)):
        write_mask(path, f"{k:04d}", ids[frames.instance[k]])
    write_floorplan(path, plan_of(room, motion))


def room_objects(room: Room, motion: np.ndarray) -> tuple[list[SceneObject], dict[str, np.ndarray]]:
    """(all things but walls, floor and ceiling, with referrals; {name: surface points} of their CAD models) of a room whose axes
    are turned and shifted by `motion` [4, 4]."""
    objects, models = [], {}
    for thing in [o for o in room.objects if o.category not in SHELL]:
        model = _model_of(room, thing)
        models |= dict([model] if model else [])
        objects.append(_object(thing, motion, model[0] if model else None))
    for thing, texts in zip(objects, describe(objects, room.rng(62)), strict=True):
        thing.texts = texts
    return objects, models


def drop_modalities(path: Path, room: Room, shares: Mapping[str, float]) -> None:
    """Takes whole modalities from a scene folder, each by the chance that `shares` gives it and none twice; one always stays."""
    chance = dict(zip(DROPPED, room.rng(63).random(len(DROPPED)), strict=True))
    gone = [name for name in DROPPED if chance[name] < shares.get(name, 0.0)]
    if len(gone) == len(DROPPED):
        gone.remove(max(gone, key=lambda name: chance[name] / shares[name]))
    for name in gone:
        for entry in (entry for pattern in DROPPED[name] for entry in sorted(path.glob(pattern))):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    objects = read_objects(path)
    for thing in objects:
        thing.cad, thing.cad_pose = (None, None) if "cad" in gone else (thing.cad, thing.cad_pose)
        thing.texts = [] if "text" in gone else thing.texts
    write_objects(path, objects)


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError for a modality that is unknown, or a share outside 0 to 1."""
    for name, share in shares.items():
        if name not in DROPPED:
            raise ValueError(f"no modality to drop is called {name!r}; {near_names(name, DROPPED)}")
        if not 0 <= share <= 1:
            raise ValueError(f"the share of scenes without {name} must be 0 to 1, got {share}")


def plan_of(room: Room, motion: np.ndarray) -> Floorplan:
    """The floorplan of a room whose axes are turned and shifted by `motion` [4, 4]."""

    def moved(points: np.ndarray) -> np.ndarray:
        return points @ motion[:2, :2].T + motion[:2, 3]

    # The outline is where the floor ends; walls are drawn about their middle, half their thickness beyond it.
    along = np.sign(np.roll(room.outline, -1, axis=0) - room.outline)
    outward = np.stack([along[:, 1], -along[:, 0]], axis=1)
    outline = moved(room.outline + WALL / 2 * (outward + np.roll(outward, 1, axis=0)))
    walls = np.stack([outline, np.roll(outline, -1, axis=0)], axis=1)
    openings = {kind: [_along_wall(o) for o in room.objects if o.category == kind] for kind in ("door", "window")}
    segments = {kind: moved(np.array(found).reshape(-1, 2)).reshape(-1, 2, 2) for kind, found in openings.items()}
    furniture = [o for o in room.objects if o.category not in (*SHELL, *IN_WALL)]
    solids = [(np.concatenate([moved(o.vertices[:, :2]), o.vertices[:, 2:]], axis=1), o.faces) for o in furniture]
    return render_floorplan(walls, solids, doors=segments["door"], windows=segments["window"])


def _along_wall(thing: RoomObject) -> np.ndarray:
    """[2, 2]: a door or window as a segment along its wall."""
    local = (thing.vertices - thing.translation) @ thing.rotation
    ends = np.array([[x, -WALL / 2, 0] for x in (local[:, 0].min(), local[:, 0].max())])
    return (ends @ thing.rotation.T + thing.translation)[:, :2]


def _object(thing: RoomObject, motion: np.ndarray, cad: str | None) -> SceneObject:
    local = (thing.vertices - thing.translation) @ thing.rotation
    low, high = local.min(axis=0), local.max(axis=0)
    rotation = motion[:3, :3] @ thing.rotation
    origin = motion[:3, :3] @ thing.translation + motion[:3, 3]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, origin
    return SceneObject(
        id=thing.id,
        label=thing.category,
        center=tuple((rotation @ ((low + high) / 2) + origin).tolist()),
        size=tuple(np.maximum(high - low, 1e-3).tolist()),
        heading=float(np.arctan2(rotation[1, 0], rotation[0, 0])),
        cad=cad,
        cad_pose=pose.tolist() if cad else None,
    )


def _model_of(room: Room, thing: RoomObject) -> tuple[str, np.ndarray] | None:
    """(name, surface points [2048, 3] in its own axes) of a thing's CAD model, None where the catalogue has none.

    Things of one make share a model. It is near to what stands in the room, not the same: another variant of the kind, or the
    same one stretched.
    """
    if thing.category in WITHOUT_CAD:
        return None
    local = np.round((thing.vertices - thing.translation) @ thing.rotation, 4) + 0.0
    make = hashlib.sha256(f"{thing.category}{room.seed}".encode() + local.tobytes()).hexdigest()[:8]
    rng = np.random.default_rng(int(make, 16))
    if rng.random() > HAS_CAD:
        return None
    maker = fu.FURNITURE.get(thing.category) or fu.CLUTTER.get(thing.category)
    if rng.random() < OTHER_MODEL and thing.category in fu.FURNITURE and thing.category not in ("kitchen cabinet", "lamp", "sink"):
        shape = maker(rng)
        vertices, faces = np.concatenate(shape.vertices), np.concatenate(shape.faces)
    else:
        vertices, faces = local * np.exp(rng.normal(0, STRETCH, 3)), thing.faces
    return f"{thing.category.replace(' ', '_')}_{make}", sample_surface(vertices, faces, CAD_POINTS, rng)
