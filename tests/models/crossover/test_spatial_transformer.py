"""Relations against their formula; a scene's tokens are its own."""

import numpy as np
import pytest
import torch

from pointcept3m.models.crossover.spatial_transformer import SpatialTransformer, pairwise_relations


def test_relations_are_those_of_the_formula():
    centers = torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0)) * 4
    known = torch.tensor([[True, True, True, False, True]])
    found = pairwise_relations(centers, known)[0].numpy()
    c = centers[0].numpy().astype(np.float64)
    largest = max(np.linalg.norm(c[i] - c[j]) for i in (0, 1, 2, 4) for j in (0, 1, 2, 4))
    for i in range(5):
        for j in range(5):
            if i == j:
                continue
            d = c[i] - c[j]
            flat, length = np.hypot(d[0], d[1]), np.linalg.norm(d)
            assert np.allclose(found[i, j], [length / largest, d[2] / length, flat / length, d[1] / flat, d[0] / flat], atol=1e-4)


@pytest.mark.parametrize("location", ["concat", "add"])
def test_a_scene_does_not_see_the_others(location):
    torch.manual_seed(0)
    layer = SpatialTransformer(24, 4, 2, 32, location=location).eval()
    feature, box = torch.randn(12, 24), torch.rand(12, 6) * 3
    known = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1]).bool()
    offset = torch.tensor([4, 4, 7, 12])
    together = layer(feature, box, known, offset)
    assert torch.equal(together[~known], torch.zeros(3, 24))
    for first, last in ((0, 4), (4, 7), (7, 12)):
        part = slice(first, last)
        assert torch.allclose(layer(feature[part], box[part], known[part], torch.tensor([last - first])), together[part], atol=1e-5)
    # within a scene objects do see each other, but not those that are not known
    changed = feature.clone()
    changed[0] += 1
    changed[2] += 1
    moved = (layer(changed, box, known, offset) - together).abs().amax(1) > 1e-5
    assert moved.tolist() == [True, True, False, True] + [False] * 8


def test_a_shift_of_the_scene_changes_nothing_unless_the_release_is_asked_for():
    torch.manual_seed(0)
    feature, box, known, offset = torch.randn(6, 24), torch.rand(6, 6) * 3, torch.ones(6, dtype=torch.bool), torch.tensor([6])
    shifted = box + torch.tensor([5.0, -2, 1, 0, 0, 0])
    for centred, same in ((True, True), (False, False)):
        layer = SpatialTransformer(24, 4, 1, 32, centred=centred).eval()
        close = torch.allclose(layer(feature, box, known, offset), layer(feature, shifted, known, offset), atol=1e-4)
        assert close == same


def test_scenes_of_500_objects_and_of_none():
    layer = SpatialTransformer(24, 4, 1, 32).eval()
    known = torch.ones(500, dtype=torch.bool)
    assert torch.isfinite(layer(torch.randn(500, 24), torch.rand(500, 6), known, torch.tensor([500, 500]))).all()
    assert layer(torch.zeros(0, 24), torch.zeros(0, 6), known[:0], torch.tensor([0, 0])).shape == (0, 24)
    assert torch.equal(layer(torch.ones(2, 24), torch.zeros(2, 6), ~known[:2], torch.tensor([2])), torch.zeros(2, 24))


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="dim 10 is no multiple of its 4 heads"):
        SpatialTransformer(10, 4)
    with pytest.raises(ValueError, match="location must be"):
        SpatialTransformer(location="none")
