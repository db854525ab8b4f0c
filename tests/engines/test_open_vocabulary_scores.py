"""Open-vocabulary scores against plain loops; ensembles by hand."""

import numpy as np
import pytest
import torch
from scores_by_loops import by_loops
from torch import nn

from pointcept3m.engines.open_vocabulary.ensemble import ensemble_similarity, similarity
from pointcept3m.engines.open_vocabulary.scores import Tally, class_scores, count, harmonic_mean
from pointcept3m.structures.label_sets import label_set


@pytest.fixture
def points():
    """Similarities [n, 20] to ScanNet's classes with ties to nothing, labels with gaps, and who was seen."""
    labels = label_set("scannet20")
    target = torch.randint(-1, 18, (400,))  # bathtub and otherfurniture are nowhere true
    scores = torch.randn(400, 20) + 2.0 * nn.functional.one_hot(target.clamp(min=0), 20)
    return labels, scores, target, torch.rand(400) < 0.8


def test_scores_are_those_of_plain_loops(points):
    labels, scores, target, _ = points
    tally = Tally(labels, "B15/N4")
    for part in (slice(0, 130), slice(130, 400)):
        tally.add(scores[part], target[part])
    found, iou, _ = tally.scores()
    pred = scores.argmax(1).tolist()
    assert (found["mIoU"], found["mAcc"]) == pytest.approx(by_loops(pred, target.tolist(), range(20)))
    assert found["allAcc"] == pytest.approx(np.mean([p == t for p, t in zip(pred, target.tolist(), strict=True) if t >= 0]))
    assert np.isnan(iou[18]) and np.isnan(iou[19]) and tally.absent == 2

    # f-mIoU: wall, floor and otherfurniture cannot be said, and their points are not asked about
    foreground = list(range(2, 19))
    said = [foreground[int(row[foreground].argmax())] for row in scores]
    asked = [t if t in foreground else -1 for t in target.tolist()]
    assert (found["f-mIoU"], found["f-mAcc"]) == pytest.approx(by_loops(said, asked, foreground))
    assert found["f-mIoU"] != pytest.approx(np.nanmean([iou[k] for k in foreground]), abs=1e-3), "foreground is more than a mean of fewer IoUs"

    # PLA: otherfurniture is neither base nor novel
    novel = [5, 9, 12, 16]
    base = [k for k in range(19) if k not in novel]
    said = [int(row[:19].argmax()) for row in scores]
    asked = [t if t < 19 else -1 for t in target.tolist()]
    first, second = by_loops(said, asked, base)[0], by_loops(said, asked, novel)[0]
    assert (found["mIoU_base"], found["mIoU_novel"]) == pytest.approx((first, second))
    assert found["hIoU"] == pytest.approx(2 / (1 / first + 1 / second))


def test_absent_classes_as_openscene_divides(points):
    labels, scores, target, _ = points
    tally = Tally(labels)
    tally.add(scores, target)
    skip, zero = tally.scores("skip")[0], tally.scores("zero")[0]
    assert zero["mIoU"] == pytest.approx(skip["mIoU"] * 18 / 20)
    assert zero["mAcc"] == pytest.approx(skip["mAcc"] * 18 / 20)


def test_unseen_points(points):
    labels, scores, target, seen = points
    tally = Tally(labels)
    pred = tally.add(scores, target, seen)
    assert torch.equal(pred == -1, ~seen)
    assert tally.missed == int((~seen & (target >= 0)).sum()) and tally.labelled == int((target >= 0).sum())
    miss, drop = tally.scores(unseen="miss")[0], tally.scores(unseen="drop")[0]
    whole = by_loops(pred.tolist(), target.tolist(), range(20))
    assert (miss["mIoU"], miss["mAcc"]) == pytest.approx(whole)
    only_seen = by_loops(pred[seen].tolist(), target[seen].tolist(), range(20))
    assert drop["mIoU"] == pytest.approx(only_seen[0]) and drop["mIoU"] > miss["mIoU"]
    assert drop["mAcc"] == pytest.approx(whole[1]), "the release leaves them out of the IoU alone"


def test_counts_and_harmonic_mean_by_hand():
    counts = count(torch.tensor([0, 1, 1, -1, 0, 2]), torch.tensor([0, 1, 0, 0, -1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    iou, acc = class_scores(counts)
    assert iou[:2].tolist() == pytest.approx([1 / 3, 1 / 3]) and acc[:2].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert class_scores(counts, unseen="drop")[0][:2].tolist() == pytest.approx([1 / 2, 1 / 3])
    assert harmonic_mean(0.6, 0.3) == pytest.approx(0.4) and harmonic_mean(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match=r"pred must lie in -1\.\.2, got 0\.\.3"):
        count(torch.tensor([0, 3]), torch.tensor([0, 0]), 3)
    with pytest.raises(ValueError, match="absent must be 'skip' or 'zero', got 'none'"):
        class_scores(counts, absent="none")


# ensembles


def test_ensemble_rules_by_hand():
    text = torch.eye(3)
    fused = torch.tensor([[9.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    distilled = torch.tensor([[0.1, 0.1, 0.0], [0.0, 0.0, 5.0], [-1.0, -2.0, -2.0]])
    seen = torch.tensor([True, True, False])
    found = ensemble_similarity(fused, distilled, text, "max", seen=seen)
    own = similarity(distilled, text)
    assert torch.allclose(found[0], torch.tensor([9.0, 1.0, 0.0]) / 82**0.5), "2D is surer of point 0"
    assert torch.allclose(found[1], own[1]), "3D is surer of point 1"
    assert torch.allclose(found[2], own[2]) and int(found[2].argmax()) == 0
    # without `seen`, zeros are surer than a 3D network whose cosines are all negative
    assert torch.equal(ensemble_similarity(fused, distilled, text, "max")[2], torch.zeros(3))

    unit = [np.array([9.0, 1.0, 0.0]) / 82**0.5, np.array([0.1, 0.1, 0.0]) / 0.02**0.5]
    mean = (unit[0] + unit[1]) / 2
    found = ensemble_similarity(fused, distilled, text, "mean", seen=seen)
    assert np.allclose(found[0].numpy(), mean / np.linalg.norm(mean), atol=1e-6)
    assert torch.allclose(found[2], own[2])
    raw = ensemble_similarity(fused, distilled, text, "mean", normalize=False)
    assert np.allclose(raw[0].numpy(), np.array([9.1, 1.1, 0.0]) / np.hypot(9.1, 1.1), atol=1e-6)
    with pytest.raises(ValueError, match="rule must be 'max' or 'mean', got 'sum'"):
        ensemble_similarity(fused, distilled, text, "sum")
    with pytest.raises(ValueError, match=r"\[3, 3\], distilled \[3, 3\] and texts \[3, 4\]"):
        ensemble_similarity(fused, distilled, torch.eye(4)[:3])
