"""nuScenes' tables and files, written for a room whose geometry is known: points, labels and pictures meet in one frame."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.datasets.nuscenes import NuScenesDataset
from pointcept3m.datasets.preprocess_nuscenes import Settings, fill_sample, jobs_of, rigid, split_of
from pointcept3m.datasets.preprocess_scenes import preprocess
from pointcept3m.structures.camera import project
from pointcept3m.structures.label_sets import label_set
from pointcept3m.structures.scene import Scene
from tests.datasets.raw_nuscenes import INTRINSIC, SIZE, quaternion, turn, write_nuscenes
from tests.datasets.synthetic import HIGH, LOW, cloud

# of the six walls, whose categories are noise, car, child, vegetation, the car itself and animal
CLASSES = np.array([-1, label_set("nuscenes16").names.index("car"), label_set("nuscenes16").names.index("person"), 15, -1, -1])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_nuscenes(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    return root, preprocess(fill_sample, jobs_of(raw, root), Settings(), workers=0)


def test_points_and_labels(done):
    root, reports = done
    assert [(report.split, report.name, report.num_points, report.num_frames) for report in reports] == [
        (split, f"{scene}_{n:02d}", 1500, 2) for split, scene in (("train", "scene-0001"), ("val", "scene-0003")) for n in range(2)
    ]
    room, scene = cloud(1500), Scene(root / "val" / "scene-0003_01")
    assert scene.assets == ["coord", "strength", "segment"]
    np.testing.assert_array_equal(scene.load("segment"), CLASSES[room["segment"]])
    np.testing.assert_allclose(scene.load("strength")[:, 0], (np.arange(1500) % 256) / 255, rtol=1e-6)
    car, mount = turn("z", 0.5), turn("z", -1.6)
    car[:3, 3], mount[:3, 3] = (1.8, 1.4, 1.2), (0.1, 0, 0.3)
    world = np.c_[scene.load("coord"), np.ones(1500)] @ (car @ mount).T
    np.testing.assert_allclose(world[:, :3], room["coord"], atol=1e-5)


@pytest.mark.parametrize("scene", ["val/scene-0003_00", "val/scene-0003_01", "train/scene-0001_00"])
def test_points_meet_their_colour_in_the_pictures(done, scene):
    """The room is coloured by position and convex, so every point in front of a camera is seen."""
    scene = Scene(done[0] / scene)
    wanted = (cloud(1500)["coord"] - LOW) / (HIGH - LOW)
    assert scene.frame_names == ("CAM_BACK", "CAM_FRONT") and not scene.has_depth
    for name in scene.frame_names:
        frame = scene.frame(name)
        np.testing.assert_allclose(frame.intrinsic, INTRINSIC, atol=1e-4)
        pixel, z = project(scene.load("coord"), frame.intrinsic, frame.extrinsic)
        inside = np.flatnonzero((z > 0) & ((pixel > 2) & (pixel < np.array(SIZE[::-1]) - 2)).all(axis=1))
        assert len(inside) > 60
        u, v = pixel[inside].astype(int).T
        assert np.abs(frame.rgb[v, u] - wanted[inside]).mean() < 0.01


def test_smaller_pictures(raw, tmp_path):
    preprocess(fill_sample, jobs_of(raw, tmp_path, splits=["val"], stride=2), Settings(image_width=80), workers=0)
    (folder,) = (tmp_path / "val").iterdir()
    scene = Scene(folder)
    assert scene.name == "scene-0003_00" and scene.frame_size("CAM_BACK") == (45, 80)
    np.testing.assert_allclose(scene.camera("CAM_BACK")[0], INTRINSIC * [[0.5], [0.5], [1]], atol=1e-6)


def test_rotation_of_a_quaternion():
    for matrix in (turn("x", 0.3), turn("y", 2.0) @ turn("z", -1.0)):
        matrix[:3, 3] = 1, 2, 3
        np.testing.assert_allclose(rigid(quaternion(matrix), [1, 2, 3]), matrix, atol=1e-12)
    with pytest.raises(ValueError, match="wanted a unit quaternion"):
        rigid([0, 0, 0, 0], [0, 0, 0])


def test_splits(tmp_path):
    assert [split_of("scene-0103", version) for version in ("v1.0-trainval", "v1.0-mini", "v1.0-test")] == ["val", "val", "test"]
    assert [split_of("scene-0553", version) for version in ("v1.0-trainval", "v1.0-mini")] == ["val", "train"]
    counts = [split_of(f"scene-{n:04d}", "v1.0-trainval") for n in range(1, 1111)].count("val")
    assert counts == 150
    with pytest.raises(ValueError, match="wanted a nuScenes scene like"):
        split_of("0103", "v1.0-mini")
    root = write_nuscenes(tmp_path / "test", "v1.0-test", ("scene-0077",), labels=False)
    preprocess(fill_sample, jobs_of(root, tmp_path / "out"), Settings(frames=False), workers=0)
    assert Scene(tmp_path / "out" / "test" / "scene-0077_00").assets == ["coord", "strength"]


def test_data_set(done):
    data = NuScenesDataset(split="val", data_root=done[0])
    sample = data.get_data(1)
    assert data.class_names == label_set("nuscenes16").names and sample["name"] == "scene-0003_01"
    assert sample["strength"].shape == (1500, 1) and set(np.unique(sample["segment"])) == {-1, 3, 6, 15}


def test_bad_files_are_named(raw, tmp_path):
    root = shutil.copytree(raw, tmp_path / "raw")
    (root / "v1.0-mini").mkdir()
    with pytest.raises(ValueError, match="has v1.0-trainval and v1.0-mini; say which, --version"):
        jobs_of(root, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="v1.0-mini/scene.json: no such table"):
        jobs_of(root, tmp_path / "out", "v1.0-mini")
    with pytest.raises(FileNotFoundError, match="wanted nuScenes' folder of tables there"):
        jobs_of(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="none of its 2 scenes is of the splits test"):
        jobs_of(root, tmp_path / "out", "v1.0-trainval", ["test"])

    def run():
        return preprocess(fill_sample, jobs_of(root, tmp_path / "out", "v1.0-trainval", ["val"]), Settings(), workers=0)

    label = root / "lidarseg/v1.0-trainval/scene-0003.0_lidarseg.bin"
    label.write_bytes(label.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"scene-0003.0_lidarseg.bin: 1499 labels, scene-0003.0.pcd.bin has 1500 points"):
        run()
    sweep = root / "samples/LIDAR_TOP/scene-0003.0.pcd.bin"
    sweep.write_bytes(sweep.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"29998 bytes are no whole number of points"):
        run()
    path = root / "v1.0-trainval/category.json"
    path.write_text(path.read_text().replace('"index"', '"number"'))
    with pytest.raises(ValueError, match="has no index; unpack nuScenes-lidarseg over nuScenes"):
        run()
    path.write_text("[1]")
    with pytest.raises(ValueError, match="category.json: wanted a JSON list of rows with a token"):
        run()


def test_command_line(raw, tmp_path, capsys):
    script = Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "nuscenes.py"
    spec = importlib.util.spec_from_file_location("preprocess_nuscenes_tool", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["--raw-root", str(raw), "--output-root", str(tmp_path), "--splits", "val", "--workers", "0"]
    assert tool.main(arguments) == 0
    assert "2 scenes (val 2), 3000 points, 4 frames" in capsys.readouterr().out
