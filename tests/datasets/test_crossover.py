"""CrossOver's data set: what a sample holds, what is drawn, what is hidden, and how bad files are refused."""

import json

import numpy as np
import pytest
import torch

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.datasets.crossover import quarter_turn
from pointcept3m.structures.modality_features import modality_path, write_modalities
from tests.datasets.crossover_scenes import ENCODERS, features, write_scene, write_set

POINTS = [
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1),
    dict(type="GridSample", grid_size=0.2, return_grid_coord=True, mode="train"),
    dict(type="NormalizeColor", mode="minus_one_one"),
    dict(type="Collect", keys=("coord", "grid_coord"), feat_keys=("color",)),
]


def dataset(root, **settings):
    return build_dataset(dict(type="CrossOverDataset", data_root=str(root), **{"split": "train", "transform": POINTS, **settings}))


def test_a_sample_and_a_batch(tmp_path):
    made = features("a", category="kitchen", place="home", reference="b", moved=[1])
    bare = features("b", objects=0, lacks=("floorplan", "text"), views=2)
    write_scene(tmp_path, made)
    write_scene(tmp_path, bare, points=0)
    data = dataset(tmp_path)
    assert data.class_names == sorted(set(made.labels)) and data.encoders == ENCODERS
    batch = collate_fn([data[0], data[1]])
    assert batch["name"] == ["a", "b"] and batch["place"] == ["home", "b"] and batch["reference"] == ["b", None]
    assert batch["object_offset"].tolist() == [5, 5] and batch["image_offset"].tolist() == [4, 6]
    assert batch["floorplan_offset"].tolist() == [1, 1] and batch["text_offset"].tolist() == [3, 3]
    assert batch["offset"][0] == batch["offset"][1] == len(batch["grid_coord"]) == len(batch["feat"]) > 50
    assert batch["feat"].shape[1] == 3 and batch["labels"] == [made.labels, []]
    assert torch.equal(batch["object_id"], torch.from_numpy(made.object_id))
    assert batch["object_moved"].tolist() == [number == 1 for number in made.object_id]
    assert torch.equal(batch["object_box"], torch.from_numpy(made.object_box))  # the cloud is turned, boxes are not
    for column, name in enumerate(("image", "point", "cad", "text")):
        assert torch.equal(batch["object_known"][:, column], torch.from_numpy(made.known[name]))
        # files hold float16
        assert torch.allclose(batch[f"object_{name}"], torch.from_numpy(made.objects[name]), atol=0.01)
        assert not batch[f"object_{name}"][~batch["object_known"][:, column]].any()
    assert [data.class_names[number] for number in batch["object_class"]] == made.labels


def test_without_points_and_without_any_modality(tmp_path):
    write_scene(tmp_path, features("a", objects=0, lacks=("image", "floorplan", "text")), points=0)
    write_scene(tmp_path, features("b"))
    data = dataset(tmp_path, points=False, transform=None)
    batch = collate_fn([data[0], data[1]])
    assert batch["offset"].tolist() == [0, 0] and len(batch["coord"]) == 0
    assert batch["image_offset"].tolist() == [0, 4] and batch["object_offset"].tolist() == [0, 5]


def test_draws(tmp_path):
    write_set(tmp_path, train=2, val=0)
    data = dataset(tmp_path, views=2, referrals=1, max_objects=3)
    seen = set()
    for _ in range(20):
        sample = data[0]
        assert len(sample["image_token"]) == 2 and len(sample["text_token"]) == 1 and len(sample["object_id"]) == 3
        assert sample["object_id"].tolist() == sorted(sample["object_id"].tolist()) and len(sample["labels"]) == 3
        seen.add(tuple(sample["object_id"].tolist()))
    assert len(seen) > 3
    whole = {int(number): row for number, row in zip(dataset(tmp_path)[0]["object_id"], dataset(tmp_path)[0]["object_image"], strict=True)}
    assert all(torch.equal(whole[int(number)], row) for number, row in zip(sample["object_id"], sample["object_image"], strict=True))
    fixed = dataset(tmp_path, views=2, referrals=1, max_objects=3, fixed=True)
    first, again = fixed[0], fixed[0]
    assert all(torch.equal(first[key], again[key]) for key in ("object_id", "image_token", "text_token"))


def test_chunks_hide_a_modality_elsewhere(tmp_path):
    """The protocol of Table 4: image-point pairs of some scenes, image-CAD pairs of the others."""
    write_set(tmp_path, train=4, val=0)
    (tmp_path / "point.txt").write_text("train00\ntrain01\n")
    data = dataset(tmp_path, chunks=dict(point=str(tmp_path / "point.txt"), cad=["train02", "train03"], image=["train00", "train02", "train03", "train01"]))
    for number in range(4):
        sample = data[number]
        assert sample["object_known"].any(0).tolist() == [True, number < 2, number >= 2, True]
        assert (len(sample["coord"]) > 0) == (number < 2) and sample["object_point"].any() == (number < 2)
    with pytest.raises(ValueError, match="names none of the 4 scenes"):
        dataset(tmp_path, chunks=dict(point=["scene0000_00"]))


def test_dropped_modalities(tmp_path):
    write_set(tmp_path, train=1, val=0)
    data = dataset(tmp_path, drop=dict(floorplan=0.5, point=1.0))
    samples = [data[0] for _ in range(60)]
    assert all(len(s["coord"]) == 0 and not s["object_known"][:, 1].any() for s in samples)
    assert 15 < sum(len(s["floorplan_token"]) for s in samples) < 45
    everything = dataset(tmp_path, drop=dict.fromkeys(("image", "point", "cad", "text", "floorplan"), 1.0))[0]
    assert everything["object_known"].any(0).all()  # a scene is never left with nothing


def test_only_points_of_objects(tmp_path):
    made = features("a")
    folder = write_scene(tmp_path, made)
    inside = np.isin(np.load(folder / "instance.npy"), made.object_id)
    chain = [dict(type="Collect", keys=("coord",), feat_keys=("color",))]
    sample = dataset(tmp_path, object_points=True, transform=chain)[0]
    assert torch.equal(sample["coord"], torch.from_numpy(np.load(folder / "coord.npy")[inside]))
    assert len(dataset(tmp_path, transform=chain)[0]["coord"]) == 200 > inside.sum()
    np.save(folder / "instance.npy", np.load(folder / "instance.npy") * 0 - 1)
    with pytest.raises(ValueError, match="scene 'a'.*no point of the objects"):
        dataset(tmp_path, object_points=True, transform=chain)[0]


def test_boxes_turn_by_quarters(tmp_path):
    write_set(tmp_path, train=1, val=0)
    still, turning = dataset(tmp_path)[0]["object_box"], dataset(tmp_path, turn_boxes=True)
    seen = [turning[0]["object_box"] for _ in range(30)]
    assert len({tuple(box.flatten().tolist()) for box in seen}) == 4
    gap = torch.cdist(still[:, :3], still[:, :3])
    assert all(torch.allclose(torch.cdist(box[:, :3], box[:, :3]), gap, atol=1e-5) for box in seen)
    assert quarter_turn(np.float32([[1, 2, 3, 4, 5, 6]]), 1).tolist() == [[-2, 1, 3, 5, 4, 6]]


def test_several_data_sets_are_one(tmp_path):
    write_scene(tmp_path / "one", features("a"))
    write_scene(tmp_path / "two", features("b"))
    data = build_dataset(dict(type="CrossOverDataset", data_root=[str(tmp_path / "one"), str(tmp_path / "two")], transform=POINTS))
    assert [data[number]["name"] for number in range(2)] == ["a", "b"]
    other = features("c", encoders={**ENCODERS, "image": "another"})
    write_scene(tmp_path / "two", other)
    with pytest.raises(ValueError, match="features of image do not go together.*another"):
        build_dataset(dict(type="CrossOverDataset", data_root=[str(tmp_path / "one"), str(tmp_path / "two")]))


def test_features_in_a_folder_of_their_own(tmp_path):
    folder = write_scene(tmp_path, features("a"))
    path = modality_path(folder, "pocket", tmp_path / "features")
    write_modalities(path, features("a", objects=2))
    assert len(dataset(tmp_path, feature_root=str(tmp_path / "features"))[0]["object_id"]) == 2


def test_bad_files_are_named(tmp_path, caplog):
    folder = write_scene(tmp_path, features("a"))
    (tmp_path / "train/bare").mkdir()
    data = dataset(tmp_path)
    assert len(data) == 1 and "1 of 2 scenes lack features of recipe 'pocket'" in caplog.text
    with pytest.raises(FileNotFoundError, match="none of the 2 scenes has features of recipe 'paper'.*tools/preprocess/modalities.py"):
        dataset(tmp_path, recipe="paper")
    with pytest.raises(ValueError, match="object_image is 24 wide, but 1536 in the config's widths"):
        dataset(tmp_path, widths=dict(object_image=1536))
    write_modalities(modality_path(folder, "pocket"), features("other"))
    with pytest.raises(ValueError, match="holds features of scene 'other'.*'a'"):
        dataset(tmp_path)[0]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (dict(drop=dict(mesh=0.5)), KeyError, "'mesh'"),
        (dict(drop=dict(cad=1.5)), ValueError, "probabilities"),
        (dict(chunks=dict(points=["a"])), KeyError, "did you mean 'point'"),
        (dict(views=0), ValueError, "views must be"),
        (dict(widths=dict(image=3)), KeyError, "'image'"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, error, words):
    write_scene(tmp_path, features("a"))
    with pytest.raises(error, match=words):
        dataset(tmp_path, **settings)


def test_widths_of_what_no_scene_has(tmp_path):
    write_scene(tmp_path, features("a", lacks=("cad",)))
    assert dataset(tmp_path)[0]["object_cad"].shape == (5, 0)
    assert dataset(tmp_path, widths=dict(object_cad=384))[0]["object_cad"].shape == (5, 384)
    assert json.dumps(dataset(tmp_path).widths)
