"""Scores of open-vocabulary segmentation, each under a name of its own.

`mIoU`, `mAcc`, `allAcc`: over all classes (OpenScene, CUA-O3D). `f-mIoU`, `f-mAcc`: the foreground classes alone are
offered and points of others are not scored (RegionPLC, Mosaic3D). `mIoU_base`, `mIoU_novel` and their harmonic mean `hIoU`:
over the two halves of a split, whose classes alone are offered (PLA). One model may have 44 % of one and 60 % of another, so a
number without its name says nothing.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointcept3m.structures.label_sets import LabelSet

ABSENT = ("skip", "zero")
UNSEEN = ("miss", "drop")
NONE = -1  # the prediction of a point that has no features


def count(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int = -1) -> Tensor:
    """[K, K + 1] int64 counts: rows the true class, columns the predicted one, the last "none" (a prediction of -1).

    pred, target: integers [n]; points with `ignore_index` are left out. Raises: ValueError for shapes that differ or a class
    outside 0..K-1.
    """
    if pred.shape != target.shape or pred.ndim != 1:
        raise ValueError(f"count: pred {list(pred.shape)} and target {list(target.shape)} must have one shape [n]")
    keep = target != ignore_index
    pred, target = pred[keep].long(), target[keep].long()
    for name, values, lowest in (("pred", pred, NONE), ("target", target, 0)):
        if len(values) and not (lowest <= int(values.min()) and int(values.max()) < num_classes):
            raise ValueError(f"count: {name} must lie in {lowest}..{num_classes - 1}, got {int(values.min())}..{int(values.max())}")
    column = torch.where(pred == NONE, num_classes, pred)
    return torch.bincount(target * (num_classes + 1) + column, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


def class_scores(counts: Tensor, absent: str = "skip", unseen: str = "miss") -> tuple[Tensor, Tensor]:
    """IoU and accuracy of each class, float64 [K] in 0..1, of `counts` [K, K + 1].

    absent: a class without a labelled point is left out of every mean ("skip": it is NaN here), or counts 0 ("zero", as
        OpenScene does, which adds up the others and divides by K).
    unseen: points without a prediction are errors ("miss"), or are left out of the IoU and are errors of the accuracy ("drop",
        as in OpenScene's `mark_no_feature_to_unknown`).
    """
    check_rules(absent, unseen)
    counts = counts.double()
    square, missed = counts[:, :-1], counts[:, -1]
    hit, seen = square.diagonal(), square.sum(1)
    true = seen + missed
    union = (true if unseen == "miss" else seen) + square.sum(0) - hit
    iou, acc = hit / union, hit / true
    iou[union == 0] = 0.0  # labelled points, of which not one was seen, and dropped
    iou[true == 0] = acc[true == 0] = torch.nan if absent == "skip" else 0.0
    return iou, acc


def check_rules(absent: str, unseen: str) -> None:
    """Raises ValueError for a rule that there is not."""
    for name, value, rules in (("absent", absent, ABSENT), ("unseen", unseen, UNSEEN)):
        if value not in rules:
            raise ValueError(f"{name} must be {' or '.join(map(repr, rules))}, got {value!r}")


def harmonic_mean(first: float, second: float) -> float:
    """2 a b / (a + b), 0 where both are 0: hIoU of the base and the novel mIoU."""
    return 2 * first * second / (first + second) if first + second else 0.0


class Tally:
    """Counts what points were taken for, for each way of offering classes, and makes scores of it.

    split: a base/novel split of `labels`, such as "B15/N4". Raises: KeyError where there is none of that name.
    """

    def __init__(self, labels: LabelSet, split: str | None = None, ignore_index: int = -1):
        self.labels, self.ignore_index = labels, ignore_index
        self.base_novel = None if split is None else labels.base_novel(split)
        self.offered: dict[str, np.ndarray] = {"all": np.arange(len(labels))}
        if labels.foreground.any():
            self.offered["foreground"] = np.flatnonzero(labels.foreground)
        if self.base_novel is not None:
            self.offered["split"] = np.sort(np.concatenate(self.base_novel))
        self.counts = torch.zeros(len(self.offered), len(labels), len(labels) + 1, dtype=torch.int64)

    def add(self, similarity: Tensor, target: Tensor, seen: Tensor | None = None) -> Tensor:
        """Counts points; returns their class among all, int64 [n], -1 where `seen` is false.

        similarity [n, K] to each class; target int64 [n]; seen bool [n], the points that have features (all by default).
        """
        found = None
        for place, classes in enumerate(self.offered.values()):
            number = len(self.labels)
            whole = len(classes) == number
            index = torch.from_numpy(classes).to(similarity.device)
            pred = similarity.argmax(1) if whole else index[similarity[:, index].argmax(1)]
            if seen is not None:
                pred = torch.where(seen, pred, NONE)
            found = pred if found is None else found
            asked = target if whole else torch.where(torch.isin(target, index), target, self.ignore_index)
            self.counts[place] += count(pred, asked, number, self.ignore_index).cpu()
        return found

    def scores(self, absent: str = "skip", unseen: str = "miss") -> tuple[dict[str, float], list[float], list[float]]:
        """(scores by name, IoU of each class, accuracy of each class); those of classes are of the full set."""
        number = len(self.labels)
        of = {name: class_scores(table, absent, unseen) for name, table in zip(self.offered, self.counts, strict=True)}
        iou, acc = of["all"]
        table = self.counts[0].double()
        points = table.sum() if unseen == "miss" else table[:, :-1].sum()
        totals = {"mIoU": _mean(iou), "mAcc": _mean(acc), "allAcc": float(table[:, :number].trace() / points)}
        if "foreground" in of:
            classes = self.offered["foreground"]
            totals |= {"f-mIoU": _mean(of["foreground"][0][classes]), "f-mAcc": _mean(of["foreground"][1][classes])}
        if self.base_novel is not None:
            base, novel = (_mean(of["split"][0][classes]) for classes in self.base_novel)
            totals |= {"mIoU_base": base, "mIoU_novel": novel, "hIoU": harmonic_mean(base, novel)}
        return totals, iou.tolist(), acc.tolist()

    @property
    def labelled(self) -> int:
        """How many labelled points were counted."""
        return int(self.counts[0].sum())

    @property
    def absent(self) -> int:
        """How many classes have no labelled point."""
        return int((self.counts[0].sum(1) == 0).sum())

    @property
    def missed(self) -> int:
        """How many labelled points have no prediction."""
        return int(self.counts[0, :, -1].sum())

    def record(self) -> dict[str, Any]:
        """The counts among all classes as JSON values: `confusion` [K][K] and `missed` [K], points without a prediction."""
        return {"confusion": self.counts[0, :, :-1].tolist(), "missed": self.counts[0, :, -1].tolist()}


def _mean(values: Tensor) -> float:
    return float(values.nanmean()) if len(values) else float("nan")
