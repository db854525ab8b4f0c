"""Which points of two views are the same place: the positive pairs of the contrastive loss.

Source: Masked Scene Contrast, contrastive learning on scene-level views; PointContrast, Sec. 3.
"""

import torch
from torch import Tensor

from pointcept3m.ops import knn_query


@torch.no_grad()
def match_points(
    coord1: Tensor,
    offset1: Tensor,
    coord2: Tensor,
    offset2: Tensor,
    max_k: int = 8,
    max_radius: float = 0.03,
    max_pair: int = 8192,
) -> Tensor:
    """Pairs int64 [P, 2] of rows of view 1 and of view 2 that lie closer than `max_radius`, in the same scene.

    A point of view 1 takes one partner, drawn from the up to `max_k` nearest within the radius, each of them equally
    likely (Pointcept draws one number modulo each count, which favours the nearest ones of some counts). Points
    without one are left out. Of more than `max_pair` pairs, that many are drawn. Pairs may share the point of view 2.

    coord1 [N1, 3], coord2 [N2, 3]: coordinates in one frame, in metres. offset1, offset2: [B] int64.
    Returns: [0, 2] where nothing matches.
    """
    index, distance = knn_query(max_k, coord2.float(), offset2, coord1.float(), offset1)
    count = (distance < max_radius).sum(1)  # neighbours are sorted, so these come first
    row = count.nonzero().squeeze(1)
    if len(row) > max_pair:
        row = row[torch.randperm(len(row), device=row.device)[:max_pair]]
    count = count[row]
    drawn = (torch.rand(len(row), device=row.device) * count).long().clamp(max=count - 1)
    partner = index[row].gather(1, drawn[:, None]).squeeze(1)
    return torch.stack([row, partner.long()], dim=1)
