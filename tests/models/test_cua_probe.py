"""Linear probes of a distilled model: against the layer on features side by side, what is frozen, what a weight must bring."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointcept3m.engines.checkpoint import load_weights
from pointcept3m.engines.probe import HeadFeatures
from pointcept3m.models import build_model
from pointcept3m.models.builder import MODELS

HEADS = dict(text=dict(dim=5), image=dict(dim=9, loss="l1"), noise=dict(dim=7, demean=True))


@MODELS.register_module("NormBackbone", force=True)
class NormBackbone(nn.Module):
    """A linear layer and a batch norm on each point."""

    def __init__(self, out_channels: int = 4):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, out_channels), nn.BatchNorm1d(out_channels)

    def forward(self, batch):
        return self.norm(self.linear(batch["feat"]))


def distilled(heads=HEADS):
    return build_model(dict(type="CUA-O3D-v1m1", backbone=dict(type="NormBackbone"), backbone_out_channels=4, heads=heads))


def probe(heads=HEADS, **arguments):
    criteria = [dict(type="CrossEntropyLoss", ignore_index=-1)]
    return build_model(
        dict(type="CUA-O3D-Probe", backbone=dict(type="NormBackbone"), backbone_out_channels=4, heads=heads, num_classes=6, criteria=criteria, **arguments)
    )


def batch(count=40):
    return dict(feat=torch.randn(count, 3), segment=torch.randint(-1, 6, (count,)), offset=torch.tensor([count]))


@pytest.fixture
def weight(tmp_path):
    model = distilled()
    model.backbone.norm.running_mean.uniform_(-1, 1)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "distilled.pth")
    return model.eval(), tmp_path / "distilled.pth"


def loaded(path, **arguments):
    model = probe(**arguments)
    load_weights(model, path, allow_partial=None)  # as CheckpointLoader does
    return model


@pytest.mark.parametrize("hidden", [0, 3])
def test_concat_is_one_layer_on_features_side_by_side(tmp_path, hidden):
    heads = {name: {**head, "hidden": hidden} for name, head in HEADS.items()}
    model = distilled(heads).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "w.pth")
    linear = loaded(tmp_path / "w.pth", heads=heads, mode="concat").eval()
    data = batch()
    side_by_side = torch.cat([model.embed(data, name) for name in HEADS], 1)
    assert linear.seg_head[0].weight.shape == (6, 21)
    wanted = side_by_side @ linear.seg_head[0].weight.T
    found = linear(data)
    torch.testing.assert_close(found["seg_logits"], wanted)
    torch.testing.assert_close(found["loss"], F.cross_entropy(wanted, data["segment"], ignore_index=-1))
    # the gradient of the layer is the one that the plain layer has
    layer = nn.Linear(21, 6, bias=False)
    layer.weight.data.copy_(linear.seg_head[0].weight.data)
    F.cross_entropy(layer(side_by_side.detach()), data["segment"], ignore_index=-1).backward()
    linear.train()(data)["loss"].backward()
    torch.testing.assert_close(linear.seg_head[0].weight.grad, layer.weight.grad)


def test_a_concat_probe_has_no_more_rank_than_the_backbone_has_channels(weight):
    linear = loaded(weight[1], mode="concat").eval()
    logits = linear(dict(feat=torch.randn(500, 3) * 3, offset=torch.tensor([500])))["seg_logits"]
    assert torch.linalg.matrix_rank(logits.double(), rtol=1e-5) <= 4 < 6 < 21


def test_average_adds_losses_and_averages_logits(weight):
    model, path = weight
    linear, data = loaded(path, mode="average", probe_heads=("image", "text")).eval(), batch()
    each = [model.embed(data, name) @ layer.weight.T for name, layer in zip(("image", "text"), linear.seg_head, strict=True)]
    found = linear(data)
    torch.testing.assert_close(found["seg_logits"], (each[0] + each[1]) / 2)
    torch.testing.assert_close(found["loss"], sum(F.cross_entropy(one, data["segment"], ignore_index=-1) for one in each))
    torch.testing.assert_close(linear({key: data[key] for key in ("feat", "offset")})["seg_logits"], found["seg_logits"])
    assert set(linear.train()(data)) == {"loss"}
    with pytest.raises(KeyError, match="training needs 'segment'"):
        linear({key: data[key] for key in ("feat", "offset")})


def test_single_is_one_head(weight):
    model, path = weight
    linear, data = loaded(path, mode="single", probe_heads="noise").eval(), batch()
    torch.testing.assert_close(linear(data)["seg_logits"], model.embed(data, "noise") @ linear.seg_head[0].weight.T)


@pytest.mark.parametrize("mode", ["concat", "average", "single"])
def test_nothing_but_the_layers_moves(weight, mode):
    linear = loaded(weight[1], mode=mode, probe_heads=("text",) if mode == "single" else None).train()
    assert linear.training and not linear.backbone.training and not linear.heads.training
    before = {key: value.clone() for key, value in linear.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in linear.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        linear(batch())["loss"].backward()
        optimizer.step()
    moved = {key for key, value in linear.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith("seg_head.")}
    released = loaded(weight[1], frozen_norm="train").train()
    released(batch())
    changed = {key for key, value in released.state_dict().items() if not torch.equal(value, before.get(key, value))}
    assert "backbone.norm.running_mean" in changed, "the release's statistics move"


def test_weights_must_bring_the_heads(tmp_path, weight):
    model, path = weight
    with pytest.raises(ValueError, match="heads.extra.weight"):
        loaded(path, heads={**HEADS, "extra": dict(dim=3)})
    backbone = {key: value for key, value in model.state_dict().items() if key.startswith("backbone")}
    torch.save(dict(state_dict=backbone), tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="lack 3 of 10 tensors that stay frozen .heads.text.weight"):
        loaded(tmp_path / "backbone.pth")
    trained = probe()
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / "probe.pth")
    load_weights(probe(), tmp_path / "probe.pth")  # its own weights fit


def test_bad_input():
    for arguments, words in (
        (dict(mode="concatenate"), "mode must be one of concat, average, single"),
        (dict(mode="single"), "wants one head in probe_heads, got text, image, noise"),
        (dict(probe_heads=("txt",)), "no head 'txt'; did you mean 'text'"),
        (dict(probe_heads=()), "at least one head, none twice in probe_heads, got none"),
        (dict(probe_heads=("text", "text")), "none twice"),
        (dict(frozen_norm="no"), "frozen_norm must be"),
        (dict(criteria_=None), "did you mean 'criteria'"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            probe(**arguments)


def test_quick_probes_see_a_heads_features(weight):
    model, data = weight[0], batch()
    assert torch.equal(HeadFeatures(model, "image")(data), model.embed(data, "image"))
    with pytest.raises(KeyError, match="no head 'images'; did you mean 'image'"):
        HeadFeatures(model, "images")
    with pytest.raises(TypeError, match="a Linear has no heads"):
        HeadFeatures(nn.Linear(2, 2), "image")
