"""PointGroup: its losses and proposals against a loop over points, and what bad batches get."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from pointcept3m.models import MODELS, build_model
from pointcept3m.models.heads.pointgroup import PointGroup, PointGroupWithCriteria
from pointcept3m.ops.cluster import ballquery_batch_p, bfs_cluster

CLASSES = 5


@MODELS.register_module("PointGroupTestBackbone", force=True)
class Backbone(nn.Module):
    """Features [N, 8] as a tensor or, with `as_dict`, as the `feat` of a dict."""

    def __init__(self, as_dict: bool = False):
        super().__init__()
        self.layer, self.norm, self.as_dict = nn.Linear(3, 8), nn.BatchNorm1d(8), as_dict

    def forward(self, input_dict):
        feat = self.norm(self.layer(input_dict["feat"]))
        return {"feat": feat} if self.as_dict else feat


def build(kind="PG-v1m1", backbone=None, **changes):
    cfg = dict(
        type=kind,
        backbone=backbone or dict(type="PointGroupTestBackbone"),
        backbone_out_channels=8,
        semantic_num_classes=CLASSES,
        cluster_min_points=3,
        cluster_propose_points=5,
        voxel_size=0.1,
    )
    return build_model({**cfg, **changes})


def batch(num=60, scenes=2):
    """Scenes of equal size; objects are the cells of a coarse grid."""
    coord = torch.rand(num, 3)
    offset = torch.arange(1, scenes + 1) * (num // scenes)
    instance = torch.randint(-1, 4, (num,))
    return dict(
        coord=coord,
        feat=coord + 0.1 * torch.randn(num, 3),
        offset=offset,
        segment=torch.randint(-1, CLASSES, (num,)),
        instance=instance,
        instance_centroid=torch.rand(num, 3),
    )


def test_losses_point_by_point():
    model, sample = build(), batch()
    bias, logits = torch.randn(60, 3), torch.randn(60, CLASSES)
    losses = model.losses(bias, logits, sample)
    entropy, l1, cosine = [], [], []
    for i in range(60):
        if sample["segment"][i] >= 0:
            entropy.append(math.log(sum(math.exp(v) for v in logits[i].tolist())) - logits[i, sample["segment"][i]].item())
        if sample["instance"][i] >= 0:
            way = (sample["instance_centroid"][i] - sample["coord"][i]).tolist()
            pred = bias[i].tolist()
            l1.append(sum(abs(a - b) for a, b in zip(way, pred, strict=True)))
            cosine.append(-sum(a * b for a, b in zip(way, pred, strict=True)) / math.hypot(*way) / math.hypot(*pred))
    mean = [sum(values) / len(values) for values in (entropy, l1, cosine)]
    got = [losses[name].item() for name in ("seg_loss", "bias_l1_loss", "bias_cosine_loss")]
    assert got == pytest.approx(mean, rel=1e-5) and losses["loss"].item() == pytest.approx(sum(mean), rel=1e-5)


def test_training_and_evaluation_outputs():
    model, sample = build(), batch()
    output = model(sample)
    assert set(output) == {"loss", "seg_loss", "bias_l1_loss", "bias_cosine_loss"}
    output["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    output = model(sample)
    assert output["seg_logits"].shape == (60, CLASSES) and {"pred_scores", "pred_masks", "pred_classes", "loss"} <= set(output)
    unlabelled = {key: sample[key] for key in ("coord", "feat", "offset")}
    assert set(model(unlabelled)) == {"seg_logits", "pred_scores", "pred_masks", "pred_classes"}


@pytest.mark.parametrize("ignored", [(-1, 0, 1), (-1,)])
def test_proposals_are_pointcepts(ignored):
    """The same proposals as ball query, breadth-first search, dense masks and a mean over each of them give."""
    num, ends = 900, torch.tensor([400, 400, 900])  # the second scene is empty
    model = build(segment_ignore_index=ignored, cluster_thresh=0.9)
    coord, bias, logits = torch.rand(num, 3), 0.02 * torch.randn(num, 3), torch.randn(num, CLASSES)
    logits[:, 3] += 2.5 * (coord[:, 0] > 0.6)
    logits[:, 2] += 2.5 * (coord[:, 0] < 0.3)
    got = model.proposals(coord, bias, logits, ends)

    probability = logits.softmax(-1)
    segment = probability.argmax(-1)
    kept = torch.tensor([int(s) not in ignored for s in segment])
    scene = torch.searchsorted(ends, torch.arange(num), right=True)
    starts = torch.tensor([0, *(int((kept & (scene <= b)).sum()) for b in range(3))])
    moved = ((coord + bias) / 0.1)[kept]
    idx, start_len = ballquery_batch_p(moved, scene[kept], starts, 0.9, 300)
    members, _ = bfs_cluster(segment[kept], idx, start_len, 3)
    masks = torch.zeros(int(members[:, 0].max()) + 1, num, dtype=torch.int32)
    masks[members[:, 0].long(), kept.nonzero().flatten()[members[:, 1].long()]] = 1
    masks = masks[masks.sum(1) > 5]
    assert len(masks) > 3 and masks.sum(1).min() < 20
    assert torch.equal(got["pred_masks"].to_dense().int(), masks)
    classes = [int(segment[mask.bool()].unique()) for mask in masks]
    assert got["pred_classes"].tolist() == classes and not set(classes) & set(ignored)
    scores = [probability[mask.bool(), k].mean().item() for mask, k in zip(masks, classes, strict=True)]
    assert got["pred_scores"].tolist() == pytest.approx(scores, rel=1e-5)
    assert (masks[:, :400].any(1) ^ masks[:, 400:].any(1)).all()  # none is in two scenes


def test_true_ways_find_the_objects():
    """With the true way to the centre, each object is one proposal, touching ones of one class included."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]])
    coord = torch.from_numpy(np.concatenate([c + rng.uniform(-0.5, 0.5, (200, 3)) for c in centres])).float()
    true = torch.from_numpy(np.repeat(centres, 200, 0)).float()
    logits = torch.zeros(600, CLASSES)
    logits[:, 2] = 9.0
    model = build(cluster_propose_points=100, cluster_min_points=50, voxel_size=0.2)
    found = model.proposals(coord, true - coord, logits, torch.tensor([600]))
    assert torch.equal(found["pred_masks"].to_dense(), torch.eye(3).repeat_interleave(200, 1).bool())
    together = model.proposals(coord, torch.zeros(600, 3), logits, torch.tensor([600]))
    assert len(together["pred_scores"]) == 1  # without them, one


SIZES = [("cluster_propose_points", 19, 1), ("cluster_propose_points", 20, 0), ("cluster_min_points", 20, 1),
         ("cluster_min_points", 21, 0)]  # fmt: skip


@pytest.mark.parametrize("name,value,kept", SIZES)
def test_sizes_of_proposals(name, value, kept):
    logits = torch.zeros(20, CLASSES)
    logits[:, 2] = 9.0
    found = build(**{"cluster_propose_points": 0, "cluster_min_points": 0, name: value}).proposals(
        0.01 * torch.rand(20, 3), torch.zeros(20, 3), logits, torch.tensor([20])
    )
    assert len(found["pred_scores"]) == kept and found["pred_masks"].shape == (kept, 20)


def test_checkpoint_layout():
    keys = {key for key in build().state_dict() if not key.startswith("backbone.")}
    norm = {f"bias_head.1.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    linear = {f"{name}.{key}" for name in ("bias_head.0", "bias_head.3", "seg_head") for key in ("weight", "bias")}
    assert keys == norm | linear
    model = build()
    assert model.bias_head[1].eps == 1e-3 and model.bias_head[1].momentum == 0.01
    assert set(build("PG-v1m2", criteria=dict(type="CrossEntropyLoss")).state_dict()) == set(model.state_dict())


def test_defaults_are_pointcepts():
    model = build_model(dict(type="PG-v1m1", backbone=dict(type="PointGroupTestBackbone")))
    assert (model.cluster_thresh, model.cluster_closed_points, model.cluster_propose_points) == (1.5, 300, 100)
    assert (model.cluster_min_points, model.voxel_size, model.segment_ignore_index) == (50, 0.02, (-1, 0, 1))
    assert model.seg_head.weight.shape == (20, 64)


def test_v1m2():
    losses = [dict(type="CrossEntropyLoss", ignore_index=-1), dict(type="LovaszLoss", mode="multiclass", ignore_index=-1)]
    sample = batch()
    both, one = build("PG-v1m2", criteria=losses), build("PG-v1m2", criteria=losses[:1])
    one.load_state_dict(both.state_dict())
    assert both(sample)["seg_loss"] > one(sample)["seg_loss"]
    plain = build()
    plain.load_state_dict(one.state_dict())
    assert torch.allclose(plain.eval()(sample)["loss"], one.eval()(sample)["loss"])
    frozen = build("PG-v1m2", criteria=losses, freeze_backbone=True).train()
    frozen(sample)["loss"].backward()
    assert not frozen.backbone.training and all(p.grad is None for p in frozen.backbone.parameters())
    assert frozen.bias_head.training and frozen.seg_head.weight.grad is not None
    assert torch.equal(frozen(sample, return_point=True)["point"], frozen.backbone(sample))
    with pytest.raises(ValueError, match="criteria"):
        build("PG-v1m2")


@pytest.mark.parametrize(("wrong", "near"), [("cluster_tresh", "cluster_thresh"), ("criteriae", "criteria")])
def test_a_mistyped_argument_of_v1m2_is_named(wrong, near):
    """Also one that is PG-v1m1's, which v1m2 hands on; and a subclass is told by its own arguments and theirs."""
    with pytest.raises(TypeError, match=f"takes no argument '{wrong}'; did you mean '{near}'"):
        build("PG-v1m2", criteria=dict(type="CrossEntropyLoss"), **{wrong: 1})

    class Further(PointGroupWithCriteria):
        def __init__(self, further=1, **kwargs):
            super().__init__(**kwargs)

    assert {"further", "criteria", "cluster_thresh", "backbone"} < set(inspect.signature(Further).parameters)
    assert list(inspect.signature(PointGroupWithCriteria).parameters)[-11:] == list(inspect.signature(PointGroup).parameters)


def test_a_backbone_may_return_a_dict():
    model = build(backbone=dict(type="PointGroupTestBackbone", as_dict=True)).eval()
    assert model(batch())["seg_logits"].shape == (60, CLASSES)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_learn_from(training):
    """No instance, and no label at all: the losses are finite (0 for what has no point), and so are gradients."""
    sample = batch()
    sample["instance"].fill_(-1)
    model = build().train(training)
    output = model(sample)
    assert output["bias_l1_loss"] == 0 and output["bias_cosine_loss"] == 0 and output["loss"] == output["seg_loss"] > 0
    sample["segment"].fill_(-1)
    output = model(sample)
    assert output["loss"] == 0
    output["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_one_point():
    sample = batch(1, 1)
    assert torch.isfinite(build().eval()(sample)["loss"])
    with pytest.raises(ValueError, match="PG-v1m1: a training batch needs at least 2 points, got 1"):
        build()(sample)


def test_bad_batches():
    model, sample = build(), batch()
    with pytest.raises(KeyError, match="PG-v1m1: training needs 'instance_centroid'"):
        model({key: value for key, value in sample.items() if key != "instance_centroid"})
    unparsed = model.eval()({key: value for key, value in sample.items() if key != "instance_centroid"})
    assert sorted(unparsed) == ["pred_classes", "pred_masks", "pred_scores", "seg_logits"]
    model.train()
    sample["segment"][3] = CLASSES
    sample["segment"][4] = -2
    with pytest.raises(ValueError, match=r"segment must lie in 0..4 or be -1, got \[-2, 5\] in 2 points"):
        model(sample)
    with pytest.raises(ValueError, match="gives 8 features a point, backbone_out_channels is 64"):
        build(backbone_out_channels=64)(batch())
    with pytest.raises(ValueError, match="voxel_size and cluster_thresh must be positive, got 0 and 1.5"):
        build(voxel_size=0)


def test_masks_take_memory_for_their_points_alone():
    """27 blocks of 125 points are 27 proposals with 3,375 entries; dense masks would have 27 times as many."""
    coord = torch.stack(torch.meshgrid(*[torch.arange(15)] * 3, indexing="ij"), -1).reshape(-1, 3).float()
    coord += 5.0 * (coord / 5).floor()  # blocks 6 apart
    logits = torch.zeros(len(coord), 3)
    logits[:, 2] = 1.0
    model = build(semantic_num_classes=3, voxel_size=1.0, cluster_propose_points=100)
    masks = model.proposals(coord, torch.zeros_like(coord), logits, torch.tensor([len(coord)]))["pred_masks"]
    assert masks.shape == (27, 3375) and masks.layout == torch.sparse_coo and masks.values().numel() == 3375
