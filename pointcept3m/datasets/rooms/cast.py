"""Rays against a room's triangles: embree where it is installed, else by brute force, and it says so."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pointcept3m.datasets.rooms.layout import Room
from pointcept3m.datasets.rooms.texture import MaterialTable

_BLOCK = 1 << 18


@dataclass
class Surface:
    """All triangles of a room: face_* arrays are per triangle, object_* per object. Metres, world axes."""

    vertices: np.ndarray  # [V, 3] float32
    faces: np.ndarray  # [F, 3] int32
    face_object: np.ndarray  # [F] int64
    face_material: np.ndarray  # [F] int64
    face_normal: np.ndarray  # [F, 3] float32, outward
    face_point: np.ndarray  # [F, 3] float32, one corner
    object_rotation: np.ndarray  # [O, 3, 3] float32
    object_translation: np.ndarray  # [O, 3] float32
    materials: MaterialTable

    @classmethod
    def of(cls, room: Room) -> "Surface":
        """The triangles of all objects of a room, in the order of the objects."""
        objects = room.objects
        starts = np.cumsum([0] + [len(o.vertices) for o in objects])
        vertices = np.concatenate([o.vertices for o in objects])
        faces = np.concatenate([o.faces + s for o, s in zip(objects, starts, strict=False)])
        corner = vertices[faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        keep = length[:, 0] > 1e-12
        counts = [len(o.faces) for o in objects]
        return cls(
            vertices.astype(np.float32), faces[keep].astype(np.int32), np.repeat(np.arange(len(objects)), counts)[keep],
            np.concatenate([o.face_material for o in objects])[keep], (normal / np.maximum(length, 1e-12))[keep].astype(np.float32),
            corner[keep, 0].astype(np.float32), np.array([o.rotation for o in objects], np.float32),
            np.array([o.translation for o in objects], np.float32), MaterialTable(room.materials, room.seed),
        )  # fmt: skip

    def albedo(self, face: np.ndarray, point: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colour without light of points [N, 3] on triangles [N], float32 [N, 3] in 0..1; footprint: pixel width there."""
        out = np.empty((len(face), 3), np.float32)
        for i in range(0, len(face), _BLOCK):  # blocks stay in cache and keep memory level
            f, p = face[i : i + _BLOCK], point[i : i + _BLOCK]
            owner = self.face_object[f]
            rotation = self.object_rotation[owner]
            local = np.einsum("nij,ni->nj", rotation, p - self.object_translation[owner])
            normal = np.einsum("nij,ni->nj", rotation, self.face_normal[f])
            out[i : i + _BLOCK] = self.materials.albedo(self.face_material[f], local, normal, footprint[i : i + _BLOCK])
        return out


class RayCaster:
    """First hits and occlusion of rays among the triangles of a `Surface`."""

    def __init__(self, surface: Surface):
        self.surface = surface
        self._run, self.backend = _embree(surface) or _brute_force(surface)

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(face [N] int64, -1 none; distance [N] float32, in lengths of direction) of rays [N, 3], the first hit of each."""
        face = self._run(origin, direction, None)
        seen = np.flatnonzero(face >= 0)
        distance = np.zeros(len(face), np.float32)
        f = face[seen]
        # From the plane of the triangle, so that the distance does not depend on the tracer's arithmetic.
        normal = self.surface.face_normal[f]
        above = np.einsum("ni,ni->n", self.surface.face_point[f] - origin[seen], normal)
        slope = np.einsum("ni,ni->n", direction[seen], normal)
        distance[seen] = above / np.where(np.abs(slope) < 1e-6, 1e-6, slope)
        face[seen[(distance[seen] <= 0) | ~np.isfinite(distance[seen])]] = -1
        distance[face < 0] = 0
        return face, distance

    def blocked(self, origin: np.ndarray, target: np.ndarray, slack: float = 0.01) -> np.ndarray:
        """bool [N]: whether something lies between origin [N, 3] and target [N, 3], `slack` metres before it excepted."""
        step = target - origin
        length = np.linalg.norm(step, axis=1)
        reach = np.maximum(length - slack, 0).astype(np.float32)
        return self._run(origin, step / np.maximum(length, 1e-6)[:, None], reach) >= 0


Run = Callable[[np.ndarray, np.ndarray, "np.ndarray | None"], np.ndarray]


def _embree(surface: Surface) -> tuple[Run, str] | None:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError:
        return None
    scene = EmbreeScene()
    mesh = TriangleMesh(scene, surface.vertices, surface.faces)

    def run(origin: np.ndarray, direction: np.ndarray, reach: np.ndarray | None, _mesh: object = mesh) -> np.ndarray:
        if not len(origin):
            return np.zeros(0, np.int64)
        origin, direction = np.ascontiguousarray(origin, np.float32), np.ascontiguousarray(direction, np.float32)
        if reach is None:
            return scene.run(origin, direction).astype(np.int64)
        return np.where(scene.run(origin, direction, dists=reach, query="OCCLUDED") == 0, 0, -1)

    return run, "embree"


def _brute_force(surface: Surface) -> tuple[Run, str]:
    """Every ray against every triangle by Pluecker coordinates: a ray passes inside where all three edge products agree."""
    warnings.warn(
        "embreex is not installed, so rooms are rendered by testing every ray against every triangle, "
        "some hundred times slower; 'pip install embreex' mends it (x86-64 has wheels)",
        stacklevel=5,
    )
    corner = surface.vertices[surface.faces].astype(np.float64)
    edge = np.roll(corner, -1, axis=1) - corner
    moment = np.cross(corner, edge)
    lines = np.concatenate([moment, edge], axis=2).transpose(2, 1, 0).reshape(6, -1)  # [6, 3 F]
    normal = np.cross(edge[:, 0], edge[:, 1])
    height = np.einsum("fi,fi->f", normal, corner[:, 0])

    def run(origin: np.ndarray, direction: np.ndarray, reach: np.ndarray | None) -> np.ndarray:
        out = np.full(len(origin), -1, np.int64)
        for i in range(0, len(origin), 512):
            o, d = origin[i : i + 512].astype(np.float64), direction[i : i + 512].astype(np.float64)
            side = (np.concatenate([d, np.cross(o, d)], axis=1) @ lines).reshape(len(o), 3, -1)
            inside = (side >= 0).all(axis=1) | (side <= 0).all(axis=1)
            slope = d @ normal.T
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (height - o @ normal.T) / slope
            t = np.where(inside & (t > 0) & (slope != 0), t, np.inf)
            face = t.argmin(axis=1)
            limit = np.inf if reach is None else reach[i : i + 512]
            best = t[np.arange(len(o)), face]
            out[i : i + 512] = np.where((best < np.inf) & (best <= limit), face, -1)
        return out

    return run, "brute force"
