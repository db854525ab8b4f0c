"""What an RGB-D camera sees of a room: light, colour and depth, with the faults of a real sensor."""

from dataclasses import dataclass

import numpy as np

from pointcept3m.datasets.rooms.camera import draw_intrinsic, plan_path
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.layout import Room
from pointcept3m.structures.camera import pixel_rays

MAX_DEPTH = 8.0  # metres a depth sensor reaches
_AO_REACH = 0.7  # metres within which neighbours darken a corner
_AO_RAYS = 2


@dataclass
class Frames:
    """M posed pictures of one camera.

    intrinsic [3, 3] float64 · pose [M, 4, 4] float64 camera->world · rgb [M, H, W, 3] uint8 · depth [M, H, W] uint16
    millimetres, 0 where the sensor saw nothing · true_depth [M, H, W] float32 metres without noise
    · instance [M, H, W] int32 id of the object in each pixel, -1 none.
    """

    intrinsic: np.ndarray
    pose: np.ndarray
    rgb: np.ndarray
    depth: np.ndarray
    true_depth: np.ndarray
    instance: np.ndarray


class Light:
    """The lamps and windows of a room, and how bright they make its surfaces."""

    def __init__(self, room: Room, caster: RayCaster):
        self.caster = caster
        rng = room.rng(31)
        sources = []  # position, colour times strength, reach of the fall-off
        night = 1.3 - 0.6 * room.daylight
        for lamp in room.lamps:
            warm = rng.uniform(0.75, 1.0)
            sources.append((lamp, np.array([1.0, 0.55 + 0.45 * warm, 0.2 + 0.8 * warm]) * rng.uniform(0.8, 1.3) * night, 2.5))
        windows = [o for o in room.objects if o.category == "window"]
        for window in windows[:2] if room.daylight else []:
            middle = window.box.mean(axis=0) + window.rotation[:, 1] * 0.3
            sources.append((middle, np.array([0.85, 0.95, 1.1]) * 1.1 * room.daylight, 2.0))
        self.sources = [(np.asarray(p, np.float32), np.asarray(c, np.float32), reach) for p, c, reach in sources]
        self.ambient = np.float32(rng.uniform(0.16, 0.32)) * np.array([1.0, 0.98, 0.96], np.float32)

    def irradiance(self, point: np.ndarray, normal: np.ndarray, openness: np.ndarray) -> np.ndarray:
        """Light that falls on points [N, 3] with normals [N, 3], float32 [N, 3]; openness [N] in 0..1 dims the ambient share."""
        point = point.astype(np.float32)
        lifted = point + 0.004 * normal
        # Surfaces that look up get a little more of the diffuse light than those that look down.
        total = self.ambient * ((0.85 + 0.15 * normal[:, 2]) * openness)[:, None]
        for position, color, reach in self.sources:
            step = position - point
            distance = np.linalg.norm(step, axis=1)
            lambert = np.einsum("ni,ni->n", step, normal) / np.maximum(distance, 0.05)
            lit = np.flatnonzero(lambert > 0)
            blocked = self.caster.blocked(np.broadcast_to(position, (len(lit), 3)), lifted[lit], slack=0.004)
            strength = lambert[lit] / (1 + (distance[lit] / reach) ** 2) * np.where(blocked, 0.12, 1.0)
            total[lit] += strength[:, None] * (0.3 + 0.7 * openness[lit, None]) * color
        return total

    def openness(self, point: np.ndarray, normal: np.ndarray, rng: np.random.Generator, rays: int) -> np.ndarray:
        """Share of `rays` random short rays from each point that meet nothing near, float32 [N]: ambient occlusion."""
        free = np.zeros(len(point), np.float32)
        for _ in range(rays):
            direction = rng.standard_normal((len(point), 3), dtype=np.float32)
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            direction += normal  # cosine-weighted about the normal
            end = point + 0.01 * normal + direction * (_AO_REACH / np.maximum(np.linalg.norm(direction, axis=1), 0.1))[:, None]
            free += ~self.caster.blocked(point + 0.01 * normal, end, slack=0.0)
        return free / rays


def render_frames(room: Room, num_frames: int = 24, size: tuple[int, int] = (120, 160), caster: RayCaster | None = None,
                  pose: np.ndarray | None = None, intrinsic: np.ndarray | None = None) -> Frames:  # fmt: skip
    """RGB-D frames of a room along a walk through it, or at the given poses; the same for the same arguments.

    Args:
        size: (H, W) of the pictures.
        caster: rays against `Surface.of(room)`, to share one among calls.
        pose: camera->world [M, 4, 4] instead of a planned walk; intrinsic: [3, 3] for `size` instead of a drawn one.

    Raises: ValueError where num_frames or size is not positive.
    """
    if num_frames < 1 or min(size) < 1:
        raise ValueError(f"wanted at least one frame and pixel, got num_frames={num_frames}, size={size}")
    rng = room.rng(41)
    caster = caster or RayCaster(Surface.of(room))
    drawn = draw_intrinsic(rng, size)
    intrinsic = drawn if intrinsic is None else np.asarray(intrinsic, np.float64)
    if pose is None:
        pose = plan_path(room, caster, num_frames, intrinsic, size, rng)
    light = Light(room, caster)
    exposure = Exposure(rng)
    shots = [_shoot(one, intrinsic, size, caster, light, rng) for one in pose]
    brightness = np.mean([np.log(np.maximum(radiance, 1e-3)).mean() for radiance, *_ in shots])
    stack = [
        (exposure.develop(radiance, brightness, rng), sense_depth(depth, slope, rng), depth, instance)
        for radiance, depth, slope, instance in shots
    ]
    rgb, millimetres, true_depth, instance = (np.stack(column) for column in zip(*stack, strict=True))
    return Frames(intrinsic, np.asarray(pose, np.float64), rgb, millimetres, true_depth, instance)


def _shoot(pose: np.ndarray, intrinsic: np.ndarray, size: tuple[int, int], caster: RayCaster, light: Light,
           rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(radiance [H, W, 3], depth [H, W] metres, cosine to the surface [H, W], object id [H, W]) of one view."""
    surface = caster.surface
    direction = pixel_rays(size, intrinsic).astype(np.float32).reshape(-1, 3) @ pose[:3, :3].T.astype(np.float32)
    origin = np.broadcast_to(pose[:3, 3].astype(np.float32), direction.shape)
    face, depth = caster.hit(origin, direction)
    seen = np.flatnonzero(face >= 0)
    f = face[seen]
    point = origin[seen] + direction[seen] * depth[seen, None]
    length = np.linalg.norm(direction[seen], axis=1)
    normal = surface.face_normal[f]
    facing = np.einsum("ni,ni->n", normal, direction[seen]) / length
    normal = np.where(facing[:, None] > 0, -normal, normal)
    cosine = np.zeros(len(face), np.float32)
    cosine[seen] = np.abs(facing)
    footprint = depth[seen] / np.float32(intrinsic[0, 0]) / np.maximum(np.abs(facing), 0.25)
    free = light.openness(point, normal, rng, _AO_RAYS)
    openness = np.ones(len(face), np.float32)
    openness[seen] = free
    openness = _smooth_within(openness.reshape(size), face.reshape(size), surface)
    radiance = np.zeros((len(face), 3), np.float32)
    albedo = surface.albedo(f, point, footprint)
    shine = surface.materials.emission[surface.face_material[f]][:, None]
    radiance[seen] = albedo * (light.irradiance(point, normal, openness.reshape(-1)[seen]) + shine)
    instance = np.full(len(face), -1, np.int32)
    instance[seen] = surface.face_object[f]
    return radiance.reshape(*size, 3), depth.reshape(size), cosine.reshape(size), instance.reshape(size)


def _smooth_within(values: np.ndarray, face: np.ndarray, surface: Surface, radius: int = 3) -> np.ndarray:
    """Mean of `values` [H, W] over a window, taken only from pixels of the same object and orientation."""
    normal = np.round(surface.face_normal * 4).astype(np.int64) @ [1, 100, 10000]
    group = np.where(face >= 0, surface.face_object[face] * 1_000_000 + normal[face], -1)
    total, count = values.copy(), np.ones_like(values)
    h, w = values.shape
    for axis, extent in ((0, h), (1, w)):  # one pass down, one across: a box filter in two cheap steps
        mean, weight = total.copy(), count.copy()
        for shift in range(1, radius + 1):
            a = [slice(None)] * 2
            b = [slice(None)] * 2
            a[axis], b[axis] = slice(shift, extent), slice(0, extent - shift)
            a, b = tuple(a), tuple(b)
            same = group[a] == group[b]
            mean[a] += same * total[b]
            weight[a] += same * count[b]
            mean[b] += same * total[a]
            weight[b] += same * count[a]
        total, count = mean, weight
    return total / count


class Exposure:
    """The colour side of a camera: exposure that follows the scene, white balance, vignette, blur, noise, gamma."""

    def __init__(self, rng: np.random.Generator):
        self.balance = np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
        self.noise = float(rng.uniform(0.004, 0.012))
        self.vignette = float(rng.uniform(0.0, 0.25))
        self.key = float(rng.uniform(0.28, 0.42))

    def gain(self, log_brightness: float) -> float:
        """Factor that brings a mean log radiance to this camera's medium grey."""
        return self.key * 0.55 / float(np.exp(log_brightness))

    def develop(self, radiance: np.ndarray, room_brightness: float, rng: np.random.Generator) -> np.ndarray:
        """An 8-bit picture [H, W, 3] of a radiance map [H, W, 3]; `room_brightness`: mean log radiance of all frames."""
        h, w = radiance.shape[:2]
        own = np.log(np.maximum(radiance, 1e-3)).mean()
        gain = self.gain(0.6 * room_brightness + 0.4 * own) * np.exp(rng.normal(0, 0.05))
        rows, cols = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        fall = (1 - self.vignette * (rows**2 + cols**2) / 2).astype(np.float32)
        image = _soften(radiance) * (self.balance * gain) * fall[..., None]
        image = image * 1.15 / (1 + 0.15 * image)  # highlights roll off instead of clipping hard
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * (self.noise * (0.5 + np.sqrt(np.maximum(image, 0))))
        return to_srgb(image)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light to 8-bit colour with gamma 2.2, rounded and clipped, uint8 of the same shape."""
    return np.round(255 * np.clip(linear, 0, 1) ** (1 / 2.2)).astype(np.uint8)


def _soften(image: np.ndarray) -> np.ndarray:
    """The slight blur of a lens: a [1 6 1] / 8 filter down and across."""
    padded = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode="edge")
    image = (padded[:-2] + 6 * padded[1:-1] + padded[2:]) / 8
    padded = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return (padded[:, :-2] + 6 * padded[:, 1:-1] + padded[:, 2:]) / 8


def sense_depth(depth: np.ndarray, cosine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a depth sensor reports, uint16 millimetres: noise that grows with z^2, holes at grazing angles and edges.

    depth [H, W] metres, 0 none; cosine [H, W]: of the angle between ray and normal. The noise is that of a Kinect:
    1.2 mm + 1.9 mm (z - 0.4)^2, z in metres (Nguyen, Izadi, Lovell, 3DIMPVT 2012).
    """
    sigma = 0.0012 + 0.0019 * (depth - 0.4) ** 2
    noisy = depth + rng.standard_normal(depth.shape, dtype=np.float32) * sigma
    lost = rng.random(depth.shape, dtype=np.float32)
    graze = np.clip(1 - cosine / 0.22, 0, 1) * 0.9 + 0.003
    step = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        jump = np.abs(np.diff(depth, axis=axis)) > 0.08 + 0.06 * np.minimum(*_pairs(depth, axis))
        pad = [(0, 0), (0, 0)]
        pad[axis] = (0, 1)
        step |= np.pad(jump, pad)
    gone = (lost < graze) | (step & (lost < 0.45)) | (depth <= 0) | (depth > MAX_DEPTH)
    return np.where(gone, 0, np.clip(np.round(noisy * 1000), 1, 65534)).astype(np.uint16)


def _pairs(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    return (values[1:], values[:-1]) if axis == 0 else (values[:, 1:], values[:, :-1])
