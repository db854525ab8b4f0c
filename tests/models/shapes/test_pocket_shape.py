"""The pocket shape encoder: what it does not care about, how well scans find CAD models, and how it is made."""

import json

import numpy as np
import pytest
import torch

from pointcept3m.engines.pocket_shape import (
    PROBE_SEED,
    _visible,
    make_pairs,
    make_pocket_shape,
    partial_scan,
    score_shape,
)
from pointcept3m.models.builder import SHAPE_ENCODERS
from pointcept3m.models.shapes import PocketShape, sample_points, unit_sphere
from pointcept3m.models.shapes.pocket import WEIGHTS


@pytest.fixture(scope="module")
def encoder():
    return SHAPE_ENCODERS.build(dict(type="PocketShape"))


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(range(PROBE_SEED + 100, PROBE_SEED + 106), scans=1, split="val")


def test_scans_find_their_cad_models(encoder, pairs):
    """Rooms that nothing was trained on: many times better than chance."""
    scores = score_shape(encoder, pairs)
    assert scores["gallery"] == 100
    assert scores["top1"] > 20 * scores["chance_top1"] and scores["top5"] > 10 * scores["chance_top5"]
    assert scores["category"] > 3 * scores["chance_category"]


def test_shipped_file_is_small_and_says_its_scores():
    assert (WEIGHTS / "pocket_shape.safetensors").stat().st_size < 700_000
    assert json.loads((WEIGHTS / "pocket_shape.json").read_text())["top1"] > 0.2


def test_invariance(encoder, pairs):
    cloud = pairs.cad[0].double().numpy()
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    vectors = encoder([cloud, cloud * 3 + 5, cloud @ turn.T, cloud * [-1, 1, 1], cloud @ turn[[0, 2, 1]]])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(vectors[1:4], vectors[:1].expand(3, -1), atol=2e-3)
    assert (vectors[4] - vectors[0]).norm() > 0.1  # laid on its side it is another thing
    assert torch.allclose(encoder([cloud]), vectors[:1], atol=1e-5)


def test_sampling_and_sphere():
    points = np.random.default_rng(0).normal(size=(40, 3))
    few = sample_points(points, 100)
    assert few.shape == (100, 3) and len(np.unique(few, axis=0)) == 40
    many = sample_points(points, 30)
    assert len(np.unique(many, axis=0)) == 30 and np.array_equal(many, sample_points(points, 30))
    ball = unit_sphere(points)
    assert np.abs(ball.mean(0)).max() < 1e-6 and np.linalg.norm(ball, axis=1).max() == pytest.approx(1)
    assert not unit_sphere(np.ones((5, 3))).any()


def test_a_scan_is_partial():
    """From one place mostly the three near sides of a box are seen."""
    box = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    points = np.random.default_rng(0).random((3000, 3))
    axis, side = np.arange(3000) % 3, np.arange(3000) // 3 % 2
    points[np.arange(3000), axis] = side
    seen = _visible(points, np.array([3.0, 2.0, 2.0]))
    front, back = side == 1, side == 0
    inner = ((points > 0.1) & (points < 0.9)).sum(1) == 2
    assert seen[front & inner].mean() > 0.5 and seen[back & inner].mean() < 0.15  # few points make a depth buffer with holes
    faces = np.array([[0, 1, 2], [1, 2, 3], [4, 5, 6], [5, 6, 7], [0, 1, 4], [1, 4, 5], [2, 3, 6], [3, 6, 7], [0, 2, 4], [2, 4, 6], [1, 3, 5], [3, 5, 7]])
    scan = partial_scan(box, faces, np.random.default_rng(1))
    assert scan.shape == (512, 3) and scan.min() > -0.1 and scan.max() < 1.1


def test_training_writes_what_it_reads(tmp_path, monkeypatch):
    from pointcept3m.engines import pocket_shape

    monkeypatch.setattr(pocket_shape, "make_pairs", lambda seeds, scans=3, split="train", make=make_pairs: make(seeds[:1], scans, split))
    scores = make_pocket_shape(tmp_path, rooms=1, steps=2)
    assert json.loads((tmp_path / "pocket_shape.json").read_text())["gallery"] == scores["gallery"]
    made = PocketShape(tmp_path / "pocket_shape.safetensors")
    assert made.dim == 128 and made.fingerprint != PocketShape().fingerprint


def test_a_damaged_weight_is_refused(tmp_path):
    data = bytearray((WEIGHTS / "pocket_shape.safetensors").read_bytes())
    data[-9] ^= 255
    (tmp_path / "broken.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="broken.safetensors: the weights do not match their digest"):
        PocketShape(tmp_path / "broken.safetensors")
