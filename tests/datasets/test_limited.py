"""Limited labels: the lists that data sets read, how they are chosen, and annotated points on their way to a batch."""

import importlib.util
from collections import Counter

import numpy as np
import pytest
import torch

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.datasets.collate import mix_pairs
from pointcept3m.datasets.limited import num_scenes, order_points, order_scenes, write_rows
from tests.conftest import REPOSITORY
from tests.datasets.synthetic import write_scene

spec = importlib.util.spec_from_file_location("limited_tool", REPOSITORY / "tools" / "preprocess" / "limited.py")
limited_tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(limited_tool)


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b", "c"):
        write_scene(tmp_path / "Area_1" / name, frames=1, count=500)
        segment = np.load(tmp_path / "Area_1" / name / "segment.npy")
        np.save(tmp_path / "Area_1" / name / "segment20.npy", segment)
    return tmp_path


def build(root, kind, **arguments):
    return build_dataset(dict(type=kind, data_root=str(root), split="Area_1", **arguments))


# every data set takes both; S3DIS calls a room by its area too
@pytest.mark.parametrize("kind, prefix", [("ScanNetDataset", ""), ("RoomsDataset", ""), ("S3DISDataset", "Area_1-")])
def test_limited_reconstructions_and_annotations(root, kind, prefix):
    (root / "few.txt").write_text(f"{prefix}c\n{prefix}a\n\n")
    few = build(root, kind, lr_file=str(root / "few.txt"))
    assert [few[i]["name"] for i in range(len(few))] == [f"{prefix}c", f"{prefix}a"]
    rows = np.array([11, 3, 7, 3])
    torch.save({f"{prefix}{name}": rows for name in ("a", "b", "c")}, root / "points")
    data = build(root, kind, la_file=str(root / "points"))[1]
    assert np.flatnonzero(data["segment"] >= 0).tolist() == [3, 7, 11] == data["sampled_index"].tolist()
    labels = np.load(root / "Area_1" / "b" / "segment.npy")
    assert data["segment"][[3, 7, 11]].tolist() == labels[[3, 7, 11]].tolist()
    both = build(root, kind, lr_file=str(root / "few.txt"), la_file=root / "points", ignore_index=255)
    assert (both[0]["segment"] != 255).sum() == 3 and both[0]["name"] == f"{prefix}c"


def test_lists_that_do_not_fit_are_named(root):
    (root / "few.txt").write_text("zz\n")
    with pytest.raises(FileNotFoundError, match="1 scenes of lr_file are not in .* first 'zz'"):
        build(root, "RoomsDataset", lr_file=str(root / "few.txt"))
    (root / "few.txt").write_text("\n")
    with pytest.raises(ValueError, match="few.txt: the list of scenes .* is empty"):
        build(root, "RoomsDataset", lr_file=str(root / "few.txt"))
    with pytest.raises(FileNotFoundError, match=r"fw.txt: no such list of scenes .*few.txt"):
        build(root, "RoomsDataset", lr_file=str(root / "fw.txt"))
    for row, wrong in ((500, "500"), (-1, "-1")):
        torch.save({name: torch.tensor([row]) for name in "abc"}, root / "points")
        with pytest.raises(ValueError, match=f"la_file names row {wrong} of 'a', which has 500 points"):
            _ = build(root, "RoomsDataset", la_file=str(root / "points"))[0]
    torch.save({"a": [1], "c": [2], "bb": [1]}, root / "points")
    with pytest.raises(KeyError, match="leaves out 1 scenes of the split, first 'b'; did you mean 'bb'"):
        build(root, "RoomsDataset", la_file=str(root / "points"))
    torch.save({"a": np.random.default_rng(0)}, root / "points")
    with pytest.raises(ValueError, match=r"not a plain torch file of numbers \(.*Unsupported global.*generator_ctor\)"):
        build(root, "RoomsDataset", la_file=str(root / "points"))
    torch.save([1], root / "points")
    with pytest.raises(ValueError, match="wanted a dict of scene names, got list"):
        build(root, "RoomsDataset", la_file=str(root / "points"))


# ---- choosing


def test_scenes_are_nested_and_bring_every_class_early():
    rng = np.random.default_rng(0)
    classes = {f"s{n:03d}": set(rng.choice(20, 6, replace=False).tolist()) for n in range(120)}
    classes["s007"] = set()
    order = order_scenes(classes, seed=1)
    assert sorted(order) == sorted(classes) and order[-1] == "s007"
    # six of twenty classes a scene: at least four scenes are needed, and a greedy choice takes few more
    covered = [len(set().union(*(classes[name] for name in order[:n]))) for n in range(1, 9)]
    assert covered[0] == 6 and covered[7] == 20
    rest = order[8:119]
    assert rest != sorted(rest) and order == order_scenes(dict(reversed(classes.items())), seed=1)
    assert order != order_scenes(classes, seed=2)
    assert [num_scenes(percent, 1201) for percent in (1, 5, 10, 20, 100)] == [12, 60, 120, 240, 1201]
    assert num_scenes(1, 32) == 1
    with pytest.raises(ValueError, match=r"\(0, 100\] percent, got 0"):
        num_scenes(0, 10)


def test_points_cover_the_classes_first_and_are_uniform_after():
    segment = np.repeat([0, 1, 2, -1], [900, 90, 10, 500])
    order = order_points(segment, "room", seed=3)
    assert sorted(order.tolist()) == list(range(1000))  # the labelled ones, each once
    assert sorted(segment[order[:3]].tolist()) == [0, 1, 2]
    np.testing.assert_array_equal(order, order_points(segment, "room", seed=3))
    assert (order != order_points(segment, "other", seed=3)).any()
    # the fourth place is drawn from all that is left: nine tenths of it of class 0
    fourth = np.array([segment[order_points(segment, f"room{n}")[3]] for n in range(400)])
    assert abs((fourth == 0).mean() - 0.9) < 0.06
    plain = np.array([segment[order_points(segment, f"room{n}", cover=False)[0]] for n in range(400)])
    assert abs((plain == 0).mean() - 0.9) < 0.06
    # which point stands for a class is a uniform draw as well
    third = [order_points(segment, f"room{n}") for n in range(600)]
    first_of_2 = np.array([rows[np.flatnonzero(segment[rows] == 2)[0]] for rows in third]) - 990
    assert np.bincount(first_of_2, minlength=10).min() > 30
    assert len(order_points(np.full(5, -1), "room")) == 0


@pytest.mark.parametrize("kind", ["RoomsDataset", "S3DISDataset"])
def test_the_lists_written_are_the_lists_read(root, kind, capsys):
    segment = np.load(root / "Area_1" / "a" / "segment.npy")
    np.save(root / "Area_1" / "a" / "segment.npy", np.where(np.arange(500) < 8, segment, -1))
    options = ["--data-root", str(root), "--split", "Area_1", "--scenes", "34", "100", "--points", "5", "20"]
    limited_tool.main([*options, *(["--dataset", kind] if kind == "RoomsDataset" else [])])
    said = capsys.readouterr().out
    assert ("guessed" in said) == (kind == "S3DISDataset") and "34.txt: 1 of 3 scenes, 6 of 6 classes" in said
    assert "points20: 20 points in each of 3 scenes, 1 scenes have fewer" in said
    tasks = root / "tasks"
    few = build(root, kind, lr_file=tasks / "scenes" / "34.txt", la_file=tasks / "points" / "points20")
    more = build(root, kind, lr_file=tasks / "scenes" / "100.txt", la_file=tasks / "points" / "points5")
    assert len(few) == 1 and len(more) == 3 and few.get_data_name(0) == more.get_data_name(0)
    for sample in (more[number] for number in range(3)):
        assert (sample["segment"] >= 0).sum() == 5
    numbers = [number for number in range(3) if few.get_data_name(0) == more.get_data_name(number)]
    assert set(more[numbers[0]]["sampled_index"]) < set(few[0]["sampled_index"])
    with pytest.raises(FileExistsError, match="34.txt is there already; --overwrite"):
        limited_tool.main([*options, "--dataset", kind])
    before = (tasks / "points" / "points20").read_bytes()
    limited_tool.main([*options, "--dataset", kind, "--overwrite"])
    assert (tasks / "points" / "points20").read_bytes() == before
    limited_tool.main([*options, "--dataset", kind, "--overwrite", "--uniform", "--seed", "5"])
    assert (tasks / "points" / "points20").read_bytes() != before


def test_the_written_points_serve_numpy_as_pointcept_uses_them(tmp_path):
    """Pointcept indexes arrays by what torch.load returns and appends it to row numbers."""
    write_rows(tmp_path / "points20", {"a": np.array([4, 1, 7])})
    rows = torch.load(tmp_path / "points20", weights_only=True)["a"]
    mask = np.ones(10, dtype=bool)
    mask[rows] = False
    assert np.flatnonzero(~mask).tolist() == [1, 4, 7]
    assert np.unique(np.append(np.array([2, 4]), rows)).tolist() == [1, 2, 4, 7]


# ---- annotated points on their way


CHAIN = [
    dict(type="CenterShift"),
    dict(type="RandomDropout", dropout_ratio=0.9, dropout_application_ratio=1.0),
    dict(type="RandomMask", ratio=0.5),
    dict(type="RandomMask", ratio=0.5, mode="block", size=1.0),
    dict(type="RandomRotate", p=1),
    dict(type="ElasticDistortion", p=1),
    dict(type="GridSample", grid_size=0.5, return_grid_coord=True),
    dict(type="SphereCrop", point_max=10**6),
    dict(type="ShufflePoint"),
    dict(type="ToTensor"),
]


@pytest.mark.parametrize("tensors_first", [False, True])
def test_annotated_points_keep_their_labels_and_their_number(root, tensors_first):
    """Through masks, dropout, grid and shuffle, Mix3D after them: those 40 points, and no other label."""
    for name in "abc":
        np.save(root / "Area_1" / name / "segment.npy", np.arange(500))  # every point a class of its own
    rows = {name: np.random.permutation(500)[:40] for name in "abc"}
    write_rows(root / "points", rows)
    collect = dict(type="Collect", keys=("coord", "grid_coord", "segment", "sampled_index", "name"))
    chain = [CHAIN[-1], *CHAIN[:-1], collect] if tensors_first else [*CHAIN, collect]
    dataset = build(root, "RoomsDataset", la_file=root / "points", transform=chain)
    samples = [dataset[number] for number in range(3)]
    for sample in samples:
        labelled = torch.nonzero(sample["segment"] >= 0).flatten()
        assert sorted(sample["segment"][labelled].tolist()) == sorted(rows[sample["name"]].tolist())
        assert torch.equal(labelled, sample["sampled_index"])
        # every annotated voxel is there once for each annotated point in it, and not once more without a label
        cells = [tuple(cell) for cell in sample["grid_coord"].tolist()]
        annotated = Counter(cell for cell, label in zip(cells, sample["segment"].tolist(), strict=True) if label >= 0)
        assert all(cells.count(cell) == number for cell, number in annotated.items()) and len(cells) < 500
        assert all(cells.count(cell) == 1 for cell in set(cells) - set(annotated))
    batch = mix_pairs(collate_fn(samples))
    assert len(batch["offset"]) == 2 and (batch["segment"] >= 0).sum() == 120
    assert torch.equal(torch.nonzero(batch["segment"] >= 0).flatten(), batch["sampled_index"])


def test_a_crop_loses_what_lies_outside_and_nothing_else(root):
    rows = np.arange(0, 500, 5)
    write_rows(root / "points", dict.fromkeys("abc", rows))
    crop = [dict(type="SphereCrop", point_max=100, mode="center")]
    sample = build(root, "RoomsDataset", la_file=root / "points", transform=crop)[0]
    assert np.flatnonzero(sample["segment"] >= 0).tolist() == sample["sampled_index"].tolist()
    assert 0 < len(sample["sampled_index"]) < 100
