"""What a backbone asks of the batch it is given, checked once with errors that name the backbone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def packed_points(name: str, input_dict: Mapping[str, Any], in_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """grid_coord [N, 3] (integers, not negative), feat [N, in_channels] and offset [B] of a batch of at least one point.

    Raises: KeyError where one is missing, ValueError where one does not fit; each begins with `name`.
    """
    missing = [key for key in ("grid_coord", "feat", "offset") if key not in input_dict]
    if missing:
        raise KeyError(f"{name}: input_dict lacks {', '.join(missing)}; it has {', '.join(map(str, input_dict))}")
    grid_coord, feat, offset = (input_dict[key] for key in ("grid_coord", "feat", "offset"))
    if grid_coord.is_floating_point() or grid_coord.dim() != 2 or grid_coord.size(1) != 3:
        raise ValueError(
            f"{name}: grid_coord must be integers [N, 3], got {grid_coord.dtype} {tuple(grid_coord.shape)}"
        )
    num_points = grid_coord.size(0)
    if tuple(feat.shape) != (num_points, in_channels):
        raise ValueError(f"{name}: feat must be [{num_points}, {in_channels}], got {tuple(feat.shape)}")
    ends = [0, *offset.tolist()]
    if num_points == 0 or ends[-1] != num_points or any(a > b for a, b in zip(ends, ends[1:], strict=False)):
        raise ValueError(
            f"{name}: offset must ascend to the number of points, at least one; got {ends[1:]} for {num_points}"
        )
    low, high = (v.tolist() for v in torch.aminmax(grid_coord, dim=0))
    if min(low) < 0 or max(high) >= 2**31 - 2**16:
        raise ValueError(f"{name}: grid_coord must lie in [0, 2^31), found {low} to {high}")
    return grid_coord, feat, offset


def need_two_cells(module: nn.Module, name: str, num_cells: int) -> None:
    """Raises ValueError where batch norms are to learn from a single cell, which has no variance."""
    if module.training and num_cells == 1:
        raise ValueError(
            f"{name}: all points of the batch lie in one cell of this stage's grid, and batch norms need two while "
            "training; take larger scenes, more of them in a batch, or a finer grid_size"
        )
