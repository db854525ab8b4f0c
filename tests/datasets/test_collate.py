"""Batches: packing, shifting, stacking, Mix3D."""

import numpy as np
import pytest
import torch

from pointcept3m.datasets.collate import collate_fn, point_collate_fn


def sample(count: int, name: str, views: int = 0) -> dict:
    data = {
        "coord": torch.rand(count, 3),
        "instance": torch.arange(count) % 3 - 1,
        "inverse": torch.arange(2 * count) % count,
        "index": torch.arange(count),
        "origin_segment": torch.zeros(2 * count, dtype=torch.int64),
        "offset": torch.tensor([count]),
        "origin_offset": torch.tensor([2 * count]),
        "name": name,
    }
    if views:
        data["rgb"] = torch.rand(views, 4, 6, 3)
        data["intrinsic"] = torch.rand(views, 3, 3)
        data["view_name"] = [f"{name}/{v}" for v in range(views)]
    return data


def test_points_are_packed_and_indices_shifted():
    samples = [sample(3, "a"), sample(4, "b"), sample(2, "c")]
    batch = collate_fn(samples)
    assert batch["offset"].tolist() == [3, 7, 9] and batch["origin_offset"].tolist() == [6, 14, 18]
    assert batch["coord"].shape == (9, 3) and batch["name"] == ["a", "b", "c"]
    # `inverse` of every raw point must lead to a point of its own scene
    raw = torch.cat([s["coord"][s["inverse"]] for s in samples])
    assert torch.equal(batch["coord"][batch["inverse"]], raw)
    assert batch["index"].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]  # rows of the raw scenes, not of the batch


def test_views_are_stacked_whether_or_not_collect_led_them():
    samples = [sample(3, "a", 2), sample(4, "b", 2)]
    batch = collate_fn(samples)
    assert batch["rgb"].shape == (2, 2, 4, 6, 3) and batch["intrinsic"].shape == (2, 2, 3, 3)
    assert batch["view_name"] == [["a/0", "a/1"], ["b/0", "b/1"]]
    led = [{**s, "rgb": s["rgb"].unsqueeze(0)} for s in samples]
    assert torch.equal(collate_fn(led)["rgb"], batch["rgb"])
    with pytest.raises(ValueError, match="'rgb' cannot be stacked"):
        collate_fn([sample(3, "a", 2), sample(3, "b", 3)])


def test_view_prefix_shifts_by_its_own_points():
    one = {"view1_coord": torch.rand(2, 3), "view1_inverse": torch.tensor([0, 1, 1]), "view1_offset": torch.tensor([2])}
    batch = collate_fn([one, one])
    assert batch["view1_inverse"].tolist() == [0, 1, 1, 2, 3, 3] and batch["view1_offset"].tolist() == [2, 4]


def test_other_values():
    batch = collate_fn([{"x": 1.5, "y": np.zeros((1, 2)), "z": torch.tensor(3)}] * 2)
    assert batch["x"].tolist() == [1.5, 1.5] and batch["y"].shape == (2, 2) and batch["z"].tolist() == [3, 3]


def test_errors():
    with pytest.raises(ValueError, match="empty list"):
        collate_fn([])
    with pytest.raises(TypeError, match="got dict"):
        collate_fn({})
    with pytest.raises(KeyError, match="samples 0 and 1 of the batch differ in the keys coord, extra"):
        collate_fn([{"coord": 1}, {"extra": 1}])
    with pytest.raises(KeyError, match="neither offset nor coord"):
        collate_fn([{"inverse": torch.arange(2)}] * 2)


@pytest.mark.parametrize("scenes, ends", [(4, [7, 11]), (3, [7, 9]), (1, [3])])
def test_mix3d_merges_neighbours(scenes, ends):
    counts, names = [3, 4, 2, 2][:scenes], "abcd"[:scenes]
    samples = [sample(c, n) for c, n in zip(counts, names, strict=True)]
    plain, mixed = collate_fn(samples), point_collate_fn(samples, mix_prob=1.0)
    assert mixed["offset"].tolist() == ends
    assert mixed["origin_offset"].tolist() == [2 * e for e in ends]
    assert mixed["name"] == {4: ["a+b", "c+d"], 3: ["a+b", "c"], 1: ["a"]}[scenes]
    for key in ("coord", "inverse"):
        assert torch.equal(mixed[key], plain[key])
    start = 0
    for end in mixed["offset"].tolist():
        # ids of the two merged scenes are told apart, "no instance" stays
        ids = mixed["instance"][start:end]
        assert (ids == -1).sum() == (plain["instance"][start:end] == -1).sum()
        merged = [n for n, last in zip(counts, plain["offset"].tolist(), strict=True) if start < last <= end]
        assert len(ids[ids >= 0].unique()) == sum(len(set((np.arange(n) % 3 - 1).tolist()) - {-1}) for n in merged)
        start = end


def test_mix3d_only_with_its_probability_and_never_with_views():
    samples = [sample(3, "a"), sample(4, "b")]
    assert len(point_collate_fn(samples, mix_prob=0)["offset"]) == 2
    lengths = [len(point_collate_fn(samples, mix_prob=0.5)["offset"]) for _ in range(200)]
    assert 60 < lengths.count(1) < 140
    with pytest.raises(ValueError, match=r"Mix3D cannot merge scenes that have views \(rgb, intrinsic\)"):
        point_collate_fn([sample(3, "a", 1), sample(3, "b", 1)], mix_prob=1)
