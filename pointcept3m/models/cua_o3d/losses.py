"""The distillation losses of CUA-O3D (Eq. 1 to 3, Tables 7 and 8) and the de-mean operation (Eq. 5), one value a point."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def cosine_loss(feature: Tensor, target: Tensor) -> Tensor:
    """Eq. 1 and 3: one minus the cosine of each row of [S, D]; returns [S]."""
    return 1 - F.cosine_similarity(feature, target, dim=-1)


def l1_loss(feature: Tensor, target: Tensor) -> Tensor:
    """Eq. 2: the absolute difference of each row of [S, D], averaged over channels; returns [S]."""
    return (feature - target).abs().mean(-1)


def l2_loss(feature: Tensor, target: Tensor) -> Tensor:
    """The squared difference of each row of [S, D], averaged over channels (Tables 7 and 8); returns [S]."""
    return (feature - target).square().mean(-1)


def de_mean(target: Tensor) -> Tensor:
    """Eq. 5: each row of [S, D] less its mean over channels. Only targets are de-meaned, as in the released code."""
    return target - target.mean(-1, keepdim=True)


DISTILLATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine_loss, "l1": l1_loss, "l2": l2_loss}
