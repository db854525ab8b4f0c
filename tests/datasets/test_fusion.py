"""Fusion of frames into a cloud, and the script that writes the scene."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointcept3m.datasets.fusion import (
    DepthFrame,
    FusionSettings,
    camera_up,
    dense_voxels,
    depth_normals,
    fuse_frames,
    refine_up,
    rotation_to_z,
    voxel_keys,
)
from pointcept3m.structures.camera import scale_intrinsic, unproject
from pointcept3m.structures.scene import Scene, heldout
from tests.datasets.synthetic import HIGH, INTRINSIC, LOW, SIZE, cast, look
from tests.datasets.test_rgbd import write_7scenes

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "rgbd.py"
BIG = (96, 128)
BIG_K = scale_intrinsic(INTRINSIC, SIZE, BIG)


def room_frames(count: int = 8, noise: float = 0.0) -> list[DepthFrame]:
    rng = np.random.default_rng(0)
    frames = []
    for number in range(count):
        pose = look(2 * np.pi * number / count, tilt=0.2)
        depth, color = cast(pose, BIG_K, BIG)
        depth = (depth + noise * rng.normal(size=BIG)).astype(np.float32)
        frames.append(DepthFrame(color, depth, BIG_K, BIG_K, pose))
    return frames


def test_fused_room_has_its_walls_colours_and_normals():
    cloud = fuse_frames(room_frames(), FusionSettings(voxel=0.08, max_depth=6, min_neighbors=3))
    assert len(cloud.coord) > 1500 and cloud.color.dtype == np.uint8 and cloud.coord.dtype == np.float32
    distances = np.abs(np.concatenate([cloud.coord - LOW, cloud.coord - HIGH], axis=1))
    # where a voxel spans a corner it averages two walls
    assert np.quantile(distances.min(axis=1), 0.95) < 0.01
    wanted = (cloud.coord - LOW) / (HIGH - LOW) * 255
    assert np.abs(cloud.color - wanted).mean() < 3
    plain = (np.sort(distances, axis=1)[:, 1] > 0.3) & (distances.min(axis=1) < 0.01)
    wall = distances.argmin(axis=1)
    inward = np.where(wall < 3, 1, -1)[:, None] * np.eye(3)[wall % 3]
    cosine = (cloud.normal * inward).sum(axis=1)[plain]
    assert plain.sum() > 500 and np.quantile(cosine, 0.05) > 0.98


def test_normals_do_not_lean_to_the_camera_under_quantised_depth():
    """A slanted plane in 2 cm depth steps: means of unit normals would miss its slant."""
    intrinsic = np.array([[200.0, 0, 80], [0, 200, 60], [0, 0, 1]])
    slanted = np.array([0.0, -0.6, -0.8])
    rays = unproject(np.ones((120, 160)), intrinsic)
    depth = -2.0 / (rays @ slanted)
    steps = np.round(depth / 0.02) * 0.02
    normal, valid = depth_normals(unproject(steps, intrinsic), edge=0.05)
    inner = valid[20:-20, 20:-20]
    mean = normal[20:-20, 20:-20][inner].mean(axis=0)
    assert inner.mean() > 0.9
    assert np.degrees(np.arccos(mean @ slanted / np.linalg.norm(mean))) < 2


def test_discontinuities_have_no_normal():
    depth = np.full((20, 20), 2.0)
    depth[:, 10:] = 1.0
    depth[5, 5] = 0
    _, valid = depth_normals(unproject(depth, INTRINSIC), edge=0.03)
    assert not valid[:, 9:11].any() and not valid[4:7, 5].any() and not valid[5, 4:7].any()
    assert valid[10, 3] and valid[10, 15] and not valid[0].any()


def test_flying_pixels_are_dropped():
    frames = room_frames()
    frames[0].depth[40:44, 60:64] = 0.8  # a smooth speck in mid-air, in one frame only
    cloud = fuse_frames(frames, FusionSettings(voxel=0.04, max_depth=6))
    to_wall = np.minimum(cloud.coord - LOW, HIGH - cloud.coord).min(axis=1)
    assert to_wall.max() < 0.1


def test_small_pieces_and_lonely_voxels_are_dropped():
    plane = np.stack(np.meshgrid(range(10), range(10), [0], indexing="ij"), -1).reshape(-1, 3)
    cells = np.concatenate([plane, plane[:4] + [100, 0, 0], [[50, 50, 50]]])
    keys = np.sort(voxel_keys((cells + 0.5) * 0.1, 0.1))
    assert dense_voxels(keys, min_neighbors=1, min_component=50).sum() == 100
    assert dense_voxels(keys, min_neighbors=1, min_component=2).sum() == 104
    assert dense_voxels(keys, min_neighbors=4, min_component=1).sum() == 96  # the plane without its corners


def test_nothing_to_fuse_is_an_error():
    with pytest.raises(ValueError, match="nothing to fuse: 0 frames"):
        fuse_frames([])
    with pytest.raises(ValueError, match="no depth within 0.1 .. 0.2 m"):
        fuse_frames(room_frames(2), FusionSettings(min_depth=0.1, max_depth=0.2))
    with pytest.raises(ValueError, match="too far off for voxels"):
        voxel_keys(np.array([[1e6, 0, 0]]), 0.01)
    with pytest.raises(ValueError, match="voxel must be positive"):
        FusionSettings(voxel=0)


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, -1), (0, -1, 0), (0.3, -0.9, 0.2)])
def test_rotation_to_z(up):
    rotation = rotation_to_z(np.array(up, float))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) > 0
    np.testing.assert_allclose(rotation @ up / np.linalg.norm(up), [0, 0, 1], atol=1e-12)


def test_up_is_guessed_from_cameras_and_floor():
    turn = rotation_to_z(np.array([0.2, -0.9, 0.3])).T  # the room in some other world
    world = np.eye(4)
    world[:3, :3] = turn
    frames = [DepthFrame(f.color, f.depth, f.color_intrinsic, f.depth_intrinsic, world @ f.pose) for f in room_frames()]
    poses = np.stack([f.pose for f in frames])
    cloud = fuse_frames(frames, FusionSettings(voxel=0.08, max_depth=6))
    up = refine_up(camera_up(poses), cloud.normal)
    assert np.degrees(np.arccos(up @ turn[:, 2])) < 2
    with pytest.raises(ValueError, match="--up-axis"):
        camera_up(np.stack([np.eye(4), np.diag([1.0, -1, -1, 1])]))


def load_script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("preprocess_rgbd", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fuse(capsys):
    """Runs the script's main in this process; returns what it printed."""
    main = load_script().main

    def run(source: Path, output: Path, *arguments: str) -> str:
        main(["--input", str(source), "--output", str(output), *arguments])
        return capsys.readouterr().out

    return run


COARSE = ("--voxel", "0.1", "--holdout", "4", "--max-depth", "6")


def test_script_writes_a_scene_and_prints_its_guesses(tmp_path, fuse):
    source, output = write_7scenes(tmp_path / "frames", frames=10), tmp_path / "rgbd" / "train" / "box"
    (source / "gravity-direction.txt").unlink()
    printed = fuse(source, output, *COARSE, "--up-axis", "-y")
    assert "up is (-0.000, -1.000, -0.000): as --up-axis says" in printed and "7scenes folder (--kind)" in printed
    scene = Scene(output)
    names = scene.frame_names
    assert scene.fusion_settings()["heldout"] == heldout(names, 4) and len(names) == 10
    # what was -y is z now, for points and cameras
    np.testing.assert_allclose(scene.pose(names[3])[2, 3], -1.5, atol=1e-6)
    assert abs(scene.points()["coord"][:, 2].max()) < 0.05
    frame = scene.frame(names[3])
    world = unproject(frame.depth, frame.intrinsic, np.linalg.inv(frame.extrinsic))[frame.depth > 0]
    distance = np.abs(world[::50, None] - scene.points()["coord"]).max(axis=2).min(axis=1)
    assert np.median(distance) < 0.1
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        fuse(source, output, *COARSE)
    assert "guessed from the mean camera" in fuse(source, output, *COARSE, "--overwrite", "--max-frames", "6")
    assert len(Scene(output).frame_names) == 6
    with pytest.raises(FileExistsError, match="no scene that this script wrote"):
        fuse(source, tmp_path, "--overwrite")
    assert source.is_dir()


def test_script_ends_with_one_sentence_on_bad_input(tmp_path):
    root = SCRIPT.parents[2]
    done = subprocess.run([sys.executable, str(SCRIPT), "--input", str(tmp_path / "none"), "--output", str(tmp_path / "x")],
                          capture_output=True, text=True, timeout=120, cwd=root, env={"PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert "no such folder" in done.stderr and not (tmp_path / "x").exists()


def test_holdout_keeps_the_same_frames_out_of_cloud_and_training(tmp_path, fuse):
    from pointcept3m.datasets import RGBDFolderDataset

    source, output = write_7scenes(tmp_path / "frames", frames=10), tmp_path / "rgbd" / "train" / "box"
    fuse(source, output, *COARSE)
    settings = json.loads((output / "fusion.json").read_text())
    dataset = RGBDFolderDataset(data_root=tmp_path / "rgbd", holdout=4, num_cameras=2, image_size=(12, 16))
    assert not set(dataset.view_names(0)) & set(settings["heldout"])
    with pytest.raises(ValueError, match="fused with --holdout 4 but the data set splits views by holdout=8"):
        RGBDFolderDataset(data_root=tmp_path / "rgbd")[0]


def test_held_out_frames_leave_no_point(tmp_path, fuse):
    """A frame that alone sees a plane in mid-room must not bring it into the cloud when it is held out."""
    source = write_7scenes(tmp_path / "frames", frames=10)
    held = source / "frame-000002.depth.png"
    Image.fromarray(np.full(SIZE, 900, np.uint16)).save(held)

    def in_mid_air(scene: Scene) -> int:
        coord = scene.points()["coord"]
        return int((np.minimum(coord - LOW, HIGH - coord).min(axis=1) > 0.3).sum())

    fuse(source, tmp_path / "with", *COARSE)
    fuse(source, tmp_path / "without", "--voxel", "0.1", "--max-depth", "6", "--holdout", "0")
    assert in_mid_air(Scene(tmp_path / "with")) == 0 < in_mid_air(Scene(tmp_path / "without"))


@pytest.mark.long
@pytest.mark.parametrize("name, low", [("rgbd_7scenes", 50_000), ("rgbd_scannet_scene0014_00", 30_000)])
def test_real_sequences_fuse_into_an_upright_scene(real_data, tmp_path, fuse, name, low):
    fuse(real_data(name), tmp_path / "s", "--max-frames", "27")
    points = Scene(tmp_path / "s").points()
    assert len(points["coord"]) > low
    up = refine_up(np.array([0, 0, 1.0]), points["normal"])
    assert np.degrees(np.arccos(up[2])) < 5
