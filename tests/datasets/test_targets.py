"""Targets of distillation: which points get them, whose features they are, and files that do not fit."""

import logging
import shutil

import numpy as np
import pytest

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.datasets.transforms.targets import SampleTargets
from pointcept3m.structures.fused_features import feature_path, open_features, write_features

DIMS = {"lseg": 6, "sd": 9}


def make_scene(root, name, points=400, seen=0.5, seed=0):
    """A scene of random points, a share of which has features: the number of the point stands in the first channel."""
    generator = np.random.default_rng(seed)
    folder = root / "train" / name
    folder.mkdir(parents=True)
    coord = generator.random((points, 3)).astype(np.float32) * 2
    np.save(folder / "coord.npy", coord)
    np.save(folder / "color.npy", generator.integers(0, 256, (points, 3)).astype(np.uint8))
    mask = generator.random(points) < seen
    for teacher, dim in DIMS.items():
        values = generator.standard_normal((points, dim)).astype(np.float32)
        values[:, 0] = np.arange(points)
        write_features(feature_path(folder, teacher), values[mask], mask, teacher=teacher, scene=name, coord=coord, storage="float16")
    return folder


def dataset_of(root, steps=(), teachers=("lseg", "sd"), num_points=1000, **arguments):
    chain = [
        *steps,
        dict(type="GridSample", grid_size=0.1, mode="train", return_grid_coord=True),
        dict(type="SampleTargets", num_points=num_points),
        dict(type="ToTensor"),
        dict(type="Collect", keys=("coord", "grid_coord", "target_index", *(f"target_{name}" for name in teachers)), feat_keys=("color",)),
    ]
    return build_dataset(dict(type="PointDataset", split="train", data_root=root, transform=chain, feature_teachers=teachers, **arguments))


def test_each_target_is_its_own_points(tmp_path):
    folder = make_scene(tmp_path, "a")
    coord, file = np.load(folder / "coord.npy"), open_features(feature_path(folder, "lseg"))
    sample = dataset_of(tmp_path)[0]
    rows = sample["target_index"].numpy()
    place = {tuple(point): number for number, point in enumerate(coord)}
    numbers = [place[tuple(point)] for point in sample["coord"].numpy()]
    assert [numbers[row] for row in rows] == sample["target_lseg"][:, 0].long().tolist() == sample["target_sd"][:, 0].long().tolist()
    assert np.array_equal(np.flatnonzero(file.mask[numbers]), rows)
    assert 0 < len(rows) < len(numbers)


def test_points_are_drawn_by_the_seed(tmp_path):
    make_scene(tmp_path, "a")
    dataset = dataset_of(tmp_path, num_points=20)
    draws = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        draws.append(dataset[0]["target_index"].tolist())
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 20 and draws[0] == sorted(draws[0])


def test_batches_shift_rows_and_put_targets_end_to_end(tmp_path):
    for seed, name in enumerate("abc"):
        make_scene(tmp_path, name, points=200 + 50 * seed, seed=seed)
    samples = [dataset_of(tmp_path)[index] for index in range(3)]
    batch = collate_fn(samples)
    starts = [0, *batch["offset"].tolist()[:-1]]
    wanted = [row + start for sample, start in zip(samples, starts, strict=True) for row in sample["target_index"].tolist()]
    assert batch["target_index"].tolist() == wanted
    assert batch["target_sd"].shape == (len(wanted), DIMS["sd"]) and batch["target_lseg"].shape == (len(wanted), DIMS["lseg"])


def test_moved_points_keep_their_targets(tmp_path):
    """The features belong to the points as they lie on disk, however they are turned, dropped and ordered afterwards."""
    folder = make_scene(tmp_path, "a")
    color = np.load(folder / "color.npy").astype(np.float32)
    steps = [
        dict(type="RandomRotate", angle=[-1, 1], axis="z", p=1),
        dict(type="RandomDropout", dropout_ratio=0.3, dropout_application_ratio=1),
        dict(type="ShufflePoint"),
        dict(type="SphereCrop", point_max=150, mode="random"),
    ]
    sample = dataset_of(tmp_path, steps)[0]
    numbers = sample["target_lseg"][:, 0].long().numpy()
    assert np.array_equal(sample["feat"].numpy()[sample["target_index"].numpy()], color[numbers])


def test_scenes_without_files_are_left_out_and_named(tmp_path, caplog):
    make_scene(tmp_path, "a")
    bare = make_scene(tmp_path, "b", seed=1)
    shutil.rmtree(bare / "features")
    with caplog.at_level(logging.WARNING, logger="pointcept3m"):
        dataset = dataset_of(tmp_path)
    assert [dataset.get_data_name(index) for index in range(len(dataset))] == ["a"]
    assert "1 of 2 scenes lack features" in caplog.text and "'b'" in caplog.text


def test_no_scene_with_files(tmp_path):
    shutil.rmtree(make_scene(tmp_path, "a") / "features")
    with pytest.raises(FileNotFoundError, match="fuse_features.py"):
        dataset_of(tmp_path)


def test_features_of_another_scene(tmp_path):
    first, second = make_scene(tmp_path, "a"), make_scene(tmp_path, "b", seed=1)
    shutil.copy(feature_path(first, "sd"), feature_path(second, "sd"))
    with pytest.raises(ValueError, match="b/features/sd"):
        dataset_of(tmp_path)[1]


def test_masks_that_differ(tmp_path):
    folder = make_scene(tmp_path, "a")
    coord, file = np.load(folder / "coord.npy"), open_features(feature_path(folder, "sd"))
    mask = file.mask.copy()
    mask[np.flatnonzero(mask)[:7]] = False
    write_features(feature_path(folder, "sd"), np.ones((mask.sum(), 9), np.float32), mask, teacher="sd", scene="a", coord=coord, storage="float16")
    with pytest.raises(ValueError, match="7") as caught:
        dataset_of(tmp_path)[0]
    assert "lseg" in str(caught.value) and "sd" in str(caught.value)
    sample = dataset_of(tmp_path, feature_common=True)[0]
    assert set(sample["target_lseg"][:, 0].long().tolist()) <= set(np.flatnonzero(mask).tolist())
    assert len(sample["target_sd"]) == len(sample["target_lseg"]) > 0


def test_a_sample_without_a_visible_point(tmp_path, caplog):
    file = open_features(feature_path(make_scene(tmp_path, "a", points=50, seen=2.0), "sd"))
    data = dict(coord=np.zeros((5, 3)), feature_row=np.full(5, -1), feature_files={"sd": file}, name="a")
    with caplog.at_level(logging.WARNING, logger="pointcept3m"):
        sample = SampleTargets(10)(data)
    assert sample["target_index"].shape == (0,) and sample["target_sd"].shape == (0, 9)
    assert "scene a" in caplog.text and "5 points" in caplog.text


@pytest.mark.parametrize("number", [0, -3, 2.5])
def test_numbers_of_points_that_do_not_fit(number):
    with pytest.raises(ValueError, match="num_points"):
        SampleTargets(number)


def test_openscenes_subsets_are_drawn_together(tmp_path):
    """Several files a teacher: whichever number is drawn, it is the same for both."""
    import torch

    folder = make_scene(tmp_path, "a")
    shutil.rmtree(folder / "features")
    generator = np.random.default_rng(0)
    for number in range(5):
        mask = torch.from_numpy(generator.random(400) < 0.3)
        for teacher, dim in DIMS.items():
            target = tmp_path / "fused" / teacher / f"a_{number}.pt"
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"feat": torch.full((int(mask.sum()), dim), float(number)).half(), "mask_full": mask}, target)
    dataset, seen = dataset_of(tmp_path, feature_root=tmp_path / "fused"), set()
    for _ in range(30):
        sample = dataset[0]
        numbers = {*sample["target_lseg"].flatten().tolist(), *sample["target_sd"].flatten().tolist()}
        assert len(numbers) == 1
        seen |= numbers
    assert seen == {0, 1, 2, 3, 4}
