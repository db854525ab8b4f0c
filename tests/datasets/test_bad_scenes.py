"""What bad scenes get on their way from the disk to a batch: the documented result, or an error that names them."""

import numpy as np
import pytest
import torch

from pointcept3m.datasets import build_dataset, collate_fn, point_collate_fn
from tests.datasets.synthetic import write_scene

# Pointcept's training transforms for ScanNet, every one of them applied
CHAIN = [
    dict(type="CenterShift", apply_z=True),
    dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=1.0),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1.0),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=1.0),
    dict(type="RandomScale", scale=[0.9, 1.1]),
    dict(type="RandomFlip", p=0.5),
    dict(type="RandomJitter", sigma=0.005, clip=0.02),
    dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4], [0.8, 1.6]], p=1.0),
    dict(type="ChromaticAutoContrast", p=1.0),
    dict(type="ChromaticTranslation", p=1.0),
    dict(type="ChromaticJitter", p=1.0, std=0.05),
    dict(type="GridSample", grid_size=0.02, hash_type="fnv", mode="train", return_grid_coord=True),
    dict(type="SphereCrop", point_max=400, mode="random"),
    dict(type="CenterShift", apply_z=False),
    dict(type="NormalizeColor"),
    dict(type="InstanceParser", segment_ignore_index=(-1, 0, 1)),
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "segment", "instance", "bbox", "name"), feat_keys=("color", "normal")),
]


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "train" / "good", frames=1, count=800)


def dataset(scene, transform=CHAIN, **arguments):
    return build_dataset(dict(type="RoomsDataset", data_root=str(scene.parents[1]), transform=transform, **arguments))


def change(scene, **arrays):
    for name, array in arrays.items():
        np.save(scene / f"{name}.npy", array)


def first_points(scene, count):
    change(scene, **{path.stem: np.load(path)[:count] for path in scene.glob("*.npy")})


def test_a_scene_of_one_point_passes(scene):
    first_points(scene, 1)
    sample = dataset(scene)[0]
    assert sample["offset"].tolist() == [1] and sample["grid_coord"].tolist() == [[0, 0, 0]]
    assert torch.isfinite(sample["feat"]).all() and sample["coord"][0, :2].abs().max() < 1e-6
    batch = point_collate_fn([sample, sample], mix_prob=1.0)
    assert batch["offset"].tolist() == [2]


def test_a_scene_without_any_label_passes_as_ignored(scene):
    change(scene, segment=np.full(800, -1), instance=np.full(800, -1))
    sample = dataset(scene)[0]
    assert (sample["segment"] == -1).all() and (sample["instance"] == -1).all()
    assert sample["bbox"].shape == (0, 8) and len(sample["coord"]) > 300
    labelled = dataset(scene, ignore_index=255)[0]
    assert (labelled["segment"] == 255).all()
    assert collate_fn([sample, sample])["bbox"].shape == (0, 8)


def test_duplicate_points_end_in_one_voxel(scene):
    coord = np.repeat(np.load(scene / "coord.npy")[:40], 20, axis=0)
    change(scene, coord=coord)
    grid = [dict(type="GridSample", grid_size=1e-4, return_inverse=True, return_grid_coord=True)]
    sample = dataset(scene, grid)[0]
    assert len(sample["coord"]) == 40 == len(np.unique(sample["grid_coord"], axis=0))
    assert (np.diff(sample["inverse"].reshape(40, 20), axis=1) == 0).all()


def test_all_points_at_one_place_pass(scene):
    change(scene, coord=np.full((800, 3), 7, np.float32))
    sample = dataset(scene)[0]
    assert torch.isfinite(sample["coord"]).all() and torch.isfinite(sample["feat"]).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 2e4])
def test_coordinates_out_of_this_world_name_file_and_row(scene, value):
    coord = np.load(scene / "coord.npy")
    coord[5, 1] = value
    change(scene, coord=coord)
    with pytest.raises(ValueError, match=r"good/coord.npy: (1 of 800 rows are not finite, the first is row 5|row 5 is .*beyond)"):
        _ = dataset(scene)[0]


@pytest.mark.parametrize("key", ["normal", "color"])
def test_an_attribute_that_is_absent_names_transform_key_and_scene(scene, key):
    (scene / f"{key}.npy").unlink()
    whole = dataset(scene)
    with pytest.raises(KeyError) as caught:
        _ = whole[0]
    said = " ".join([str(caught.value), *caught.value.__notes__])
    assert f"needs the key '{key}'; the sample has" in said
    assert f"in scene 'good', whose folder has no {key}.npy" in said
    few = [step for step in CHAIN if key == "normal" or "Chromatic" not in step["type"] and step["type"] != "NormalizeColor"]
    few[-1] = dict(type="Collect", keys=("coord", "grid_coord"), feat_keys=("coord",))
    assert dataset(scene, few)[0]["feat"].shape[1] == 3  # who does not ask for it does not miss it


def test_errors_of_transforms_name_the_scene_in_training_and_in_tests(scene):
    twice = [dict(type="NormalizeColor"), dict(type="NormalizeColor")]
    change(scene, color=np.random.randint(0, 255, (800, 3)).astype(np.uint8))
    test_cfg = dict(voxelize=dict(type="GridSample", grid_size=0.1, mode="test"), crop=None, post_transform=[], aug_transform=[twice])
    for data in (dataset(scene, twice), dataset(scene, [], test_mode=True, test_cfg=test_cfg)):
        with pytest.raises(ValueError, match="normalised already") as caught:
            _ = data[0]
        assert caught.value.__notes__ == ["in scene 'good'"]
    with pytest.raises(ValueError, match="normalised already") as caught:
        data.get_test_part(0, 0)
    assert caught.value.__notes__ == ["in scene 'good'"]


@pytest.mark.parametrize("labels", [np.arange(800) % 20, np.full(800, -1)])
def test_labels_pass_as_they_are(scene, labels):
    """What they must be is the model's business: engines check them against data.num_classes."""
    change(scene, segment=labels)
    assert dataset(scene, [])[0]["segment"].tolist() == labels.tolist()


@pytest.mark.parametrize("name, array", [("segment", np.zeros(800, np.float32)), ("segment", np.zeros(799, np.int64)), ("normal", np.zeros((800, 2), np.float32))])
def test_files_that_do_not_fit_the_points_are_named(scene, name, array):
    change(scene, **{name: array})
    with pytest.raises(ValueError, match=f"good/{name}.npy: "):
        _ = dataset(scene)[0]
