"""The sparse ResNet: its strided convolutions against dense ones, one vector a scene."""

import pytest
import torch
from torch.nn import functional as F

from pointcept3m.models import build_model
from pointcept3m.models.backbones.sparse_resnet import CentredStridedConvolution
from pointcept3m.structures.sparse import SparseConvTensor

SMALL = dict(type="SparseResNet14", in_channels=3, planes=(8, 8, 16, 16), init_dim=8)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (3, 2), (1, 2), (3, 3)])
def test_outputs_stand_where_inputs_are_and_nowhere_else(kernel, stride):
    """Values are those of a dense convolution there; MinkowskiEngine keeps floor(i / stride), with a kernel around stride * o."""
    layer = CentredStridedConvolution(3, 4, kernel, stride)
    cells = (torch.rand(2, 12, 12, 12) < 0.05).nonzero().int()
    cells = cells[torch.randperm(len(cells))]
    feature = torch.randn(len(cells), 3, requires_grad=True)
    x = SparseConvTensor(feature, cells, (12,) * 3, 2)
    out = layer(x)
    b, i, j, k = out.indices.long().unbind(1)
    expected = F.conv3d(x.dense(), layer._krsc().permute(0, 4, 1, 2, 3), stride=stride, padding=kernel // 2)[b, :, i, j, k]
    assert expected.abs().max() > 0.1 and torch.allclose(out.features, expected, atol=1e-4)
    assert {tuple(row) for row in out.indices.tolist()} == {(b, i // stride, j // stride, k // stride) for b, i, j, k in cells.tolist()}
    weights = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad((rows * weights).sum(), (feature, layer.kernel), retain_graph=True) for rows in (out.features, expected))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def cloud(points, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 300, (points, 3), generator=g), torch.rand(points, 3, generator=g)


def test_one_vector_a_scene_whatever_its_batch():
    model = build_model(SMALL)
    parts = [cloud(900, 0), cloud(500, 1), cloud(700, 2)]
    batch = dict(grid_coord=torch.cat([p[0] for p in parts]), feat=torch.cat([p[1] for p in parts]), offset=torch.tensor([900, 1400, 2100]))
    rows = model.train()(batch)
    rows.sum().backward()
    assert rows.shape == (3, 16) == (3, model.out_channels)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    model.eval()
    together = model(batch)
    for k, (coord, feat) in enumerate(parts):
        alone = model(dict(grid_coord=coord, feat=feat, offset=torch.tensor([len(feat)])))
        assert torch.allclose(alone[0], together[k], atol=1e-4)
    # points of one cell count once, with their mean
    twice = model({key: torch.cat([value, value]) if key != "offset" else value for key, value in dict(
        grid_coord=parts[0][0], feat=parts[0][1], offset=torch.tensor([1800])).items()})  # fmt: skip
    assert torch.allclose(twice[0], together[0], atol=1e-4)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="SparseResNet14: planes and layers must have one entry a stage"):
        build_model({**SMALL, "planes": (8, 8)})
    with pytest.raises(ValueError, match="SparseResNet14: feat must be"):
        build_model(SMALL)(dict(grid_coord=torch.zeros(2, 3).long(), feat=torch.zeros(2, 5), offset=torch.tensor([2])))
