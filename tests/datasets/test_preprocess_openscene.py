"""OpenScene's preprocessed data, written as its scripts write them: points, labels, cameras and features come out in step."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.normals import estimate_normals
from pointcept3m.datasets.preprocess_openscene import Settings, fill_scene, guess_dataset, jobs_of, read_points
from pointcept3m.datasets.preprocess_scenes import preprocess
from pointcept3m.structures.camera import invert_pose, unproject
from pointcept3m.structures.scene import Scene
from tests.datasets.synthetic import HIGH, LOW, SIZE, cast, cloud, look

SCANNET = "scene0000_00"
# OpenScene's numbers for 320 x 240, where the centre of the first pixel is at 0; here for 64 x 48
INTRINSIC = np.array([[60.0, 0, 29.5, 0], [0, 58.0, 27.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_points(path: Path, label: np.ndarray, shift=0.0, colored: bool = True) -> dict[str, np.ndarray]:
    """A `.pth` of the box room, as numpy arrays of double precision."""
    room = cloud(200)
    path.parent.mkdir(parents=True, exist_ok=True)
    coord = room["coord"].astype(np.float64) + shift
    torch.save((coord, room["color"] / 127.5 - 1 if colored else 0, label), path)
    return {**room, "coord": coord.astype(np.float32)}


def write_sequence(folder: Path, units: float, intrinsic: np.ndarray = INTRINSIC, frames: int = 3) -> None:
    for kind in ("color", "depth", "pose"):
        (folder / kind).mkdir(parents=True)
    for n in range(0, 20 * frames, 20):
        depth, color = cast(look(n), to_ours(intrinsic))
        Image.fromarray(color).save(folder / f"color/{n}.jpg", quality=98)
        Image.fromarray(np.rint(depth * units).astype(np.uint16)).save(folder / f"depth/{n}.png")
        np.savetxt(folder / f"pose/{n}.txt", look(n))
    np.savetxt(folder.parent / "intrinsics.txt", intrinsic)


def to_ours(intrinsic: np.ndarray) -> np.ndarray:
    return intrinsic[:3, :3] + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def off_walls(scene: Scene, name: str) -> float:
    """How far off the room's walls, in metres, the farthest point of a frame's depth is."""
    frame = scene.frame(name)
    coord = unproject(frame.depth, frame.intrinsic, invert_pose(frame.extrinsic)).reshape(-1, 3)
    assert np.abs(frame.rgb.reshape(-1, 3) - (coord - LOW) / (HIGH - LOW)).mean() < 0.02
    return np.minimum(np.abs(coord - LOW), np.abs(coord - HIGH)).min(axis=1).max()


def run(points, output, frames=None, dataset=None, **kwargs):
    dataset = dataset or guess_dataset(points[0])
    return preprocess(fill_scene, jobs_of(points, output, frames, dataset=dataset), Settings(dataset, **kwargs), workers=0)


def test_scannet(tmp_path):
    label = np.where(np.arange(200) % 7 == 0, 255.0, np.arange(200) % 20)  # doubles, as the script's table makes them
    label[3] = -100
    room = write_points(tmp_path / "scannet_3d" / "train" / f"{SCANNET}_vh_clean_2.pth", label)
    write_sequence(tmp_path / "scannet_2d" / SCANNET, 1000)
    np.savetxt(tmp_path / "scannet_2d" / SCANNET / "pose/20.txt", np.full((4, 4), -np.inf))
    (report,) = run([tmp_path / "scannet_3d"], tmp_path / "out", tmp_path / "scannet_2d")
    assert (report.name, report.split, report.num_points, report.num_frames) == (SCANNET, "train", 200, 2)
    assert report.notes == {"pictures with a pose that is none, left out": 1}
    scene = Scene(tmp_path / "out" / "train" / SCANNET)
    np.testing.assert_array_equal(scene.load("coord"), room["coord"])
    np.testing.assert_array_equal(scene.load("color"), room["color"])
    np.testing.assert_array_equal(scene.load("normal"), estimate_normals(room["coord"]))
    want = np.where(label == 255, -1, label)
    want[3] = -1
    np.testing.assert_array_equal(scene.load("segment20"), want)
    assert scene.frame_names == ("0", "40")
    np.testing.assert_allclose(scene.frame("0").intrinsic, to_ours(INTRINSIC))
    assert max(off_walls(scene, name) for name in scene.frame_names) < 2e-3
    assert (scene.root / "depth/0.png").samefile(tmp_path / "scannet_2d" / SCANNET / "depth/0.png")


def test_features_fit_the_points(tmp_path):
    """The `.pt` files of the download belong to the scenes that come out, and are read from where they were unpacked."""
    write_points(tmp_path / "scannet_3d" / "train" / f"{SCANNET}_vh_clean_2.pth", np.full(200, 255))
    run([tmp_path / "scannet_3d"], tmp_path / "out", normals=False)
    mask = torch.arange(200) % 3 == 0
    (tmp_path / "features" / "lseg").mkdir(parents=True)
    feat = torch.randn(int(mask.sum()), 8).half()
    torch.save({"feat": feat, "mask_full": mask}, tmp_path / "features" / "lseg" / f"{SCANNET}_0.pt")
    data = PointDataset(split="train", data_root=tmp_path / "out", feature_teachers=("lseg",), feature_root=tmp_path / "features")
    sample = data.get_data(0)
    np.testing.assert_array_equal(sample["feature_row"] >= 0, mask.numpy())
    assert not (tmp_path / "out" / "train" / SCANNET / "normal.npy").exists()


def test_matterport_with_labels_of_several_sets(tmp_path):
    """Regions take their building's pictures; a row of the .conf counts from below, which OpenScene's files keep."""
    label = np.arange(200) % 21
    room = write_points(tmp_path / "matterport_3d" / "test" / "b1_region0.pth", label)
    write_points(tmp_path / "matterport_3d" / "test" / "b1_region1.pth", label, shift=30)
    write_points(tmp_path / "matterport_3d_160" / "test" / "b1_region0.pth", np.arange(200) % 160)
    folder = tmp_path / "matterport_2d" / "b1"
    for kind in ("color", "depth", "pose", "intrinsic"):
        (folder / kind).mkdir(parents=True)
    for yaw in range(4):
        depth, color = cast(look(1.5 * yaw), to_ours(INTRINSIC))
        Image.fromarray(color).save(folder / f"color/7f_i0_{yaw}.jpg", quality=98)
        Image.fromarray(np.rint(depth * 4000).astype(np.uint16)).save(folder / f"depth/7f_d0_{yaw}.png")
        np.savetxt(folder / f"pose/7f_i0_{yaw}.txt", look(1.5 * yaw))
        below = INTRINSIC[:3, :3].copy()
        below[1, 2] = SIZE[0] - 1 - below[1, 2]
        np.savetxt(folder / f"intrinsic/7f_i0_{yaw}.txt", below)
    (folder / "depth/7f_d0_2.png").unlink()
    first, second = run([tmp_path / "matterport_3d", tmp_path / "matterport_3d_160"], tmp_path / "out", tmp_path / "matterport_2d", nearest=2)
    assert (first.name, first.num_frames, first.notes) == ("b1_region0", 3, {"pictures whose depth is not there, left out": 1})
    assert second.num_frames == 2 and "scenes without a picture taken inside them, which have the nearest ones" in second.notes
    scene = Scene(tmp_path / "out" / "test" / "b1_region0")
    np.testing.assert_array_equal(scene.load("coord"), room["coord"])
    np.testing.assert_array_equal(scene.load("segment21"), label)
    np.testing.assert_array_equal(scene.load("segment160"), np.arange(200) % 160)
    assert scene.frame_names == ("7f_i0_0", "7f_i0_1", "7f_i0_3")
    assert max(off_walls(scene, name) for name in scene.frame_names) < 2e-3
    write_points(tmp_path / "matterport_3d_160" / "test" / "b1_region1.pth", label)
    with pytest.raises(ValueError, match=r"matterport_3d_160/test/b1_region1.pth: has other points than"):
        run([tmp_path / "matterport_3d", tmp_path / "matterport_3d_160"], tmp_path / "out2")


def test_replica_and_nuscenes(tmp_path):
    write_points(tmp_path / "replica_3d" / "office0.pth", np.full(200, 255, np.int32))
    write_sequence(tmp_path / "replica_2d" / "office0", 6553.5)
    (report,) = run([tmp_path / "replica_3d"], tmp_path / "replica", tmp_path / "replica_2d", normals=False)
    scene = Scene(tmp_path / "replica" / "test" / "office0")
    assert scene.assets == ["coord", "color"] and report.num_frames == 3
    assert max(off_walls(scene, name) for name in scene.frame_names) < 2e-3

    write_points(tmp_path / "nuscenes_3d" / "val" / "s1.pth", np.where(np.arange(200) < 9, 255.0, 15.0), colored=False)
    folder = tmp_path / "nuscenes_2d" / "val" / "s1"
    for kind in ("color", "pose", "K"):
        (folder / kind).mkdir(parents=True)
    for n, name in enumerate(("back", "front_left")):
        Image.fromarray(cast(look(n), to_ours(INTRINSIC))[1]).save(folder / f"color/{name}.jpg")
        np.save(folder / f"pose/{name}.npy", look(n))
        np.save(folder / f"K/{name}.npy", INTRINSIC[:3, :3])
    run([tmp_path / "nuscenes_3d"], tmp_path / "nuscenes", tmp_path / "nuscenes_2d", normals=False)
    scene = Scene(tmp_path / "nuscenes" / "val" / "s1")
    assert scene.assets == ["coord", "segment"] and scene.frame_names == ("back", "front_left") and not scene.has_depth
    np.testing.assert_array_equal(scene.load("segment"), np.where(np.arange(200) < 9, -1, 15))
    np.testing.assert_allclose(scene.frame("front_left").extrinsic @ look(1), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(scene.frame("back").intrinsic, to_ours(INTRINSIC))


def test_names_of_folders(tmp_path):
    assert [guess_dataset(tmp_path / name) for name in ("scannet_3d", "matterport_3d", "Matterport_3d_80", "nuscenes_3d_train")] == [
        "scannet", "matterport", "matterport80", "nuscenes",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="its name does not begin with that of a data set; say --dataset scannet, "):
        guess_dataset(tmp_path / "points")


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "scannet_3d" / "val" / f"{SCANNET}_vh_clean_2.pth"
    write_points(path, np.full(200, 20))
    with pytest.raises(ValueError, match=r"vh_clean_2.pth: wanted labels from 0 to 19 or 255, got 20 to 20"):
        run([tmp_path / "scannet_3d"], tmp_path / "out")
    good = np.zeros((5, 3))
    for content, message in (
        ((good, good, np.zeros(4)), r"wanted coords \[N, 3\], colors .* got shapes \[\[5, 3\], \[5, 3\], \[4\]\]"),
        ((good, good + 200, np.zeros(5)), "wanted colours from -1 to 1, got 200 to 200"),
        ({"feat": torch.zeros(3)}, "wanted the three arrays coords, colors and labels, got dict"),
        ((good, good, np.array([Path("/")] * 5)), "not a plain torch file of numbers"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message) as caught:
            read_points(path)
        assert str(path) in str(caught.value)
    write_points(path, np.full(200, 3))
    write_sequence(tmp_path / "scannet_2d" / SCANNET, 1000)
    shutil.rmtree(tmp_path / "scannet_2d" / SCANNET / "color")
    with pytest.raises(FileNotFoundError, match=r"scannet_2d/scene0000_00/color: no .jpg file there"):
        run([tmp_path / "scannet_3d"], tmp_path / "out", tmp_path / "scannet_2d")
    with pytest.raises(FileNotFoundError, match=r"scannet2d: no such folder of pictures; near it: .*scannet_2d"):
        run([tmp_path / "scannet_3d"], tmp_path / "out", tmp_path / "scannet2d")
    with pytest.raises(FileNotFoundError, match=r"scannet_3d: no .pth file in train there"):
        jobs_of([tmp_path / "scannet_3d"], tmp_path / "out", splits=["train"])


def test_command_line(tmp_path, capsys):
    write_points(tmp_path / "scannet_3d" / "val" / f"{SCANNET}_vh_clean_2.pth", np.full(200, 3))
    script = Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "openscene.py"
    spec = importlib.util.spec_from_file_location("preprocess_openscene_tool", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["--points", str(tmp_path / "scannet_3d"), "--output-root", str(tmp_path / "out"), "--workers", "0"]
    assert tool.main(arguments) == 0
    assert "1 scenes of scannet (--dataset)" in (out := capsys.readouterr().out) and "1 scenes (val 1), 200 points, 0 frames" in out
