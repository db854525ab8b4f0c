"""Contrastive cross masks: which points of two views of a scene are hidden, never the same place in both.

Source: Masked Scene Contrast, "contrastive cross masks". The space of a scene, not a view, is cut into cells.
"""

import torch
from torch import Tensor

from pointcept3m.ops import voxelize
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
    Raises: ValueError for a rate outside [0, 0.5], and as `voxelize` does for coordinates that are not finite.
    """
    if not 0 <= rate <= 0.5:
        raise ValueError(
            f"cross_masks: the rate must lie in [0, 0.5], since no cell is hidden in both views; got {rate}"
        )
    scene = torch.cat([offset_to_batch(offset1), offset_to_batch(offset2)])
    cells = voxelize(torch.cat([coord1, coord2]), grid_size, batch=scene)
    num_cells = len(cells.counts)
    hidden = int(num_cells * rate)
    order = torch.randperm(num_cells, device=coord1.device)
    view = torch.zeros(num_cells, dtype=torch.int8, device=coord1.device)
    view[order[:hidden]] = 1
    view[order[hidden : 2 * hidden]] = 2
    hidden_in = view[cells.inverse]
    return hidden_in[: len(coord1)] == 1, hidden_in[len(coord1) :] == 2
