"""Losses of semantic segmentation: logits [N, K] against labels [N]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.models.builder import LOSSES


@LOSSES.register_module()
class CrossEntropyLoss(nn.Module):
    """torch's cross-entropy times `loss_weight`; 0 (with gradient 0) where every label is ignored.

    weight: one number per class. size_average and reduce are torch's old names for `reduction`, kept for configs.
    """

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        loss_weight: float = 1.0,
        ignore_index: int = -1,
    ):
        super().__init__()
        if size_average is not None or reduce is not None:
            averaged = size_average is None or size_average
            reduction = "none" if reduce is False else "mean" if averaged else "sum"
        # Not persistent: a checkpoint holds what was learned, not what the config says.
        self.register_buffer("weight", None if weight is None else torch.tensor(weight, dtype=torch.float32), persistent=False)
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.loss_weight, self.ignore_index = loss_weight, ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        target = target.long()
        if not bool((target != self.ignore_index).any()):
            return pred.sum() * 0.0
        loss = F.cross_entropy(
            pred, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction, label_smoothing=self.label_smoothing
        )
        return self.loss_weight * loss


@LOSSES.register_module()
class LovaszLoss(nn.Module):
    """The Lovasz extension of the Jaccard loss (Berman, Triki, Blaschko, CVPR 2018, Eq. 8, 9 and 11).

    mode "multiclass": softmax over K classes, the mean over those present in the labels (or those in `class_seen`
    that are present). mode "binary": a logit per point [N] or [N, 1], hinge errors, labels 0 and 1. mode
    "multilabel": binary for each of K columns, labels [N, K].
    """

    def __init__(
        self,
        mode: str,
        class_seen: Sequence[int] | None = None,
        per_image: bool = False,
        ignore_index: int | None = None,
        loss_weight: float = 1.0,
    ):
        super().__init__()
        if mode not in ("multiclass", "binary", "multilabel"):
            raise ValueError(f"LovaszLoss: mode must be 'multiclass', 'binary' or 'multilabel', got {mode!r}")
        if per_image:
            raise ValueError("LovaszLoss: per_image=True has no meaning for points, which have no image axis")
        self.mode, self.class_seen = mode, None if class_seen is None else set(class_seen)
        self.ignore_index, self.loss_weight = ignore_index, loss_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        if self.mode == "multilabel":
            losses = [self._binary(pred[:, k], target[:, k]) for k in range(pred.shape[1])]
            return self.loss_weight * torch.stack(losses).mean()
        if self.mode == "binary":
            return self.loss_weight * self._binary(pred.reshape(-1), target.reshape(-1))
        return self.loss_weight * self._multiclass(pred, target)

    def _valid(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.ignore_index is None:
            return pred, target
        keep = target != self.ignore_index
        return pred[keep], target[keep]

    def _multiclass(self, pred: Tensor, target: Tensor) -> Tensor:
        pred, target = self._valid(pred, target)
        # Sorting and cumulative sums over 1e5 points need float32 also under autocast.
        probability = pred.float().softmax(-1)
        losses = []
        for k in target.unique().tolist():
            if self.class_seen is None or k in self.class_seen:
                foreground = (target == k).float()
                losses.append(_lovasz((foreground - probability[:, k]).abs(), foreground))
        return torch.stack(losses).mean() if losses else pred.sum() * 0.0

    def _binary(self, pred: Tensor, target: Tensor) -> Tensor:
        pred, target = self._valid(pred.float(), target)
        if not len(pred):
            return pred.sum() * 0.0
        foreground = target.float()
        return _lovasz(F.relu(1.0 - pred * (2.0 * foreground - 1.0)), foreground)


def _lovasz(errors: Tensor, foreground: Tensor) -> Tensor:
    """sum_i m_(i) g_i: errors [N] sorted down, g the differences of the Jaccard loss as they enter one by one (Alg. 1)."""
    errors, order = errors.sort(descending=True)
    foreground = foreground[order]
    total = foreground.sum()
    intersection = total - foreground.cumsum(0)
    union = total + (1.0 - foreground).cumsum(0)
    jaccard = 1.0 - intersection / union
    gradient = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return torch.dot(errors, gradient)
