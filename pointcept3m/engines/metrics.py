"""Scores as pure functions: tensors in, numbers out."""

from typing import Any

import torch
from torch import Tensor


def confusion_matrix(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int = -1) -> Tensor:
    """[K, K] int64 counts, rows the true class, columns the predicted one; points with `ignore_index` are left out.

    pred, target: integers of one shape. Raises: ValueError for shapes that differ or a class outside 0..K-1.
    """
    if pred.shape != target.shape:
        raise ValueError(f"confusion_matrix: pred {list(pred.shape)} and target {list(target.shape)} must have one shape")
    keep = target != ignore_index
    pred, target = pred[keep].reshape(-1).long(), target[keep].reshape(-1).long()
    for name, values in (("pred", pred), ("target", target)):
        if len(values) and not (0 <= int(values.min()) and int(values.max()) < num_classes):
            raise ValueError(f"confusion_matrix: {name} must lie in 0..{num_classes - 1} (or be {ignore_index} in target), got {int(values.min())}..{int(values.max())}")
    return torch.bincount(target * num_classes + pred, minlength=num_classes**2).reshape(num_classes, num_classes)


def segmentation_scores(confusion: Tensor, absent: str = "skip") -> dict[str, Any]:
    """`mIoU`, `mAcc`, `allAcc` as floats in 0..1, and `iou`, `acc` as lists of K floats.

    A class that is neither true nor predicted anywhere has no IoU: with absent="skip" it is NaN and not part of the
    means (mAcc: a class that is nowhere true); with "zero" it counts 0, as in Pointcept, whose numbers depend on
    which classes a split happens to have.
    """
    if absent not in ("skip", "zero"):
        raise ValueError(f"segmentation_scores: absent must be 'skip' or 'zero', got {absent!r}")
    confusion = confusion.double()
    hit, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = true + predicted - hit
    iou, acc = hit / union, hit / true  # 0 / 0 is NaN
    if absent == "zero":
        iou, acc = iou.nan_to_num(0.0), acc.nan_to_num(0.0)
    total = confusion.sum()
    return {
        "mIoU": float(iou.nanmean()),
        "mAcc": float(acc.nanmean()),
        "allAcc": float(hit.sum() / total),
        "iou": iou.tolist(),
        "acc": acc.tolist(),
    }


def psnr(image: Tensor, target: Tensor, valid: Tensor | None = None, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of `image` against `target`, both [..., 3] in 0..data_range; inf if equal.

    valid [...] bool: the pixels that count. NaN where none does.
    """
    if image.shape != target.shape:
        raise ValueError(f"psnr: image {list(image.shape)} and target {list(target.shape)} must have one shape")
    error = (image.double() - target.double()).square()
    if valid is not None:
        error = error[valid]
    if error.numel() == 0:
        return float("nan")
    return float(10 * torch.log10(data_range**2 / error.mean()))


def depth_errors(depth: Tensor, target: Tensor, valid: Tensor | None = None) -> dict[str, float]:
    """Errors of `depth` against `target` (metres, one shape) over pixels `valid` (those with target > 0 by default).

    `mae` and `rmse` in metres, `abs_rel` = mean |d - t| / t, `delta1` = share of pixels with max(d / t, t / d) < 1.25
    (Eigen et al. 2014). All NaN where no pixel is valid.
    """
    if depth.shape != target.shape:
        raise ValueError(f"depth_errors: depth {list(depth.shape)} and target {list(target.shape)} must have one shape")
    valid = target > 0 if valid is None else valid & (target > 0)
    d, t = depth[valid].double(), target[valid].double()
    error = (d - t).abs()
    ratio = torch.maximum(d / t, t / d)
    return {
        "mae": float(error.mean()),
        "rmse": float(error.square().mean().sqrt()),
        "abs_rel": float((error / t).mean()),
        # A depth that is not positive is never within 25 %, though its ratios are negative.
        "delta1": float(((ratio < 1.25) & (d > 0)).double().mean()),
    }


def feature_cosine(feature: Tensor, target: Tensor, valid: Tensor | None = None, dim: int = -1) -> float:
    """The mean cosine between `feature` and `target`, one shape, vectors along `dim`; `valid` picks pixels."""
    if feature.shape != target.shape:
        raise ValueError(f"feature_cosine: feature {list(feature.shape)} and target {list(target.shape)} must have one shape")
    cosine = torch.nn.functional.cosine_similarity(feature.float(), target.float(), dim=dim)
    if valid is not None:
        cosine = cosine[valid]
    return float(cosine.double().mean())
