"""The three losses of GaussianCross (Eq. 17 to 19). Their weighted sum, Eq. 20, is in model.py."""

from torch import Tensor
from torch.nn import functional as F


def image_loss(rgb: Tensor, target: Tensor) -> Tensor:
    """Eq. 17: mean absolute difference of rendered and real colours, [M, H, W, 3] in 0..1 each."""
    return (rgb - target).abs().mean()


def depth_loss(depth: Tensor, target: Tensor, per: str = "all") -> Tensor:
    """Eq. 18: absolute difference where the real depth is valid (above 0), [M, H, W] metres each.

    per: "all" divides by the number of all pixels, as the paper does; "valid" by that of the valid ones, as
    PonderV2 does, so that views with holes weigh the same.
    """
    valid = target > 0
    total = ((depth - target).abs() * valid).sum()
    count = depth.numel() if per == "all" else valid.sum().clamp(min=1)
    return total / count


def feature_loss(feature: Tensor, target: Tensor) -> Tensor:
    """Eq. 19: one minus the cosine similarity of projected and teacher features, [..., C] each, averaged over pixels."""
    return 1 - F.cosine_similarity(feature, target, dim=-1).mean()
