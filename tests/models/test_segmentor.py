"""Segmentors and their losses."""

import itertools
import math

import pytest
import torch
from torch import nn

from pointcept3m.models import LOSSES, MODELS, build_model
from pointcept3m.models.losses import CrossEntropyLoss, LovaszLoss, build_criteria


@MODELS.register_module("SegmentorTestBackbone", force=True)
class Backbone(nn.Module):
    def __init__(self, channels: int = 4, as_dict: bool = False):
        super().__init__()
        self.layer, self.norm, self.as_dict = nn.Linear(3, channels), nn.BatchNorm1d(channels), as_dict

    def forward(self, input_dict):
        feat = self.norm(self.layer(input_dict["feat"]))
        return {"feat": feat} if self.as_dict else feat


def batch(num: int = 20) -> dict:
    return dict(feat=torch.randn(num, 3), segment=torch.randint(0, 4, (num,)), offset=torch.tensor([num]))


def v2(**changes):
    cfg = dict(type="DefaultSegmentorV2", num_classes=5, backbone_out_channels=4, backbone=dict(type="SegmentorTestBackbone"))
    return build_model({**cfg, "criteria": [dict(type="CrossEntropyLoss")], **changes})


def test_outputs():
    model = build_model(dict(type="DefaultSegmentor", backbone=dict(type="SegmentorTestBackbone"), criteria=dict(type="CrossEntropyLoss")))
    sample = batch()
    assert set(model(sample)) == {"loss"}
    model.eval()
    assert set(model(sample)) == {"loss", "seg_logits"} and model(sample)["seg_logits"].shape == (20, 4)
    del sample["segment"]
    assert set(model(sample)) == {"seg_logits"}
    with pytest.raises(KeyError, match="training needs 'segment'"):
        model.train()(sample)


@pytest.mark.parametrize("as_dict", [False, True])
def test_head_on_features(as_dict):
    model = v2(backbone=dict(type="SegmentorTestBackbone", as_dict=as_dict)).eval()
    assert model(batch())["seg_logits"].shape == (20, 5) and {"seg_head.weight", "seg_head.bias"} <= set(model.state_dict())


def test_frozen_backbone_keeps_its_statistics():
    """Pointcept's probe leaves the backbone in train mode: its batch norms then learn from the probing data."""
    model = v2(freeze_backbone=True)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train()
    model(batch())["loss"].backward()
    assert model.training and not model.backbone.training and model.seg_head.weight.grad is not None
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_upstreams_frozen_backbone_is_an_option():
    model = v2(freeze_backbone=True, frozen_norm="train").train()
    before = model.backbone.norm.running_mean.clone()
    model(batch())
    assert model.backbone.training and not torch.equal(before, model.backbone.norm.running_mean)
    with pytest.raises(ValueError, match="frozen_norm must be 'eval' or 'train'"):
        v2(frozen_norm="off")


def test_unfrozen_backbone_trains():
    model = v2().train()
    model(batch())["loss"].backward()
    assert model.backbone.training and model.backbone.layer.weight.grad is not None


def test_criteria_sum_their_losses():
    pred, target = torch.randn(30, 4), torch.randint(0, 4, (30,))
    parts = [dict(type="CrossEntropyLoss", loss_weight=2.0), dict(type="LovaszLoss", mode="multiclass", loss_weight=0.5)]
    expected = 2 * nn.functional.cross_entropy(pred, target) + 0.5 * LovaszLoss("multiclass")(pred, target)
    torch.testing.assert_close(build_criteria(parts)(pred, target), expected)
    with pytest.raises(ValueError, match="at least one loss"):
        build_criteria([])
    with pytest.raises(KeyError, match="did you mean 'LovaszLoss'"):
        LOSSES.build(dict(type="LovazLoss"))


def test_cross_entropy_ignores_and_weighs():
    pred = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], requires_grad=True)
    target = torch.tensor([0, 0, -1])
    a, b = math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))
    assert CrossEntropyLoss()(pred, target).item() == pytest.approx((a + b) / 2)
    assert CrossEntropyLoss(size_average=False)(pred, target).item() == pytest.approx(a + b)
    weighted = CrossEntropyLoss(weight=[1.0, 3.0])
    assert weighted(pred, torch.tensor([0, 1, -1])).item() == pytest.approx((a + 3 * math.log(1 + math.exp(-1))) / 4)
    assert not weighted.state_dict()
    nothing = CrossEntropyLoss()(pred, torch.full((3,), -1))  # torch's own mean is NaN here
    nothing.backward()
    assert nothing.item() == 0 and torch.equal(pred.grad, torch.zeros(3, 2))


def test_lovasz_is_the_jaccard_loss_at_hard_predictions():
    """The extension agrees with the set function it extends at its corners: probabilities that are 0 or 1."""
    for bits in itertools.product([0, 1], repeat=4):
        pred_class, target = torch.tensor(bits), torch.tensor([0, 1, 1, 0])
        logits = 100.0 * nn.functional.one_hot(pred_class, 2).float()
        expected = []
        for k in (0, 1):
            union = ((pred_class == k) | (target == k)).sum()
            expected.append(1 - ((pred_class == k) & (target == k)).sum() / union)
        assert LovaszLoss("multiclass")(logits, target).item() == pytest.approx(float(sum(expected)) / 2, abs=1e-5)


def test_lovasz_by_hand():
    """Errors .6 (foreground), .3 (background), .1 (foreground): Jaccard steps 1/2, 1/6, 1/3."""
    probability = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9]])
    target = torch.tensor([1, 0, 1])
    loss = LovaszLoss("multiclass", class_seen=[1])(probability.log(), target)
    assert loss.item() == pytest.approx(0.6 / 2 + 0.3 / 6 + 0.1 / 3)


def test_lovasz_ignores_and_has_a_gradient():
    pred = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (40,))
    target[::4] = -1
    loss = LovaszLoss("multiclass", ignore_index=-1)(pred, target)
    torch.testing.assert_close(loss, LovaszLoss("multiclass")(pred[target >= 0], target[target >= 0]))
    loss.backward()
    assert torch.equal(pred.grad[::4], torch.zeros(10, 3, dtype=torch.float64)) and pred.grad.abs().sum() > 0
    assert LovaszLoss("multiclass", ignore_index=-1)(pred, torch.full((40,), -1)).item() == 0


def test_lovasz_modes():
    logits, target = torch.tensor([3.0, -3.0, 2.0, -2.0]), torch.tensor([1, 0, 1, 0])
    assert LovaszLoss("binary")(logits, target).item() == 0.0  # every margin is beyond 1
    assert LovaszLoss("binary")(-logits, target).item() > 1.0
    columns = LovaszLoss("multilabel")(torch.stack([logits, -logits], 1), torch.stack([target, target], 1))
    assert columns.item() == pytest.approx(LovaszLoss("binary")(-logits, target).item() / 2)
    with pytest.raises(ValueError, match="mode must be"):
        LovaszLoss("softmax")
    with pytest.raises(ValueError, match="no image axis"):
        LovaszLoss("multiclass", per_image=True)
