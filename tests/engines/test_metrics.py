"""Scores against values worked out by hand."""

import math

import pytest
import torch

from pointcept3m.engines.metrics import confusion_matrix, depth_errors, feature_cosine, psnr, segmentation_scores


def test_confusion_matrix():
    target = torch.tensor([0, 0, 0, 1, 1, -1, 2])
    pred = torch.tensor([0, 0, 1, 1, 0, 2, 2])
    assert confusion_matrix(pred, target, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert confusion_matrix(pred, target.where(target >= 0, 255), 3, ignore_index=255).sum() == 6
    assert confusion_matrix(torch.zeros(0), torch.zeros(0), 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("pred", "target", "sentence"),
    [([0, 1], [0], r"pred \[2\] and target \[1\]"), ([0, 3], [0, 1], r"pred must lie in 0..2 .* got 0..3"), ([0, 0], [0, 3], "target must lie in 0..2")],
)
def test_confusion_matrix_errors(pred, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        confusion_matrix(torch.tensor(pred), torch.tensor(target), 3)


def test_segmentation_scores():
    """Class 0: 2 hits, union 4. Class 1: 1 hit, union 3. Class 2: predicted once, never true. Class 3: nowhere."""
    confusion = torch.tensor([[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    confusion[0, 2] = 0
    confusion[1, 2] = 1
    scores = segmentation_scores(confusion)
    assert scores["iou"][:3] == pytest.approx([2 / 4, 1 / 4, 0.0]) and math.isnan(scores["iou"][3])
    assert scores["acc"][:2] == pytest.approx([2 / 3, 1 / 3]) and math.isnan(scores["acc"][2])
    assert scores["mIoU"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert scores["mAcc"] == pytest.approx((2 / 3 + 1 / 3) / 2) and scores["allAcc"] == pytest.approx(3 / 6)
    as_pointcept = segmentation_scores(confusion, absent="zero")
    assert as_pointcept["mIoU"] == pytest.approx(0.75 / 4) and as_pointcept["mAcc"] == pytest.approx(1 / 4)


def test_psnr():
    target = torch.full((2, 2, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-5)  # mean squared error 0.01
    assert psnr(target, target) == math.inf
    half = torch.tensor([[True, False], [False, False]])
    image = target.clone()
    image[1, 1] = 9.0
    image[0, 0] += 0.01
    assert psnr(image, target, valid=half) == pytest.approx(40.0, abs=1e-4)
    assert psnr(image * 255, target * 255, valid=half, data_range=255.0) == pytest.approx(40.0, abs=1e-4)
    with pytest.raises(ValueError, match="must have one shape"):
        psnr(image, target[0])


def test_depth_errors():
    target = torch.tensor([[2.0, 4.0], [1.0, 0.0]])  # the last pixel has no depth
    depth = torch.tensor([[2.5, 3.0], [1.0, 7.0]])
    errors = depth_errors(depth, target)
    assert errors["mae"] == pytest.approx(0.5) and errors["rmse"] == pytest.approx(math.sqrt((0.25 + 1.0) / 3))
    assert errors["abs_rel"] == pytest.approx((0.25 + 0.25) / 3)
    assert errors["delta1"] == pytest.approx(1 / 3)  # ratios 1.25 (not below), 4/3, 1
    only = depth_errors(depth, target, valid=torch.tensor([[True, False], [False, True]]))
    assert only["mae"] == pytest.approx(0.5)
    assert all(math.isnan(value) for value in depth_errors(depth, torch.zeros(2, 2)).values())
    assert depth_errors(torch.tensor([-1.0]), torch.tensor([1.0]))["delta1"] == 0.0


def test_feature_cosine():
    feature = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    target = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert feature_cosine(feature, target) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert feature_cosine(feature, target, valid=torch.tensor([True, False])) == pytest.approx(1.0)
    assert feature_cosine(feature.T, target.T, dim=0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
