"""Normals of a cloud that came without: planes through the nearest points, turned to the side that was seen."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointcept3m.datasets.tiles import cut_tiles
from pointcept3m.ops.neighbours import knn_query
from pointcept3m.ops.voxelize import group_keys, voxelize

BLOCK = 400_000  # points whose neighbours are held at a time
AREA_CELL, CENTRE_CELL, CENTRE_REACH = 0.25, 0.5, 4  # metres, metres, cells: the open side is looked for within 2 m


def estimate_normals(coord: NDArray[np.float32], neighbours: int = 16) -> NDArray[np.float32]:
    """Unit normals [N, 3] float32 of points [N, 3] in metres: the direction of least variance of the nearest points.

    The sign: towards the middle of the surfaces within 2 m, weighed by area. A scanner stands inside, and walls,
    floors and furniture are arranged around it; so do the normals of meshes and of this project's rooms point.
    Fewer than three different points have no plane and get (0, 0, 1).

    Source: Hoppe et al., "Surface reconstruction from unorganized points", SIGGRAPH 1992 (the plane).
    """
    coord = np.ascontiguousarray(coord, np.float32)
    if not len(coord):
        return coord.copy()
    normal = np.empty_like(coord)
    for tile in cut_tiles(coord, np.ones(len(coord), np.uint8), BLOCK, 0.0):
        normal[tile.rows] = _planes(coord, tile.rows, neighbours)
    inward = local_centre(coord) - coord
    side = np.einsum("nc,nc->n", normal, inward)
    normal[side < 0] *= -1
    return normal


def _planes(coord: NDArray[np.float32], rows: NDArray, neighbours: int) -> NDArray[np.float32]:
    """Normals of the points `rows`, signs as they fall; neighbours come from a little beyond them too."""
    inside = coord[rows]
    reach = 0.5
    near = rows
    if len(rows) < len(coord):
        low, high = inside.min(axis=0) - reach, inside.max(axis=0) + reach
        near = np.flatnonzero(((coord >= low) & (coord <= high)).all(axis=1))
    cloud, query = torch.from_numpy(coord[near]), torch.from_numpy(inside)
    number = min(neighbours, len(near))
    idx, _ = knn_query(number, cloud, torch.tensor([len(cloud)]), query, torch.tensor([len(query)]))
    parts = [_least_direction(cloud, part) for part in idx.long().split(1 << 16)]
    return torch.cat(parts).numpy()


def _least_direction(cloud: Tensor, idx: Tensor) -> Tensor:
    points = cloud[idx].double()
    points = points - points.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(points.transpose(1, 2) @ points)
    normal = vectors[:, :, 0].float()
    normal[values[:, 1] <= 1e-12] = torch.tensor([0.0, 0.0, 1.0])  # a line or a point
    return normal


def local_centre(coord: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 3] the centre of area of the surfaces within some 2 m of each point, the same for a cell of 0.5 m.

    Area is counted by occupied cells of 0.25 m, so that a dense part of the scan does not weigh more.
    """
    cells = voxelize(torch.from_numpy(coord), AREA_CELL)
    patch = coord[cells.order[cells.start[:-1]].numpy()].astype(np.float64)  # a point of each patch stands for it
    block = np.floor(patch / CENTRE_CELL).astype(np.int64)
    block -= block.min(axis=0) - CENTRE_REACH
    size = block.max(axis=0) + CENTRE_REACH + 1
    keys = (block[:, 0] * size[1] + block[:, 1]) * size[2] + block[:, 2]
    groups = group_keys(torch.from_numpy(keys))
    order, start, inverse = (part.numpy() for part in groups)
    unique = keys[order[start[:-1]]]
    sums = np.add.reduceat(np.column_stack([patch, np.ones(len(patch))])[order], start[:-1], axis=0)
    # a box sum, one axis after the other, would need the empty blocks too; the offsets are few
    total = np.zeros_like(sums)
    reach = range(-CENTRE_REACH, CENTRE_REACH + 1)
    for x in reach:
        for y in reach:
            for z in reach:
                if x * x + y * y + z * z > CENTRE_REACH**2:
                    continue
                wanted = unique + (x * size[1] + y) * size[2] + z
                at = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
                total += sums[at] * (unique[at] == wanted)[:, None]
    centre = (total[:, :3] / total[:, 3:]).astype(np.float32)
    return centre[inverse][cells.inverse.numpy()]
