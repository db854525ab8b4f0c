"""Contrastive cross masks: which points of two views of a scene are hidden, never the same place in both.

Source: Masked Scene Contrast, "contrastive cross masks". The space of a scene, not a view, is cut into cells.
"""

import torch
from torch import Tensor

from pointcept3m.ops.offsets import offset_to_batch


@torch.no_grad()
def cross_masks(
    coord1: Tensor, offset1: Tensor, coord2: Tensor, offset2: Tensor, grid_size: float, rate: float
) -> tuple[Tensor, Tensor]:
    """Which points are hidden: bool [N1] for view 1, bool [N2] for view 2.

    Both views are laid on one grid of `grid_size` metres a scene. Of the cells that hold a point of either view, as
    many as `rate` says (rounded down, counted over the whole batch) are hidden in view 1, and as many others in view
    2. A cell is never hidden in both, so a place that one view must reconstruct may be seen in the other.

    coord1 [N1, 3], coord2 [N2, 3]: coordinates before the augmentations of the views. offset1, offset2: [B] int64.
    Raises: ValueError for a rate outside [0, 0.5], or where the cells cannot be numbered in 62 bits.
    """
    if not 0 <= rate <= 0.5:
        raise ValueError(f"cross_masks: the rate must lie in [0, 0.5], since no cell is hidden in both views; got {rate}")
    cell, num_cells = _number_cells(
        torch.cat([coord1, coord2]), torch.cat([offset_to_batch(offset1), offset_to_batch(offset2)]), grid_size
    )
    hidden = int(num_cells * rate)
    order = torch.randperm(num_cells, device=coord1.device)
    view = torch.zeros(num_cells, dtype=torch.int8, device=coord1.device)
    view[order[:hidden]] = 1
    view[order[hidden : 2 * hidden]] = 2
    hidden_in = view[cell]
    return hidden_in[: len(coord1)] == 1, hidden_in[len(coord1) :] == 2


def _number_cells(coord: Tensor, scene: Tensor, grid_size: float) -> tuple[Tensor, int]:
    """The number, from 0, of the occupied cell of each point [N], and how many cells there are; scenes share none."""
    if len(coord) == 0:
        return scene, 0
    index = torch.column_stack([scene.double(), torch.floor(coord.double() / grid_size)])
    index -= index.amin(0)
    extent = (index.amax(0) + 1).tolist()
    if not extent[0] * extent[1] * extent[2] * extent[3] < 2**62:  # also where a coordinate is not finite
        raise ValueError(
            f"cross_masks: {extent[1:]} cells of {grid_size} m in {extent[0]:g} scenes cannot be numbered; are the "
            "coordinates finite and in metres?"
        )
    index = index.long()
    key = index[:, 0]
    for axis in (1, 2, 3):
        key = key * int(extent[axis]) + index[:, axis]
    found, number = torch.unique(key, return_inverse=True)
    return number, len(found)
