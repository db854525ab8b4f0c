"""Datasets: what a sample holds, which views it draws, and what is said when data are bad or absent."""

import json
import logging

import numpy as np
import pytest
import torch

from pointcept3m.datasets import DATASETS, PointDataset, build_dataset, collate_fn
from tests.datasets.synthetic import write_scene

COLLECT = dict(type="Collect", keys=("coord", "segment"), feat_keys=("color",))


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b", "c"):
        write_scene(tmp_path / "train" / name, frames=10, count=500)
    write_scene(tmp_path / "val" / "d", frames=10, count=400)
    return tmp_path


def build(root, kind="RoomsDataset", **arguments):
    return build_dataset(dict(type=kind, data_root=str(root), **arguments))


def views(root, **arguments):
    return build(root, "RoomsRGBDDataset", **{"num_cameras": 3, "image_size": (12, 16), "holdout": 4, **arguments})


def test_sample_of_points(root):
    data = build(root)[0]
    assert data["name"] == "a" and data["split"] == "train"
    assert {k: v.dtype.name for k, v in data.items() if isinstance(v, np.ndarray)} == {
        "coord": "float32", "color": "float32", "normal": "float32", "segment": "int64", "instance": "int64",
    }  # fmt: skip
    assert len(build(root, loop=3)) == 9 and build(root, loop=3)[5]["name"] == "c"


def test_splits_may_be_a_list_or_a_json_file(root):
    assert len(build(root, split=["train", "val"])) == 4
    (root / "few.json").write_text(json.dumps(["val/d", "train/b"]))
    few = build(root, split="few.json")
    assert [few[0]["name"], few[1]["name"]] == ["d", "b"] and few[0]["split"] == "val"
    (root / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="bad.json: wanted a JSON list"):
        build(root, split="bad.json")


def test_labels_that_are_absent_are_ignored_ones(root):
    (root / "train" / "a" / "segment.npy").unlink()
    assert (build(root, ignore_index=255)[0]["segment"] == 255).all()
    np.save(root / "train" / "b" / "segment.npy", np.full(500, -1))
    assert (build(root, ignore_index=255)[1]["segment"] == 255).all()
    assert (build(root, "ScanNet200Dataset")[2]["segment"] == -1).all()


def test_cache_gives_copies(root):
    dataset = build(root, cache=True)
    first = dataset[0]
    first["coord"] += 1
    (root / "train" / "a" / "coord.npy").unlink()
    np.testing.assert_allclose(dataset[0]["coord"], first["coord"] - 1, atol=1e-6)


def test_views_of_a_sample(root):
    data = views(root)[0]
    assert data["rgb"].shape == (3, 12, 16, 3) and data["depth"].shape == (3, 12, 16)
    assert data["intrinsic"].shape == (3, 3, 3) and data["extrinsic"].shape == (3, 4, 4)
    assert 0 <= data["rgb"].min() and 0.5 < data["rgb"].max() <= 1 and 0.5 < data["depth"].mean() < 5
    assert len(set(data["view_name"])) == 3 and data["view_name"][0].startswith("a/")


def test_training_views_vary_and_avoid_the_held_out(root):
    dataset = views(root)
    drawn = [name for _ in range(30) for name in dataset[0]["view_name"]]
    assert set(drawn) == {f"a/{n}" for n in (0, 1, 3, 4, 5, 7, 8, 9)}
    held = views(root, view_split="heldout")
    assert held[0]["view_name"] == held[0]["view_name"] == ["a/2", "a/6", "a/6"]
    assert len(views(root, view_split="all").view_names(0)) == 10
    fixed = views(root, split="val")
    assert fixed[0]["view_name"] == fixed[0]["view_name"] == ["d/1", "d/5", "d/8"]
    assert views(root, test_mode=True)[1]["view_name"] == ["b/1", "b/5", "b/8"]


def test_more_cameras_than_frames_repeat_as_few_as_can_be(root, caplog):
    logging.getLogger("pointcept3m").propagate = True
    with caplog.at_level(logging.WARNING, logger="pointcept3m"):
        names = views(root, num_cameras=11, holdout=4)[0]["view_name"]
    assert sorted(np.unique(names, return_counts=True)[1]) == [1] * 5 + [2] * 3
    assert "8 train views where num_cameras is 11" in caplog.text


def test_only_the_drawn_frames_are_read(root):
    for number in (0, 3, 4, 6, 7, 9, 2):
        (root / "val" / "d" / "color" / f"{number}.png").write_text("damaged")
    assert len(views(root, split="val")[0]["rgb"]) == 3


def test_batch_of_views(root):
    transform = [
        dict(type="CenterShift"),
        dict(type="RandomMask"),
        dict(type="GridSample", grid_size=0.1, return_grid_coord=True),
        dict(type="NormalizeColor", mode="minus_one_one"),
        dict(type="ToTensor"),
        dict(type="Collect", keys=("coord", "grid_coord", "rgb", "depth", "intrinsic", "extrinsic", "name", "view_name"),
             feat_keys=("color", "normal")),
    ]  # fmt: skip
    dataset = views(root, transform=transform)
    batch = collate_fn([dataset[0], dataset[1]])
    assert batch["rgb"].shape == (2, 3, 12, 16, 3) and batch["extrinsic"].shape == (2, 3, 4, 4)
    assert batch["feat"].shape == (int(batch["offset"][-1]), 6)
    assert {v.dtype for k, v in batch.items() if k in ("rgb", "depth", "intrinsic", "extrinsic", "feat")} == {
        torch.float32
    }


def test_frames_of_scannet_may_lie_apart(root, tmp_path):
    for name in ("color", "depth", "pose", "intrinsic"):
        (tmp_path / "rgbd" / "a").mkdir(parents=True, exist_ok=True)
        (root / "train" / "a" / name).rename(tmp_path / "rgbd" / "a" / name)
    apart = dict(rgb_root=str(tmp_path / "rgbd"), image_size=(12, 16))
    with pytest.raises(FileNotFoundError, match="rgbd/b: no frames of scene 'b' there"):
        build(root, "ScanNetRGBDDataset", **apart)
    dataset = build(root, "ScanNetRGBDDataset", on_bad_scene="skip", **apart)
    assert len(dataset) == 1 and dataset[0]["rgb"].shape == (5, 12, 16, 3)


def test_fragments_of_a_test_sample_cover_every_point(root):
    test_cfg = dict(
        voxelize=dict(type="GridSample", grid_size=0.5, mode="test", return_grid_coord=True),
        crop=None,
        post_transform=[
            dict(type="ToTensor"),
            dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color",)),
        ],
        aug_transform=[[dict(type="RandomFlip", p=1)], [dict(type="RandomScale", scale=[1.05, 1.05])]],
    )
    result = build(root, split="val", test_mode=True, test_cfg=test_cfg)[0]
    assert len(result["segment"]) == 400 and result["name"] == "d"
    seen = torch.cat([fragment["index"] for fragment in result["fragment_list"]])
    assert torch.equal(seen.unique(), torch.arange(400))
    assert result["fragment_list"][0]["feat"].shape[1] == 3
    with pytest.raises(KeyError, match="did you mean 'voxelize'"):
        build(root, test_mode=True, test_cfg=dict(voxelise=None))


def test_bad_scene_raises_or_is_skipped_by_name(root, caplog):
    np.save(root / "train" / "b" / "coord.npy", np.full((500, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="b/coord.npy: 500 of 500 rows are not finite"):
        _ = build(root)[1]
    logging.getLogger("pointcept3m").propagate = True
    dataset = build(root, on_bad_scene="skip")
    with caplog.at_level(logging.WARNING, logger="pointcept3m"):
        assert [dataset[i]["name"] for i in (0, 1, 1, 2)] == ["a", "c", "c", "c"]
    assert caplog.text.count("scene b is skipped") == 1 and "not finite" in caplog.text
    for name in ("a", "c"):
        (root / "train" / name / "coord.npy").unlink()
    with pytest.raises(ValueError, match="not one of the 3 scenes can be read"):
        _ = build(root, on_bad_scene="skip")[0]


def test_a_skipped_scene_does_not_change_later_samples(root):
    """Two workers that meet other samples give the same sample, down to the views that are drawn."""
    np.save(root / "train" / "b" / "coord.npy", np.full((500, 3), np.nan, np.float32))

    def sample(dataset):
        np.random.seed(3)
        data = dataset[1]
        return data["name"], data["view_name"], np.random.rand()

    fresh, used = (views(root, on_bad_scene="skip") for _ in range(2))
    _ = used[1], used[2]
    assert sample(fresh) == sample(used) and sample(fresh)[0] == "c"


@pytest.mark.parametrize(
    "file, damage, words",
    [
        ("pose/3.txt", lambda path: np.savetxt(path, np.full((4, 4), -np.inf)), "pose/3.txt: the pose is not finite"),
        ("pose/3.txt", lambda path: np.savetxt(path, np.diag([2.0, 2, 2, 1])), "pose/3.txt: wanted a camera->world rotation"),
        ("intrinsic/intrinsic_depth.txt", lambda path: np.savetxt(path, np.zeros((3, 3))), "intrinsic_depth.txt: wanted an intrinsic"),
        ("intrinsic/intrinsic_color.txt", lambda path: path.unlink(), "intrinsic_color.txt: no such file"),
        ("depth/3.png", lambda path: path.write_bytes(b""), "depth/3.png: an empty file"),
    ],
)  # fmt: skip
def test_frames_are_checked_before_any_work(root, caplog, file, damage, words):
    damage(root / "train" / "b" / file)
    with pytest.raises((ValueError, FileNotFoundError), match=f"train/b/.*{words}"):
        views(root)
    logging.getLogger("pointcept3m").propagate = True
    with caplog.at_level(logging.WARNING, logger="pointcept3m"):
        dataset = views(root, on_bad_scene="skip")
    assert [dataset[i]["name"] for i in range(len(dataset))] == ["a", "c"]
    assert caplog.text.count("scene b is skipped") == 1 and words in caplog.text


def test_frames_that_are_never_drawn_may_be_bad(root):
    np.savetxt(root / "train" / "b" / "pose" / "2.txt", np.full((4, 4), np.nan))
    assert len(views(root)) == 3
    with pytest.raises(ValueError, match="b/pose/2.txt"):
        views(root, view_split="heldout")
    for name in ("a", "b", "c"):
        np.savetxt(root / "train" / name / "pose" / "0.txt", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="not one of the 3 scenes has frames"):
        views(root, on_bad_scene="skip")


# Folders of scenes; pairs of frames say what to do in their own words, and other tests register data sets of their own.
SHIPPED = {kind for kind, made in DATASETS.classes.items() if issubclass(made, PointDataset) and made.__module__.startswith("pointcept3m.")}


@pytest.mark.parametrize("kind", sorted(SHIPPED - {"DefaultDataset", "PointDataset"}))
def test_absent_data_say_what_to_do_and_what_runs_without(tmp_path, kind):
    with pytest.raises(
        FileNotFoundError, match=r"no such folder for .*(data/rgbd|preprocess|generated).*`pointcept3m demo`"
    ):
        build(tmp_path / "none", kind)


def test_absent_splits_and_wrong_arguments_are_named(root):
    with pytest.raises(FileNotFoundError, match="trian not found; did you mean 'train'"):
        build(root, split="trian")
    with pytest.raises(FileNotFoundError, match="no such folder of frames"):
        build(root, "ScanNetRGBDDataset", rgb_root=str(root / "rgbd"))
    (root / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="no scene in .* split test"):
        build(root, split="test")
    for arguments, message in (
        (dict(view_split="hold"), "'train', 'heldout' or 'all', got 'hold'"),
        (dict(view_split="heldout", holdout=0), "needs a holdout"),
        (dict(num_cameras=0), "at least 1"),
        (dict(on_bad_scene="ignore"), "'raise' or 'skip'"),
        (dict(loop=0), "loop must be"),
    ):
        with pytest.raises(ValueError, match=message):
            views(root, **arguments)
    for kind, word, near in (
        ("RoomsRGBDDataset", "num_camera", "num_cameras"),
        ("ScanNetRGBDDataset", "lop", "loop"),
        ("ScanNet200Dataset", "lr_fil", "lr_file"),
        ("S3DISDataset", "data_rot", "data_root"),
    ):
        with pytest.raises(TypeError, match=f"takes no argument '{word}'; did you mean .*'{near}'"):
            build_dataset({"type": kind, "data_root": str(root), word: 4})
    with pytest.raises(IndexError, match="sample 3 of 3"):
        build(root)[3]
