"""A hand-held scan's cameras: standing where a person could, looking where something is yet to be seen."""

import numpy as np

from pointcept3m.datasets.rooms.cast import RayCaster
from pointcept3m.datasets.rooms.layout import SHELL, Room
from pointcept3m.structures.camera import pixel_rays

EYE_HEIGHT = (1.2, 1.7)  # metres
MIN_CLEARANCE = 0.25  # metres between the camera and any furniture
_CANDIDATES = 8
_PROBE = (12, 16)  # rays, rows by columns, with which a candidate view is judged


def look_at(position: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """Camera->world pose, float64 [4, 4], OpenCV axes: at `position`, facing `target`, turned by `roll` radians about its axis."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    cos, sin = np.cos(roll), np.sin(roll)
    pose[:3, 0], pose[:3, 1] = cos * right + sin * down, -sin * right + cos * down
    pose[:3, 2], pose[:3, 3] = forward, position
    return pose


def draw_intrinsic(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A pinhole camera, float64 [3, 3], with the field of view of a phone's depth sensor (about 57 degrees across)."""
    focal = size[1] * rng.uniform(0.84, 0.96)
    center = (0.5 + rng.normal(0, 0.008, 2)) * [size[1], size[0]]
    return np.array([[focal, 0, center[0]], [0, focal * rng.uniform(0.995, 1.005), center[1]], [0, 0, 1.0]])


def plan_path(room: Room, caster: RayCaster, num_frames: int, intrinsic: np.ndarray, size: tuple[int, int],
              rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Camera->world poses, float64 [num_frames, 4, 4], in the order of a walk through the room.

    Each view is the one of some random candidates that sees most surface not seen by the views before it.
    """
    places = _standing_places(room, rng)
    targets = _targets(room)
    weight = np.ones(len(targets))
    scale = np.array([_PROBE[1] / size[1], _PROBE[0] / size[0], 1.0])
    rays = pixel_rays(_PROBE, intrinsic * scale[:, None]).astype(np.float32).reshape(-1, 3)
    seen = np.zeros(0, np.int64)
    poses = []
    for _ in range(num_frames):
        candidates = []
        for _ in range(_CANDIDATES):
            position = np.array([*places[rng.integers(len(places))], rng.uniform(*EYE_HEIGHT)])
            pick = int(rng.choice(len(targets), p=weight / weight.sum()))
            target = targets[pick] + rng.normal(0, 0.25, 3)
            if np.linalg.norm((target - position)[:2]) < 0.7:
                target = position + np.array([*(rng.normal(size=2) * 2), -0.4])
            target[2] = np.clip(target[2], 0.1, position[2] + 0.1)
            candidates.append((look_at(position, target, rng.normal(0, 0.03)), pick))
        pose, pick, cells = _best_view(candidates, rays, caster, seen)
        seen = np.union1d(seen, cells)
        weight[pick] *= 0.3
        poses.append(pose)
    return _as_walk(np.array(poses))


def _standing_places(room: Room, rng: np.random.Generator) -> np.ndarray:
    """Points [N, 2] of the floor where a person can hold a camera: not inside or hard against furniture or walls."""
    low, high = room.outline.min(axis=0), room.outline.max(axis=0)
    tall = [o.box for o in room.objects if o.category not in SHELL and o.box[1, 2] > EYE_HEIGHT[0] - MIN_CLEARANCE]
    for clearance in (MIN_CLEARANCE, MIN_CLEARANCE / 2):  # a room may be too full for the usual distance
        spots = rng.uniform(low, high, (1500, 2))
        clear = room.contains(spots, clearance + 0.1)
        for box in tall:
            clear &= ~((spots > box[0, :2] - clearance) & (spots < box[1, :2] + clearance)).all(axis=1)
        if clear.any():
            return spots[clear]
    raise RuntimeError(f"room {room.name} of split {room.split!r} leaves no place to stand in {room.area:.1f} square metres")


def _targets(room: Room) -> np.ndarray:
    """Points [T, 3] worth looking at: the middle of every thing, and spots along the walls."""
    things = [o.box.mean(axis=0) for o in room.objects if o.category not in SHELL]
    along = []
    for a, b in zip(room.outline, np.roll(room.outline, -1, axis=0), strict=True):
        steps = max(2, int(np.abs(b - a).sum() / 0.8))
        along += [[*(a + (b - a) * s), z] for s, z in zip((np.arange(steps) + 0.5) / steps, np.tile([0.2, 1.1], steps), strict=False)]
    return np.array(things + along)


def _best_view(candidates: list, rays: np.ndarray, caster: RayCaster, seen: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """The candidate (pose, target) that sees most new cells of 20 cm, and the cells it sees."""
    origin = np.concatenate([np.tile(pose[:3, 3], (len(rays), 1)) for pose, _ in candidates]).astype(np.float32)
    direction = np.concatenate([rays @ pose[:3, :3].T for pose, _ in candidates]).astype(np.float32)
    face, depth = caster.hit(origin, direction)
    cell = np.floor((origin + direction * depth[:, None]) / 0.2).astype(np.int64) + 512
    key = np.where(face >= 0, (cell[:, 0] << 40) + (cell[:, 1] << 20) + cell[:, 2], -1).reshape(len(candidates), -1)
    depth = depth.reshape(len(candidates), -1)
    best, best_score = 0, -np.inf
    for k in range(len(candidates)):
        cells = np.unique(key[k])
        # Views from too near show nothing but one surface; a scan keeps its distance.
        score = np.setdiff1d(cells, seen, assume_unique=True).size - 200 * max(0.0, 0.9 - float(np.median(depth[k])))
        if score > best_score:
            best, best_score = k, score
    return *candidates[best], np.unique(key[best])


def _as_walk(poses: np.ndarray) -> np.ndarray:
    """Poses reordered so that each is near the one before it in place and direction."""
    left = list(range(1, len(poses)))
    order = [0]
    while left:
        last = poses[order[-1]]
        cost = np.linalg.norm(poses[left, :3, 3] - last[:3, 3], axis=1) + 0.5 * np.linalg.norm(poses[left, :3, 2] - last[:3, 2], axis=1)
        order.append(left.pop(int(cost.argmin())))
    return poses[order]
