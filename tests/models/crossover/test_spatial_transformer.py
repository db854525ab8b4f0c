"""Relations against their formula; a scene's tokens are its own."""

import numpy as np
import pytest
import torch

from pointcept3m.models.crossover.spatial_transformer import SpatialAttention, SpatialTransformer, pairwise_relations


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


def test_attention_is_that_of_its_formula():
    """One query, head and object at a time."""
    torch.manual_seed(0)
    layer = SpatialAttention(8, 2, 0.0).eval()
    x, known = torch.randn(1, 4, 8), torch.tensor([[True, True, False, True]])
    relations = pairwise_relations(torch.rand(1, 4, 3) * 3, known)
    query, key, value = (part(x)[0].detach().double().numpy() for part in (layer.query, layer.key, layer.value))
    gates = layer.relation(x)[0].detach().double().numpy()
    mixed = np.zeros((4, 8))
    for i in range(4):
        for head in range(2):
            part, weight = slice(4 * head, 4 * head + 4), gates[i, 6 * head : 6 * head + 6]
            power = np.zeros(4)
            for j in (0, 1, 3):
                s = 1 / (1 + np.exp(-(weight[0] + weight[1:] @ relations[0, i, j].double().numpy())))
                power[j] = max(s, 1e-6) * np.exp(query[i, part] @ key[j, part] / 2)
            mixed[i, part] = power / power.sum() @ value[:, part]
    expected = layer.norm(x + layer.out(torch.from_numpy(mixed).float()))
    assert torch.allclose(layer(x, relations, known), expected, atol=1e-5)


def test_large_scenes_are_not_padded_onto_small_ones():
    """Scenes of 3, 100 and 17 objects are three sizes of arrays, and each is as if it were alone."""
    torch.manual_seed(0)
    layer, sizes = SpatialTransformer(24, 4, 1, 32).eval(), []
    attend = layer._attend
    layer._attend = lambda x, box, known: (sizes.append(tuple(x.shape[:2])), attend(x, box, known))[1]
    counts = torch.tensor([3, 100, 17, 5])
    feature, box, known = torch.randn(125, 24), torch.rand(125, 6), torch.ones(125, dtype=torch.bool)
    together = layer(feature, box, known, counts.cumsum(0))
    assert sizes == [(2, 5), (1, 17), (1, 100)]
    assert torch.allclose(layer(feature[3:103], box[3:103], known[:100], torch.tensor([100])), together[3:103], atol=1e-5)


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
