"""Masks of objects in posed pictures, from a labelled mesh by casting rays.

For data sets that label the reconstruction alone (3RScan, ARKitScenes, MultiScan). A pixel shows the object that its ray meets
first. CrossOver's release casts rays the same way. Cameras here are pinholes as everywhere: intrinsic [3, 3] pixels of pictures
whose first pixel has its centre at (0.5, 0.5), pose [4, 4] camera->world, x right, y down, z forward.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pointcept3m.structures.camera import SizeHW, pixel_rays

NONE = -1


class View(NamedTuple):
    """A camera: intrinsic [3, 3] for pictures of `size` (H, W), pose [4, 4] camera->world."""

    intrinsic: NDArray
    pose: NDArray
    size: SizeHW


class LabelledMesh:
    """A triangle mesh whose vertices or faces have ids, ready to be looked at from many cameras.

    Args:
        vertices: [V, 3] metres. faces: [F, 3] integers.
        vertex_id: [V] integers; a pixel takes that of the hit triangle's corner that is nearest to the hit.
        face_id: [F] integers, in place of vertex_id.

    Raises: ValueError where shapes do not fit, a face names a vertex that is not there, or no face has an area; ImportError
        without embreex.
    """

    def __init__(self, vertices: ArrayLike, faces: ArrayLike, vertex_id: ArrayLike | None = None, face_id: ArrayLike | None = None) -> None:
        vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int64)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(f"wanted vertices [V, 3] and faces [F, 3], got {list(vertices.shape)} and {list(faces.shape)}")
        if (vertex_id is None) == (face_id is None):
            raise ValueError("a labelled mesh needs vertex_id or face_id, one of them")
        ids = np.asarray(vertex_id if face_id is None else face_id)
        wanted = len(vertices) if face_id is None else len(faces)
        if ids.shape != (wanted,) or ids.dtype.kind not in "iu":
            raise ValueError(f"wanted {wanted} whole numbers as {'vertex_id' if face_id is None else 'face_id'}, got {ids.dtype} {list(ids.shape)}")
        if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise ValueError(f"faces name vertices {faces.min()} to {faces.max()}, there are {len(vertices)}")
        corner = vertices[faces].astype(np.float64)
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        # Embree answers with numbers of the faces it was given, and knows nothing of those without an area or with a hole in it.
        good = np.isfinite(corner).all(axis=(1, 2)) & (np.linalg.norm(normal, axis=1) > 1e-12)
        if not good.any():
            raise ValueError(f"none of {len(faces)} faces has an area, so no ray can meet one")
        self._corner, self._normal = corner[good], normal[good]
        self._id = ids[faces[good]] if face_id is None else ids[good]
        used, place = np.unique(faces[good], return_inverse=True)
        self._cast = _embree(vertices[used], place.reshape(-1, 3))

    def look(self, view: View) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(ids int64 [H, W], -1 where a ray meets nothing; depth float32 [H, W] metres along the camera's axis, 0 there)."""
        height, width = view.size
        pose = np.asarray(view.pose, np.float64)
        ray = pixel_rays(view.size, view.intrinsic).reshape(-1, 3) @ pose[:3, :3].T
        origin = pose[:3, 3]
        face = self._cast(np.broadcast_to(origin, ray.shape), ray)
        seen = np.flatnonzero(face >= 0)
        # From the triangle's plane, as the tracer's own distances are of its float32 arithmetic. The rays' length is depth 1.
        hit, ray, normal = face[seen], ray[seen], self._normal[face[seen]]
        slope = np.einsum("nd,nd->n", ray, normal)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.einsum("nd,nd->n", self._corner[hit, 0] - origin, normal) / slope
        good = np.isfinite(distance) & (distance > 0)
        seen, hit, distance, ray = seen[good], hit[good], distance[good], ray[good]
        ids, depth = np.full(height * width, NONE, np.int64), np.zeros(height * width, np.float32)
        depth[seen] = distance
        if self._id.ndim == 1:
            ids[seen] = self._id[hit]
        else:
            point = origin + ray * distance[:, None]
            nearest = ((self._corner[hit] - point[:, None]) ** 2).sum(axis=2).argmin(axis=1)
            ids[seen] = self._id[hit, nearest]
        return ids.reshape(height, width), depth.reshape(height, width)


def _embree(vertices: NDArray, faces: NDArray):
    """(origin, direction [N, 3]) -> the number of the first face [N] that each ray meets, -1 none."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise ImportError("masks of objects are made by casting rays, which needs embreex: pip install embreex") from error
    scene = EmbreeScene()
    mesh = TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))

    def cast(origin: NDArray, direction: NDArray, _mesh: object = mesh) -> NDArray[np.int64]:
        return scene.run(np.ascontiguousarray(origin, np.float32), np.ascontiguousarray(direction, np.float32)).astype(np.int64)

    return cast
