"""The scanned point cloud of a room: what the cameras could see of its surfaces, with a scanner's noise."""

from dataclasses import dataclass

import numpy as np

from pointcept3m.datasets.rooms.camera import plan_path
from pointcept3m.datasets.rooms.cast import RayCaster
from pointcept3m.datasets.rooms.layout import Room
from pointcept3m.datasets.rooms.render import Frames, Light, to_srgb

COORD_NOISE = 0.004  # metres
_SCAN_REACH = 6.0  # metres from which a scanner still adds to the surface
_TRIES = 4  # cameras asked for each point


@dataclass
class Cloud:
    """N points: coord [N, 3] float32 metres · color [N, 3] uint8 · normal [N, 3] float32, towards the viewer
    · instance [N] int32 object id."""

    coord: np.ndarray
    color: np.ndarray
    normal: np.ndarray
    instance: np.ndarray


def scan_cloud(room: Room, frames: Frames, caster: RayCaster, spacing: float = 0.025) -> Cloud:
    """Points about `spacing` metres apart on all surfaces seen by the frames or by as many views again in between.

    What no view sees stays a hole. Raises: ValueError where spacing is not positive.
    """
    if spacing <= 0:
        raise ValueError(f"spacing must be positive metres, got {spacing}")
    rng = room.rng(51)
    size = frames.depth.shape[1:]
    more = plan_path(room, caster, max(8, len(frames.pose)), frames.intrinsic, size, rng)
    poses = np.concatenate([frames.pose, more])
    point, face = sample_surface(caster, spacing, rng)
    keep = thin(point, caster.surface.face_normal[face], spacing, rng)
    point, face = point[keep], face[keep]
    viewer = find_viewer(point, caster.surface.face_normal[face], poses, frames.intrinsic, size, caster)
    seen = np.flatnonzero(viewer >= 0)
    point, face, viewer = point[seen], face[seen], viewer[seen]
    normal = caster.surface.face_normal[face]
    towards = poses[viewer, :3, 3] - point
    normal = np.where(np.einsum("ni,ni->n", normal, towards)[:, None] < 0, -normal, normal)
    color = color_points(room, caster, point, normal, face, frames)
    noise = rng.standard_normal(point.shape, dtype=np.float32) * COORD_NOISE
    tilt = rng.standard_normal(point.shape, dtype=np.float32) * 0.06
    bent = normal + tilt
    bent /= np.linalg.norm(bent, axis=1, keepdims=True)
    return Cloud(
        (point + noise).astype(np.float32), color, bent.astype(np.float32), caster.surface.face_object[face].astype(np.int32)
    )


def sample_surface(caster: RayCaster, spacing: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(point [N, 3] float32, face [N] int64): random points on all triangles, 1.4 for each square of `spacing`."""
    surface = caster.surface
    corner = surface.vertices[surface.faces].astype(np.float64)
    side_a, side_b = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    expected = 0.5 * np.linalg.norm(np.cross(side_a, side_b), axis=1) * 1.4 / spacing**2
    count = np.floor(expected + rng.random(len(expected))).astype(np.int64)
    face = np.repeat(np.arange(len(count)), count)
    a, b = rng.random((2, len(face)))
    flip = a + b > 1
    a, b = np.where(flip, 1 - a, a), np.where(flip, 1 - b, b)
    point = corner[face, 0] + a[:, None] * side_a[face] + b[:, None] * side_b[face]
    return point.astype(np.float32), face


def find_viewer(point: np.ndarray, normal: np.ndarray, poses: np.ndarray, intrinsic: np.ndarray, size: tuple[int, int],
                caster: RayCaster) -> np.ndarray:  # fmt: skip
    """int64 [N]: a pose that sees each point [N, 3] from its outer side, -1 where none of the best few does."""
    best_score = np.full((_TRIES, len(point)), -1.0, np.float32)
    best_pose = np.full((_TRIES, len(point)), -1, np.int16)
    homogeneous = np.concatenate([point.T, np.ones((1, len(point)), np.float32)])
    for k, pose in enumerate(poses):
        world_to_pixel = (intrinsic @ np.linalg.inv(pose)[:3]).astype(np.float32)
        u, v, z = world_to_pixel @ homogeneous  # u and v still times z
        at = np.flatnonzero((z > 0.3) & (z < _SCAN_REACH) & (u >= 0) & (u < size[1] * z) & (v >= 0) & (v < size[0] * z))
        step = pose[:3, 3].astype(np.float32) - point[at]
        facing = np.einsum("ni,ni->n", step, normal[at]) / np.sqrt(np.einsum("ni,ni->n", step, step))
        toward = np.flatnonzero(facing > 0.08)
        at, facing = at[toward], facing[toward]
        # A factor that differs among poses spreads the choice, so that one occluder does not hide all tries.
        score = facing / (0.6 + z[at]) * np.float32(0.6 + 0.4 * ((k * 7919) % 97) / 97)
        rank = k % _TRIES  # each try draws from its own quarter of the cameras
        better = np.flatnonzero(score > best_score[rank, at])
        best_score[rank, at[better]] = score[better]
        best_pose[rank, at[better]] = k
    viewer = np.full(len(point), -1, np.int64)
    for rank in range(_TRIES):
        ask = np.flatnonzero((viewer < 0) & (best_pose[rank] >= 0))
        pose = best_pose[rank, ask].astype(np.int64)
        eye = poses[pose, :3, 3].astype(np.float32)
        free = ~caster.blocked(eye, point[ask] + 0.002 * normal[ask], slack=0.004)
        viewer[ask[free]] = pose[free]
    return viewer


def thin(point: np.ndarray, normal: np.ndarray, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices [K] of one random point for each cell of `spacing` metres and each of six directions of the normal."""
    order = rng.permutation(len(point))
    point, normal = point[order], normal[order]
    axis = np.abs(normal).argmax(axis=1)
    side = 2 * axis + (normal[np.arange(len(normal)), axis] > 0)
    cell = np.floor(point / np.float32(spacing)).astype(np.int64) + (1 << 19)
    key = (side << 60) | (cell[:, 0] << 40) | (cell[:, 1] << 20) | cell[:, 2]
    return np.sort(order[np.unique(key, return_index=True)[1]])


def color_points(room: Room, caster: RayCaster, point: np.ndarray, normal: np.ndarray, face: np.ndarray, frames: Frames) -> np.ndarray:
    """Colour of surface points as the cameras show them on average, uint8 [N, 3].

    Lit like the frames, then brought to their mean brightness and tint channel by channel.
    """
    light = Light(room, caster)
    rng = room.rng(61)
    openness = light.openness(point, normal, rng, 8)
    surface = caster.surface
    shine = surface.materials.emission[surface.face_material[face]][:, None]
    footprint = np.full(len(point), 0.015, np.float32)
    radiance = surface.albedo(face, point, footprint) * (light.irradiance(point, normal, openness) + shine)
    shown = (frames.rgb.reshape(-1, 3)[::7] / np.float32(255)) ** np.float32(2.2)
    gain = np.median(shown, axis=0) / np.maximum(np.median(radiance, axis=0), 1e-3)
    noise = rng.standard_normal(radiance.shape, dtype=np.float32) * 0.01
    return to_srgb(np.minimum(radiance * gain, 1.0) + noise)
