"""A box room seen from inside, cast exactly: a scene whose geometry is known in closed form."""

from pathlib import Path

import numpy as np
from PIL import Image

from pointcept3m.structures.camera import pixel_rays
from pointcept3m.structures.images import write_depth

LOW, HIGH = np.array([0.0, 0.0, 0.0]), np.array([4.0, 3.0, 2.5])
INTRINSIC = np.array([[60.0, 0, 32.5], [0, 58.0, 23.5], [0, 0, 1]])
SIZE = (48, 64)


def look(angle: float, tilt: float = 0.3, eye: tuple = (2.0, 1.5, 1.4)) -> np.ndarray:
    """Camera->world at `eye`, looking along `angle` in the xy plane and `tilt` radians down."""
    forward = np.array([np.cos(angle) * np.cos(tilt), np.sin(angle) * np.cos(tilt), -np.sin(tilt)])
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.column_stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = eye
    return pose


def cast(pose: np.ndarray, intrinsic: np.ndarray = INTRINSIC, size: tuple = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """(depth [H, W] metres, color [H, W, 3] uint8 by position) of the room from `pose`."""
    rays = pixel_rays(size, intrinsic) @ pose[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        wall = np.where(rays > 0, HIGH, LOW) - pose[:3, 3]
        to_walls = np.where(rays == 0, np.inf, wall / rays)
    depth = to_walls.min(axis=-1)  # rays have camera-space z 1, so the ray parameter is depth
    hit = pose[:3, 3] + rays * depth[..., None]
    return depth, np.rint((hit - LOW) / (HIGH - LOW) * 255).astype(np.uint8)


def cloud(count: int = 3000, seed: int = 0) -> dict[str, np.ndarray]:
    """Random points on the room's six walls with colour by position, inward normals, the wall's number as label."""
    rng = np.random.default_rng(seed)
    coord = rng.uniform(LOW, HIGH, (count, 3))
    wall = rng.integers(0, 6, count)
    axis, top = wall % 3, wall >= 3
    rows = np.arange(count)
    coord[rows, axis] = np.where(top, HIGH[axis], LOW[axis])
    normal = np.zeros((count, 3))
    normal[rows, axis] = np.where(top, -1, 1)
    return {
        "coord": coord.astype(np.float32),
        "color": np.rint((coord - LOW) / (HIGH - LOW) * 255).astype(np.uint8),
        "normal": normal.astype(np.float32),
        "segment": wall.astype(np.int16),
        "instance": wall.astype(np.int32),
    }


def write_scene(root: Path, frames: int = 9, count: int = 3000) -> Path:
    """Writes the room as a scene folder with `frames` posed frames looking round; returns `root`."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (root / name).mkdir(parents=True)
    for name, value in cloud(count).items():
        np.save(root / f"{name}.npy", value)
    for number in range(frames):
        pose = look(2 * np.pi * number / frames)
        depth, color = cast(pose)
        Image.fromarray(color).save(root / "color" / f"{number}.png")
        write_depth(root / "depth" / f"{number}.png", depth)
        np.savetxt(root / "pose" / f"{number}.txt", pose)
    for name in ("color", "depth"):
        np.savetxt(root / "intrinsic" / f"intrinsic_{name}.txt", INTRINSIC)
    return root
