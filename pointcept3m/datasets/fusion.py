"""Posed RGB-D frames into one cloud with colour and normals: averages of all that was seen in each small voxel."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pointcept3m.datasets.readers.rgbd import RGBDFolder
from pointcept3m.ops.voxelize import group_keys
from pointcept3m.structures.camera import register_color, unproject

# cells are numbered with 21 bits an axis: at 1 mm that is a cube of 2 km, and beyond it is an error, not a collision
CELL_BITS = 21
# the words by which a user names a direction, and the direction
AXES = {
    f"{sign}{axis}": row * s for sign, s in (("", 1), ("-", -1)) for axis, row in zip("xyz", np.eye(3), strict=True)
}


@dataclass(frozen=True)
class FusionSettings:
    """How frames are fused. Lengths in metres.

    voxel: edge of the voxels. min_depth, max_depth: range of the sensor that is believed. edge: a pixel whose depth
    differs from a neighbour's by more than edge * depth is a discontinuity and is dropped. min_cosine: surfaces seen
    at a flatter angle are dropped. min_frames: voxels seen by fewer frames are dropped (in sequences of at least 25
    times as many frames; in sparse ones much is seen only once). min_neighbors: voxels with fewer occupied ones among
    their 26 neighbours are dropped. min_component: connected pieces of fewer voxels are dropped.
    """

    voxel: float = 0.02
    min_depth: float = 0.3
    max_depth: float = 4.0
    edge: float = 0.03
    min_cosine: float = 0.15
    min_frames: int = 2
    min_neighbors: int = 4
    min_component: int = 50

    def __post_init__(self) -> None:
        if not self.voxel > 0:
            raise ValueError(f"voxel must be positive, got {self.voxel}")
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"wanted 0 < min_depth < max_depth, got {self.min_depth} and {self.max_depth}")


@dataclass(frozen=True)
class FusedCloud:
    """coord [N, 3] float32 metres · color [N, 3] uint8 · normal [N, 3] float32, towards the cameras
    · frames [N] int64, how many frames saw the voxel."""

    coord: NDArray[np.float32]
    color: NDArray[np.uint8]
    normal: NDArray[np.float32]
    frames: NDArray[np.int64]


@dataclass(frozen=True)
class DepthFrame:
    """One frame for fusion: color [H, W, 3] uint8, depth [h, w] metres, both intrinsics, pose camera->world."""

    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    color_intrinsic: NDArray[np.float64]
    depth_intrinsic: NDArray[np.float64]
    pose: NDArray[np.float64]


def back_project(frame: DepthFrame, settings: FusionSettings) -> NDArray[np.float64]:
    """The believed pixels of a frame as rows [P, 10]: world coord 3, color 3 (0..1), normal 3, weight 1.

    The weight falls with the square of depth and with the slant of the surface, as a depth sensor's noise grows.
    """
    camera = unproject(frame.depth, frame.depth_intrinsic)
    normal, smooth = depth_normals(camera, settings.edge)
    distance = np.linalg.norm(camera, axis=-1)
    cosine = -(normal * camera).sum(axis=-1) / np.maximum(distance, 1e-9)
    keep = smooth & (frame.depth >= settings.min_depth) & (frame.depth <= settings.max_depth)
    keep &= cosine >= settings.min_cosine
    color = register_color(frame.color, frame.color_intrinsic, frame.depth_intrinsic, frame.depth.shape)
    rotation, center = frame.pose[:3, :3], frame.pose[:3, 3]
    depth = frame.depth[keep].astype(np.float64)
    weight = cosine[keep] / np.square(depth)
    return np.column_stack([camera[keep] @ rotation.T + center, color[keep], normal[keep] @ rotation.T, weight])


def depth_normals(
    camera: NDArray[np.float64], edge: float, window: int = 7
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Normals of a depth image's points [H, W, 3] (camera frame, 0 where invalid), turned to the camera.

    Central differences, so a pixel has a normal only if its four neighbours are valid and none is farther from it in
    depth than `edge` * depth. The cross products are averaged over `window` x `window` pixels before they are scaled to
    unit length: a sensor's depth comes in steps of centimetres, most single differences are 0, and a mean of unit
    normals would lean towards the camera (8 degrees on 7-Scenes, measured).

    Returns: (normal [H, W, 3], has one [H, W]).
    """
    depth = camera[..., 2]
    smooth = np.zeros(depth.shape, dtype=bool)
    cross = np.zeros_like(camera)
    center = depth[1:-1, 1:-1]
    good = center > 0
    for neighbor in (depth[1:-1, 2:], depth[1:-1, :-2], depth[2:, 1:-1], depth[:-2, 1:-1]):
        good &= (neighbor > 0) & (np.abs(neighbor - center) <= edge * center)
    across = camera[1:-1, 2:] - camera[1:-1, :-2]
    down = camera[2:, 1:-1] - camera[:-2, 1:-1]
    # x right, y down, z forward: down x across points back to the camera; its length grows with depth squared
    cross[1:-1, 1:-1] = np.where(good[..., None], _cross(down, across), 0) / np.maximum(center, 1e-6)[..., None] ** 2
    smooth[1:-1, 1:-1] = good
    normal = np.stack([ndimage.uniform_filter(cross[..., c], window) for c in range(3)], axis=-1)
    length = np.sqrt(np.square(normal).sum(axis=-1))
    return normal / np.maximum(length, 1e-300)[..., None], smooth & (length > 0)


def _cross(a: NDArray, b: NDArray) -> NDArray:
    """Cross products along the last axis; several times np.cross's speed on images."""
    (ax, ay, az), (bx, by, bz) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def fuse_frames(
    frames: Iterable[DepthFrame],
    settings: FusionSettings | None = None,
    progress: Callable[[int], None] | None = None,
) -> FusedCloud:
    """Fuses frames into one cloud, a point for every voxel that enough frames saw.

    Memory grows with the voxels that each frame sees, not with its pixels. `progress(i)` is called after each frame.

    Raises: ValueError where no point is left, or where the frames span more than 2^21 voxels.
    """
    settings = settings or FusionSettings()
    keys, sums = [], []
    for number, frame in enumerate(frames):
        rows = back_project(frame, settings)
        frame_keys, frame_sums = _sum_in_voxels(voxel_keys(rows[:, :3], settings.voxel), _weigh(rows))
        keys.append(frame_keys)
        sums.append(np.column_stack([frame_sums, np.ones(len(frame_keys))]))
        if progress is not None:
            progress(number + 1)
    if not keys or not any(map(len, keys)):
        raise ValueError(
            f"nothing to fuse: {len(keys)} frames have no depth within {settings.min_depth} .. {settings.max_depth} m"
        )
    voxel, total = _sum_in_voxels(np.concatenate(keys), np.concatenate(sums))
    seen = total[:, 10]
    keep = seen >= (settings.min_frames if len(keys) >= 25 * settings.min_frames else 1)
    keep &= np.linalg.norm(total[:, 6:9], axis=1) > 0.3 * total[:, 9]  # normals that contradict each other: no surface
    voxel, total = voxel[keep], total[keep]
    total = total[dense_voxels(voxel, settings.min_neighbors, settings.min_component)]
    if not len(total):
        raise ValueError(
            f"fusion left no point of {len(keys)} frames: do poses and depth unit fit? (min_frames {settings.min_frames}, "
            f"min_neighbors {settings.min_neighbors}, min_component {settings.min_component}, voxel {settings.voxel} m)"
        )
    mean = total[:, :6] / total[:, 9:10]
    normal = total[:, 6:9] / np.linalg.norm(total[:, 6:9], axis=1, keepdims=True)
    return FusedCloud(
        coord=mean[:, :3].astype(np.float32),
        color=np.clip(np.rint(mean[:, 3:6] * 255), 0, 255).astype(np.uint8),
        normal=normal.astype(np.float32),
        frames=total[:, 10].astype(np.int64),
    )


def voxel_keys(coord: NDArray, voxel: float) -> NDArray[np.int64]:
    """One number for the voxel of each point, the same in every frame. Raises ValueError beyond 2^20 voxels from 0."""
    cells = np.floor(coord / voxel)
    half = 2 ** (CELL_BITS - 1) - 1  # one cell of margin for the neighbours
    if len(cells) and not np.abs(cells).max() < half:
        row = int(np.nanargmax(np.abs(cells).max(axis=1)))
        raise ValueError(f"a back-projected point lies at {coord[row]}, too far off for voxels of {voxel} m")
    cells = cells.astype(np.int64) + half
    return (cells[:, 0] << 2 * CELL_BITS) | (cells[:, 1] << CELL_BITS) | cells[:, 2]


def neighbor_pairs(voxel: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows (i, j) [E, 2] of the sorted keys `voxel` that are among each other's 26 neighbours, each pair once."""
    steps = [(x, y, z) for x in (0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)]
    pairs = []
    for x, y, z in steps:
        wanted = voxel + x * (1 << 2 * CELL_BITS) + y * (1 << CELL_BITS) + z
        at = np.minimum(np.searchsorted(voxel, wanted), len(voxel) - 1)
        rows = np.flatnonzero(voxel[at] == wanted)
        pairs.append(np.column_stack([rows, at[rows]]))
    return np.concatenate(pairs)


def dense_voxels(voxel: NDArray[np.int64], min_neighbors: int, min_component: int) -> NDArray[np.bool_]:
    """[N] which of the sorted keys have enough neighbours and lie in a large enough connected piece."""
    if not len(voxel):
        return np.zeros(0, dtype=bool)
    pairs = neighbor_pairs(voxel)
    dense = np.bincount(pairs.reshape(-1), minlength=len(voxel)) >= min_neighbors
    pairs = pairs[dense[pairs].all(axis=1)]
    graph = coo_matrix((np.ones(len(pairs), dtype=bool), pairs.T), shape=(len(voxel), len(voxel)))
    _, piece = connected_components(graph, directed=False)
    return dense & (np.bincount(piece)[piece] >= min_component)


def _weigh(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of `back_project` with everything but the weight multiplied by it."""
    return np.column_stack([rows[:, :9] * rows[:, 9:], rows[:, 9]])


def _sum_in_voxels(keys: NDArray[np.int64], rows: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sums of the rows of equal keys: (keys [K] ascending, sums [K, columns])."""
    if not len(keys):
        return keys, rows
    groups = group_keys(torch.from_numpy(keys))
    order, starts = groups.order.numpy(), groups.start[:-1].numpy()
    return keys[order[starts]], np.add.reduceat(rows[order], starts, axis=0)


def rotation_to_z(up: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest rotation [3, 3] that turns the direction `up` to +z."""
    up = np.asarray(up, dtype=np.float64) / np.linalg.norm(up)
    target = np.array([0.0, 0.0, 1.0])
    cosine = float(up @ target)
    if cosine < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    axis = np.cross(up, target)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def camera_up(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean direction of "up in the picture" (-y of the camera) of poses [F, 4, 4], unit length.

    Raises ValueError where the cameras have no common up.
    """
    mean = -np.asarray(poses)[:, :3, 1].mean(axis=0)
    length = np.linalg.norm(mean)
    if length < 0.1:
        raise ValueError("the cameras are turned every way, so they do not tell what is up; give --up-axis")
    return mean / length


def refine_up(up: NDArray[np.float64], normal: NDArray, cone_degrees: float = 25.0) -> NDArray[np.float64]:
    """`up` moved to the mean normal of floor-like surfaces: those within a cone that narrows to 5 degrees.

    Unchanged where fewer than 1 % of the points lie within the cone.
    """
    for degrees in np.geomspace(cone_degrees, 5.0, 6):
        near = normal[normal @ up > np.cos(np.radians(degrees))]
        if len(near) < 0.01 * len(normal):
            return up
        up = near.mean(axis=0)
        up = up / np.linalg.norm(up)
    return up.astype(np.float64)


def choose_up(folder: RGBDFolder, cloud: FusedCloud, axis: str) -> tuple[NDArray[np.float64], str]:
    """(the up direction in the world of the poses, why): `axis`, one of AXES; "camera" guesses from the pictures;
    "auto" does so where the kind of folder does not tell."""
    if axis in AXES:
        return AXES[axis], "as --up-axis says"
    seen = camera_up(np.stack([frame.pose for frame in folder.frames]))
    if axis == "camera" or folder.up is None:
        return refine_up(seen, cloud.normal), "guessed from the mean camera and the flattest surfaces"
    angle = np.degrees(np.arccos(np.clip(seen @ folder.up, -1, 1)))
    doubt = f" (but the cameras' own up is {angle:.0f} degrees away: is it right?)" if angle > 60 else ""
    return folder.up, folder.up_source + doubt
