"""CAD models: triangle meshes from files, and points on their surfaces."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import near_files

SUFFIXES = (".obj", ".ply", ".stl", ".off", ".glb", ".gltf")


def read_mesh(path: str | Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(vertices [V, 3], faces [F, 3]) of a mesh file, the parts of a scene joined, in its own axes and unit.

    Raises: FileNotFoundError; ImportError where trimesh is missing; ValueError naming the file where it cannot be read, has no
        faces, or a vertex is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mesh; {near_files(path)}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: wanted a mesh ({', '.join(SUFFIXES)}), got {path.suffix or 'no ending'}")
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("reading meshes needs trimesh: pip install trimesh") from error
    try:
        mesh = trimesh.load(path, force="mesh", process=False, skip_materials=True)
        vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(getattr(mesh, "faces", np.zeros((0, 3))), dtype=np.int64)
    except Exception as error:  # trimesh's readers raise whatever they stumble over
        raise ValueError(f"{path}: not a readable mesh ({type(error).__name__}: {error})") from error
    if not len(faces):
        raise ValueError(f"{path}: a mesh without faces has no surface; wanted triangles")
    if not np.isfinite(vertices).all():
        raise ValueError(f"{path}: {int((~np.isfinite(vertices).all(axis=1)).sum())} of {len(vertices)} vertices are not finite")
    return vertices, faces


def sample_surface(vertices: NDArray, faces: NDArray, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Points float32 [count, 3], uniform over the area of triangles faces [F, 3] of vertices [V, 3].

    Raises: ValueError where there is no face, or none has an area.
    """
    corner = np.asarray(vertices, dtype=np.float64)[np.asarray(faces)] if len(faces) else np.zeros((0, 3, 3))
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    if not area.sum() > 0:
        raise ValueError(f"a mesh of {len(corner)} faces has no area to take points from")
    # The ends of the triangles on a line as long as the whole area.
    row = np.searchsorted(np.cumsum(area), rng.random(count) * area.sum(), side="right").clip(max=len(area) - 1)
    u, v = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    return np.einsum("nk,nkd->nd", weights, corner[row]).astype(np.float32)
