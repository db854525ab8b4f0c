"""Cuboid-normalised anchors: where a scene lies in the unit cube, and which voxel a point falls into.

Source: GaussianCross Sec. 3.2, Eq. 6. The paper follows PonderV2: one uniform scale per scene, so that relative
positions are preserved, and an unequal number of cells per axis.
"""

import torch
from torch import Tensor


def cuboid_affine(coord: Tensor, keep_aspect: bool = True, margin: float = 0.02) -> Tensor:
    """The map I of Eq. 6, which takes a scene's points into the unit cube, as a 4x4 affine matrix (float32).

    coord [N, 3] in any unit. With `keep_aspect` one scale serves the three axes and the scene stands on the floor
    of the cube (z), centred in x and y; without, each axis is stretched to fill the cube. `margin` is the share of
    the cube left free at each side, where Gaussians may still be placed.
    Raises: ValueError for an empty scene or coordinates that are not finite.
    """
    if len(coord) == 0:
        raise ValueError("cuboid_affine: the scene has no points")
    low, high = coord.amin(0).double(), coord.amax(0).double()
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError("cuboid_affine: coordinates must be finite")
    extent = (high - low).clamp(min=1e-6)
    scale = (1 - 2 * margin) / (extent.max().expand(3) if keep_aspect else extent)
    shift = 0.5 - scale * (low + high) / 2
    if keep_aspect:
        shift[2] = margin - scale[2] * low[2]
    return _affine(scale, shift)


def metric_affine(coord: Tensor, side: float) -> Tensor:
    """The variant without cuboid normalisation (Fig. 3): a cube of `side` coordinate units around every scene.

    The scale is the same for all scenes, so a small room fills a corner of the volume and a large one is cut off.
    coord [N, 3]; returns a 4x4 affine matrix. The scene stands on the floor of the cube, centred in x and y.
    Raises: ValueError for an empty scene.
    """
    if len(coord) == 0:
        raise ValueError("metric_affine: the scene has no points")
    low, high = coord.amin(0).double(), coord.amax(0).double()
    scale = torch.full_like(low, 1 / side)
    shift = 0.5 - scale * (low + high) / 2
    shift[2] = -scale[2] * low[2]
    return _affine(scale, shift)


def _affine(scale: Tensor, shift: Tensor) -> Tensor:
    affine = torch.eye(4, dtype=torch.float64, device=scale.device)
    affine[:3, :3] = torch.diag(scale)
    affine[:3, 3] = shift
    return affine.float()


def voxel_index(unit: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The flat voxel index `id` of each point (Eq. 6, 7), and which points lie inside the cube.

    unit [N, 3] coordinates in the unit cube; returns ids [N] int64 = (x * Y + y) * Z + z, clamped into the volume,
    and inside [N] bool.
    """
    cells = torch.tensor(shape, device=unit.device)
    cell = (unit * cells).floor().long()
    inside = ((unit >= 0) & (unit <= 1)).all(-1)
    cell = cell.clamp(min=torch.zeros_like(cells), max=cells - 1)
    return (cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2], inside


def voxel_centers(shape: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """The voxel centres C_v (Eq. 6) in the unit cube, [X * Y * Z, 3] float32, in the order of `voxel_index`."""
    axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
