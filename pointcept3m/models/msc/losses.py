"""The losses of Masked Scene Contrast: contrast of matched points, reconstruction of hidden colours and normals."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pointcept3m.ops import gather_coo


def contrastive_loss(feat1: Tensor, feat2: Tensor, match: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE over matched points: for every pair, the partner against the partners of all other pairs.

    feat1 [N1, C], feat2 [N2, C], match [P, 2] rows of each. With s_ij the cosine of pair i's first and pair j's second
    feature, the loss is the mean over i of -log(exp(s_ii / t) / sum_j exp(s_ij / t)): PointInfoNCE (PointContrast,
    Eq. 2), which Masked Scene Contrast takes over.

    Returns: the loss, the mean cosine of pairs, and that of non-pairs, which are numbers to watch and carry no
    gradient. Without a pair all are 0, with gradient 0; one pair alone has nothing to differ from, and its loss is 0.
    """
    if len(match) == 0:
        zero = (feat1.sum() + feat2.sum()) * 0.0
        return zero, zero.detach(), zero.detach()
    with torch.autocast(feat1.device.type, enabled=False):  # half precision cannot tell neighbours apart
        # not feat1[...]: a point has several partners, and torch adds up their gradients in the order that threads come
        first = F.normalize(gather_coo(feat1, match[:, 0].contiguous()).float(), dim=1, eps=1e-7)
        second = F.normalize(gather_coo(feat2, match[:, 1].contiguous()).float(), dim=1, eps=1e-7)
        cosine = first @ second.T
        loss = F.cross_entropy(cosine / temperature, torch.arange(len(match), device=match.device))
    with torch.no_grad():
        own, count = cosine.diagonal().sum(), len(match)
        others = (cosine.sum() - own) / max(count * (count - 1), 1)
    return loss, own.detach() / count, others


def color_loss(prediction: Tensor, color: Tensor) -> Tensor:
    """Squared error of predicted and real colours [P, 3] each, summed over channels, averaged over points (0 for P = 0)."""
    return (prediction.float() - color).square().sum() / max(len(color), 1)


def normal_loss(prediction: Tensor, normal: Tensor) -> Tensor:
    """One minus the cosine of predicted and real normals [P, 3] each, averaged over points (0 for P = 0).

    `normal` has unit length. Pointcept's release minimises the cosine itself: its head learns the opposite of the
    normal. The backbone would learn the same, since a linear head can turn the sign; what the head says is wrong.
    """
    cosine = (F.normalize(prediction.float(), dim=1, eps=1e-10) * normal).sum(1)
    return (1 - cosine).sum() / max(len(normal), 1)
