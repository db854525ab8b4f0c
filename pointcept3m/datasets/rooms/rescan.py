"""A place scanned again: things moved, taken away and brought in, in other light and in axes of its own (as 3RScan's rescans)."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from pointcept3m.datasets.rooms import furniture as fu
from pointcept3m.datasets.rooms.geometry import parts_overlap
from pointcept3m.datasets.rooms.layout import SHELL, Room, RoomObject
from pointcept3m.datasets.rooms.texture import Palette

FIXED = (*SHELL, "door", "window", "curtain", "picture", "radiator", "kitchen cabinet", "counter", "sink", "toilet", "bathtub", "refrigerator")
MOVES, LEAVES, COMES = 0.35, 0.08, 0.5  # share of movable things that move, that leave; chance that one comes
TRIES = 20
DOORWAY = 0.8  # metres before a door that stay free


@dataclass
class Rescan:
    """room: the place as it is now; ids are those of the first scan · moved: ids of things that stand elsewhere
    · to_reference [4, 4]: this scan's axes to the first one's."""

    room: Room
    moved: list[int]
    to_reference: np.ndarray


def rescan(room: Room, number: int) -> Rescan:
    """Scan `number` (1, 2, ...) of a room, which is left as it is; the same for the same arguments.

    What stands on a thing moves and leaves with it. Raises: ValueError for a number below 1.
    """
    if number < 1:
        raise ValueError(f"rescans are numbered from 1, got {number}; scan 0 is the room itself")
    rng = np.random.default_rng((room.seed, 71, number))
    new = deepcopy(room)
    new.scan = number
    new.daylight = float(rng.choice([0.0, 0.6, 1.0]))
    moved: list[int] = []
    for thing in [o for o in new.objects if o.support < 0 and o.category not in FIXED]:
        if rng.random() < LEAVES and sum(o.category not in SHELL for o in new.objects) > 3:
            group = {o.id for o in _carried(new, thing)}
            new.objects = [o for o in new.objects if o.id not in group]
        elif rng.random() < MOVES:
            moved += _move(new, thing, rng)
    if rng.random() < COMES:
        _bring(new, max(o.id for o in room.objects) + number, rng)
    angle, shift = rng.uniform(-np.pi, np.pi), rng.uniform(-2, 2, 2)
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    motion[:2, 3] = shift
    return Rescan(new, sorted(moved), motion)


def _carried(room: Room, thing: RoomObject) -> list[RoomObject]:
    """A thing and all that stands on it, directly or not."""
    group, ids = [thing], {thing.id}
    while True:
        more = [o for o in room.objects if o.support in ids and o.id not in ids]
        if not more:
            return group
        group += more
        ids |= {o.id for o in more}


def _move(room: Room, thing: RoomObject, rng: np.random.Generator) -> list[int]:
    """Shifts and turns a thing with what it carries to where it fits; the ids that moved, none where it fits nowhere."""
    group = _carried(room, thing)
    ids = {o.id for o in group}
    others = _taken(room, ids)
    pivot = thing.box.mean(axis=0)
    for _ in range(TRIES):
        angle = float(rng.choice([0.0, np.pi / 2, np.pi, -np.pi / 2], p=[0.4, 0.25, 0.1, 0.25])) + rng.normal(0, 0.1)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
        shift = np.array([*rng.uniform(-1.5, 1.5, 2), 0.0])
        if np.hypot(*shift[:2]) < 0.15:
            continue
        parts = [_turned_parts(o.parts - pivot, turn) + pivot + shift for o in group]
        whole = np.concatenate(parts)
        low, high = whole[:, 0].min(axis=0), whole[:, 1].max(axis=0)
        corners = np.array([[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])])
        if not room.contains(corners, 0.02).all() or parts_overlap(whole, others):
            continue
        for o, moved in zip(group, parts, strict=True):
            o.vertices = (o.vertices - pivot) @ turn.T + pivot + shift
            o.rotation, o.translation = turn @ o.rotation, turn @ (o.translation - pivot) + pivot + shift
            o.parts = moved
        return [o.id for o in group]
    return []


def _taken(room: Room, but: set[int]) -> np.ndarray:
    """Boxes [P, 2, 3] where nothing can be put: all things except those with the ids `but`, and what doors swing through."""
    boxes = [o.parts for o in room.objects if o.id not in but and o.category not in SHELL]
    for door in (o for o in room.objects if o.category == "door"):
        swing = door.box + DOORWAY * door.rotation[:, 1]
        boxes.append(np.stack([np.minimum(door.box[0], swing[0]), np.maximum(door.box[1], swing[1])])[None])
    return np.concatenate([np.zeros((0, 2, 3)), *boxes])


def _turned_parts(parts: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Boxes [P, 2, 3] around turned boxes."""
    middle, half = parts.mean(axis=1) @ turn.T, (parts[:, 1] - parts[:, 0]) / 2 @ np.abs(turn).T
    return np.stack([middle - half, middle + half], axis=1)


def _bring(room: Room, number: int, rng: np.random.Generator) -> None:
    """Puts one new small piece of furniture on a free spot of the floor, where there is one; `number` is its id, which no thing of
    any other scan of the place has."""
    category = str(rng.choice(["box", "ottoman", "plant", "trash can", "chair"]))
    shape = fu.FURNITURE[category](rng)
    low, high = shape.bounds()
    inner, outer = room.outline.min(axis=0), room.outline.max(axis=0)
    others = _taken(room, set())
    for _ in range(TRIES):
        spot = np.array([*rng.uniform(inner, outer), 0.0])
        corners = np.array([[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])]) + spot[:2]
        parts = np.array(shape.parts) + spot
        if room.contains(corners, 0.02).all() and not parts_overlap(parts, others):
            palette, first = Palette(rng, room.split), len(room.materials)
            room.materials += [palette.material(kind) for kind in shape.slots.values()]
            room.objects.append(RoomObject(
                id=number, category=category, vertices=np.concatenate(shape.vertices) + spot, faces=np.concatenate(shape.faces),
                face_material=first + np.concatenate(shape.face_slot), rotation=np.eye(3), translation=spot, parts=parts, surfaces=shape.surfaces,
            ))  # fmt: skip
            return
