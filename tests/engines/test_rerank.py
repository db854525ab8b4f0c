"""Re-ranking of floorplan retrieval: rasters that do not know each other's axes, the right quarter, losses, order, the tester."""

import json

import numpy as np
import pytest
import torch

from pointcept3m.datasets import build_dataset, collate_fn, plan_pairs
from pointcept3m.datasets.floorplan import render_floorplan
from pointcept3m.engines import TRAINERS
from pointcept3m.engines.retrieval.rerank import all_scores, load_reranker, recall, reorder, rerank
from pointcept3m.models import build_model
from pointcept3m.structures.scene_embeddings import write_embeddings
from pointcept3m.structures.scene_objects import (
    Floorplan,
    SceneFacts,
    read_floorplan,
    write_facts,
    write_floorplan,
)
from tests.engines.embeddings import embeddings

SMALL = dict(size=32, cell=0.25)


def room(seed):
    """(walls [W, 2, 2], solids, points [P, 3]) of a room with a notch and three boxes in it, in turned axes, metres."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(3, 7, 2)
    outline = np.array([[0, 0], [x, 0], [x, y * 0.6], [x * 0.7, y * 0.6], [x * 0.7, y], [0, y]])
    angle = rng.uniform(0, 2 * np.pi)
    outline = plan_pairs.turn(outline, angle)
    walls = np.stack([outline, np.roll(outline, -1, axis=0)], axis=1)
    points = [wall[0] + (wall[1] - wall[0]) * t for wall in walls for t in np.linspace(0, 1, 200)]
    points = [np.column_stack([points, np.full(len(points), z)]) for z in np.linspace(0, 2.5, 26)]
    solids = []
    for _ in range(3):
        low = rng.uniform(0.1, 0.4, 2) * [x, y]
        size, height = rng.uniform(0.4, 1.0, 2), rng.uniform(0.4, 0.9)
        corners = plan_pairs.turn(low + size * np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), angle)
        solids.append((np.column_stack([corners, np.full(4, height)]), np.array([[0, 1, 2], [0, 2, 3]])))
        inside = plan_pairs.turn(low + size * rng.random((600, 2)), angle)
        points.append(np.column_stack([inside, np.full(600, height)]))
    floor = plan_pairs.turn(rng.random((2000, 2)) * [x, y * 0.6], angle)
    points.append(np.column_stack([floor, np.zeros(2000)]))
    return walls, solids, np.concatenate(points).astype(np.float32)


def write_rooms(root, train=6, val=4):
    """Rooms, the last of each split a rescan of its first."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = f"{split}{number}"
            walls, solids, points = room(number % (count - 1) + 100 * (split == "val"))
            folder = root / split / name
            folder.mkdir(parents=True)
            np.save(folder / "coord.npy", points)
            write_floorplan(folder, render_floorplan(walls, solids))
            write_facts(folder, SceneFacts(f"{split}{number % (count - 1)}", ("kitchen", "office")[number % 2]))
    return root


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return write_rooms(tmp_path_factory.mktemp("plans"))


def pairs(rooms, **settings):
    return build_dataset(dict(type="PlanPairDataset", data_root=str(rooms), **{"split": "train", "negatives": 3, **SMALL, **settings}))


def likeness(plan, scan):
    """Cosines of walls and furniture together, scan in each quarter turn."""
    turned = [torch.rot90(scan[:2], quarter, (1, 2)) for quarter in range(4)]
    return torch.stack([torch.nn.functional.cosine_similarity(plan.flatten(), one.flatten(), dim=0) for one in turned])


@pytest.mark.parametrize("degrees", [0, 17, 63.5, 89])
def test_the_outline_gives_the_angle(degrees):
    rng = np.random.default_rng(0)
    xy = plan_pairs.turn(rng.random((5000, 2)) * [4, 3], np.radians(degrees))
    found = np.degrees(plan_pairs.main_angle(xy))
    assert min(abs(found - degrees % 90), 90 - abs(found - degrees % 90)) <= 0.5


@pytest.mark.parametrize("mirrored", [False, True])
def test_turn_names_the_quarter_that_fits(rooms, mirrored):
    """The answer that matching is taught by, checked against which quarter is most alike."""
    data = pairs(rooms, negatives=0)
    for number in range(len(data)):
        plan, scan = data.marks(number)
        for quarters in range(4):
            data.fixed = not mirrored
            drawn = plan_pairs.raster(scan, 32, 0.25, quarters * np.pi / 2, mirror=mirrored)
            left = int(np.round((scan.angle - plan.angle) / (np.pi / 2)))
            turn = (left - quarters if not mirrored else -left + quarters) % 4
            alike = likeness(torch.from_numpy(plan_pairs.raster(plan, 32, 0.25, mirror=mirrored)), torch.from_numpy(drawn))
            assert int(alike.argmax()) == turn
    data.fixed = True
    samples = [data[number] for number in range(len(data))]
    assert all(int(likeness(s["plan"][0], s["scans"][0, 0]).argmax()) == int(s["turn"]) for s in samples)


def test_rasters_do_not_depend_on_the_axes_of_the_scan():
    walls, solids, points = room(3)
    plan = torch.from_numpy(plan_pairs.plan_raster(render_floorplan(walls, solids), 32, 0.25))
    best = []
    for angle in (0.0, 1.0, 2.5):
        moved = np.concatenate([plan_pairs.turn(points[:, :2], angle) + [30, -7], points[:, 2:] + 1], axis=1)
        best.append(float(likeness(plan, torch.from_numpy(plan_pairs.raster(plan_pairs.marks_of_points(moved), 32, 0.25))).max()))
    assert min(best) > 0.6 and max(best) - min(best) < 0.12


def test_paper_need_not_be_white():
    """A plan that was scanned or photographed: grey paper with some noise is paper, what is drawn on it is what it was."""
    walls, solids, _ = room(3)
    plan = render_floorplan(walls, solids)
    noise = np.random.default_rng(0).integers(-2, 3, plan.image.shape)
    grey = np.clip(np.where(plan.image == 255, 240 + noise, np.minimum(plan.image, 225)), 0, 255).astype(np.uint8)
    white, other = (plan_pairs.plan_raster(each, 32, 0.25) for each in (plan, Floorplan(grey, plan.metres_per_pixel)))
    assert np.abs(white - other).mean() < 0.01 and white[1].sum() > 5


def test_a_plan_of_any_number_of_dark_pixels():
    image = np.full((260, 260, 3), 255, np.uint8)
    image.reshape(-1, 3)[:33832] = 0  # spread over 30,000 marks, of which none may lie behind the last
    marks = plan_pairs.marks_of_plan(Floorplan(image, 0.02))
    assert len(marks.xy) == plan_pairs.MAX_POINTS and marks.cover * len(marks.xy) == pytest.approx(33832 * 0.02**2, rel=1e-6)


def test_negatives_are_of_other_places_and_half_of_the_same_kind(rooms):
    data = pairs(rooms, negatives=2)
    rng = np.random.default_rng(0)
    for number in range(len(data)):
        drawn = data.draw_negatives(number, rng)
        assert len(drawn) == 2 and all(data.places[k] != data.places[number] for k in drawn)
        assert data.categories[drawn[0]] == data.categories[number]
    assert len(pairs(rooms, negatives=9).draw_negatives(0, rng)) == 9  # more than there are: some come twice


def test_what_cannot_be_compared_is_named(rooms, tmp_path):
    plan = read_floorplan(rooms / "val" / "val0")
    with pytest.raises(ValueError, match="has no scale"):
        plan_pairs.plan_raster(Floorplan(plan.image), **SMALL)
    with pytest.raises(ValueError, match="no dark line"):
        plan_pairs.plan_raster(Floorplan(np.full((9, 9, 3), 255, np.uint8), 0.02), **SMALL)
    folder = tmp_path / "val" / "flat"
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", np.random.rand(500, 3).astype(np.float32) * [3, 3, 0.2])
    model = build_model(dict(type="CrossOver-rerank-v1m1", **SMALL))
    with pytest.raises(ValueError, match=r"scene flat: .*no wall"):
        rerank(plan, [folder], model)
    with pytest.raises(FileNotFoundError, match="floorplan"):
        build_dataset(dict(type="PlanPairDataset", data_root=str(tmp_path), split="val"))
    with pytest.raises(ValueError, match=r"raster \[2, 32, 32\]"):
        model.encode_plans(torch.zeros(1, 2, 16, 16))


def test_a_score_does_not_depend_on_the_other_candidates(rooms):
    model = build_model(dict(type="CrossOver-rerank-v1m1", **SMALL)).eval()
    folders, plan = sorted((rooms / "val").iterdir()), read_floorplan(rooms / "val" / "val1")
    whole = rerank(plan, folders, model)
    np.testing.assert_allclose([rerank(plan, [folder], model)[0] for folder in folders], whole, rtol=1e-4, atol=1e-5)
    assert len(rerank(plan, [], model)) == 0
    sample = collate_fn([pairs(rooms, split="val", negatives=0, fixed=True)[number] for number in range(4)])
    scores = all_scores(model, sample["plan"], sample["scans"][:, 0], chunk=3)
    turned = all_scores(model, sample["plan"], torch.rot90(sample["scans"][:, 0], 1, (2, 3)))
    np.testing.assert_allclose(scores, turned, rtol=1e-4, atol=1e-5)  # all quarters are tried


def test_it_learns_and_its_weight_ranks(rooms, tmp_path):
    """A few steps on six rooms put the own scan first on rooms never seen, and the tester writes before and after."""
    first = embeddings({"floorplan": np.ones((4, 3)).tolist(), "point": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]}, names=[f"val{k}" for k in range(4)])
    write_embeddings(tmp_path / "first.safetensors", first)
    cfg = dict(
        model=dict(type="CrossOver-rerank-v1m1", dim=16, **SMALL),
        data=dict(
            train=dict(type="PlanPairDataset", data_root=str(rooms), split="train", negatives=3, **SMALL),
            test=dict(type="PlanPairDataset", data_root=str(rooms), split="val", negatives=0, fixed=True, **SMALL),
        ),
        optimizer=dict(type="AdamW", lr=5e-3), scheduler=dict(type="CosineAnnealingLR"), save_path=str(tmp_path / "run"), num_worker=0, batch_size=6, seed=1,
        epoch=20, eval_epoch=1, hooks=[dict(type="CheckpointSaver"), dict(type="PreciseEvaluator", test_last=True), dict(type="MetricsWriter")],
        test=dict(type="RerankTester", embeddings=str(tmp_path / "first.safetensors"), top=4),
    )  # fmt: skip
    TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg).train()
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert scores["test_floorplan_point_re-ranked_place_top1"] == 1 > scores["test_floorplan_point_first_stage_top1"]
    assert "among which is the answer in 100.0 %" in (tmp_path / "run" / "result" / "rerank.txt").read_text()
    model = load_reranker(tmp_path / "run" / "model" / "model_last.pth")
    folders = sorted((rooms / "val").iterdir())[:3]
    found = [int(np.argmax(rerank(read_floorplan(folder), folders, model))) for folder in folders]
    assert found == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        load_reranker(tmp_path / "nothing.pth")


def test_order_by_hand():
    first, second = np.array([[0.9, 0.8, 0.7, 0.1]]), np.array([[0.1, 0.3, 0.2, 5.0]])
    assert np.argsort(-reorder(first, second, 3)[0]).tolist() == [1, 2, 0, 3]  # the last was no candidate, however well it matches
    assert np.argsort(-reorder(first, second, 1)[0]).tolist() == [0, 1, 2, 3]
    scores = recall(np.array([[3.0, 2, 1], [3, 2, 1]]), np.array([[True, False, False], [False, False, True]]), (1, 2))
    assert scores == {"top1": 0.5, "top2": 0.5, "chance_top1": pytest.approx(1 / 3), "chance_top2": pytest.approx(2 / 3), "queries": 2}
