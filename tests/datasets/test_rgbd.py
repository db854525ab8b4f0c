"""Folders of RGB-D frames: the five kinds, the real sequences, and what is said of bad ones."""

import json

import numpy as np
import pytest
from PIL import Image

from pointcept3m.datasets.readers.rgbd import detect_kind, open_rgbd, pose_from_quaternion
from pointcept3m.structures.camera import project, unproject
from tests.datasets.synthetic import INTRINSIC, SIZE, cast, look, write_scene


def write_7scenes(root, frames=3):
    root.mkdir()
    np.savetxt(root / "camera-intrinsics.txt", INTRINSIC)
    (root / "gravity-direction.txt").write_text("0\n0\n-2\n")
    for number in range(frames):
        depth, color = cast(look(number))
        raw = np.rint(depth * 1000).astype(np.uint16)
        raw[0, 0] = 65535
        Image.fromarray(color).save(root / f"frame-{number:06d}.color.jpg")
        Image.fromarray(raw).save(root / f"frame-{number:06d}.depth.png")
        np.savetxt(root / f"frame-{number:06d}.pose.txt", look(number))
    return root


def quaternion_xyzw(pose: np.ndarray) -> list[float]:
    """By way of the eigenvector of rotation: independent of the reader's formula."""
    m = pose[:3, :3]
    (a, b, c), (d, e, f), (g, h, i) = m
    k = np.array([[a - e - i, d + b, g + c, h - f], [d + b, e - a - i, h + f, c - g],
                  [g + c, h + f, i - a - e, d - b], [h - f, c - g, d - b, a + e + i]]) / 3  # fmt: skip
    return np.linalg.eigh(k)[1][:, -1].tolist()


def write_tum(root, frames=3):
    (root / "rgb").mkdir(parents=True)
    (root / "depth").mkdir()
    lists = {"rgb": ["# colour"], "depth": [], "groundtruth": ["# time tx ty tz qx qy qz qw"]}
    for number in range(frames):
        depth, color = cast(look(number))
        time = 100 + number * 0.5
        Image.fromarray(color).save(root / f"rgb/{time}.png")
        Image.fromarray(np.rint(depth * 5000).astype(np.uint16)).save(root / f"depth/{time}.png")
        pose = look(number)
        lists["rgb"].append(f"{time + 0.004} rgb/{time}.png")
        lists["depth"].append(f"{time} depth/{time}.png")
        words = " ".join(map(str, [*pose[:3, 3], *quaternion_xyzw(pose)]))
        lists["groundtruth"] += [f"{time + 0.2} 9 9 9 0 0 0 1", f"{time - 0.006} {words}"]
    lists["depth"].append("200.0 depth/100.0.png")  # far from any pose
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_sens_info(root):
    """Colour half the size of its calibration, depth as 16-bit PGM, as ViewAL's sample is."""
    write_scene(root, frames=3)
    for path in list((root / "depth").iterdir()):
        raw = np.asarray(Image.open(path)).astype(">u2")
        header = f"P5 {raw.shape[1]} {raw.shape[0]} 65535\n".encode()
        path.with_suffix(".pgm").write_bytes(header + raw.tobytes())
        path.unlink()
    for path in (root / "intrinsic").iterdir():
        path.unlink()
    (root / "intrinsic").rmdir()
    (root / "info").mkdir()
    big = np.eye(4)
    big[:2, :3] = INTRINSIC[:2] * 2
    small = np.eye(4)
    small[:3, :3] = INTRINSIC
    (root / "info" / "box.txt").write_text(
        f"m_colorWidth = {SIZE[1] * 2}\nm_colorHeight = {SIZE[0] * 2}\nm_depthWidth = {SIZE[1]}\nm_depthHeight = {SIZE[0]}\n"
        f"m_depthShift = 1000\nm_calibrationColorIntrinsic = {' '.join(map(str, big.ravel()))}\n"
        f"m_calibrationDepthIntrinsic = {' '.join(map(str, small.ravel()))}\n"
    )
    return root


def write_replica(root, frames=3):
    """Three frames named like Replica's two thousand, and the camera beside the room's folder."""
    (root / "results").mkdir(parents=True)
    for number in range(frames):
        depth, color = cast(look(number))
        Image.fromarray(color).save(root / f"results/frame{number:06d}.jpg")
        Image.fromarray(np.rint(depth * 6553.5).astype(np.uint16)).save(root / f"results/depth{number:06d}.png")
    (root / "traj.txt").write_text("".join(" ".join(f"{x:.18e}" for x in look(number).flat) + "\n" for number in range(frames)))
    camera = {"w": SIZE[1], "h": SIZE[0], "fx": 60.0, "fy": 58.0, "cx": 32.0, "cy": 23.0, "scale": 6553.5}
    (root.parent / "cam_params.json").write_text(json.dumps({"camera": camera}))
    return root


WRITERS = {
    "scannet": lambda root: write_scene(root, frames=3),
    "7scenes": write_7scenes,
    "tum": write_tum,
    "sens_info": write_sens_info,
    "replica": write_replica,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_reads_the_same_room(tmp_path, kind):
    root = WRITERS[kind](tmp_path / "freiburg1_box")
    given = (60.0, 58.0, 32.5, 23.5) if kind == "tum" else None
    folder = open_rgbd(root, intrinsic=given)
    assert folder.kind == kind == detect_kind(root) and len(folder.frames) == 3
    np.testing.assert_allclose(folder.depth_intrinsic, INTRINSIC, atol=1e-9)
    np.testing.assert_allclose(folder.color_intrinsic, INTRINSIC, atol=1e-9)
    for number, frame in enumerate(folder.frames):
        angle = number if kind in ("7scenes", "tum", "replica") else 2 * np.pi * number / 3
        np.testing.assert_allclose(frame.pose, look(angle), atol=1e-6)
        depth, color = cast(look(angle))
        got_color, got_depth = folder.read(frame)
        valid = got_depth > 0
        assert valid.mean() > 0.99
        np.testing.assert_allclose(got_depth[valid], depth[valid], atol=6e-4)
        assert np.abs(got_color.astype(int) - color).mean() < 6
    np.testing.assert_allclose(folder.up, [0, 0, 1])
    if kind == "7scenes":
        assert got_depth[0, 0] == 0  # 65535 means nothing


def test_tum_knows_its_cameras_by_the_folder(tmp_path):
    assert open_rgbd(write_tum(tmp_path / "rgbd_dataset_freiburg2_desk")).depth_intrinsic[0, 0] == 520.9
    with pytest.raises(FileNotFoundError, match="--intrinsic fx fy cx cy"):
        open_rgbd(write_tum(tmp_path / "mine"))


def test_replica_without_its_camera_file_and_damaged(tmp_path):
    root = write_replica(tmp_path / "office0")
    (tmp_path / "cam_params.json").write_text('{"camera": {"fx": 600.0}}')
    with pytest.raises(ValueError, match=r"cam_params.json: wanted camera: fx, fy, cx, cy, scale as numbers \(KeyError: 'fy'\)"):
        open_rgbd(root)
    (tmp_path / "cam_params.json").unlink()
    folder = open_rgbd(root)
    np.testing.assert_array_equal(folder.color_intrinsic, [[600, 0, 600], [0, 600, 340], [0, 0, 1]])
    assert folder.units_per_metre == 6553.5
    lines = (root / "traj.txt").read_text().splitlines()
    (root / "traj.txt").write_text("\n".join(lines[:2]))
    with pytest.raises(ValueError, match="traj.txt has 2 poses, results/ has 3 pictures"):
        open_rgbd(root)
    (root / "traj.txt").write_text("\n".join([*lines[:2], lines[2][:40]]))
    with pytest.raises(ValueError, match="traj.txt: wanted 16 numbers a line"):
        open_rgbd(root)


def test_quaternion_order_is_xyzw():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        pose_from_quaternion([1, 2, 3], [0, 0, half, half]) @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-9
    )


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_rgbd(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a folder of posed RGB-D frames"):
        open_rgbd(tmp_path / "empty")
    with pytest.raises(ValueError, match="did you mean '7scenes'"):
        open_rgbd(tmp_path / "empty", kind="7scene")
    root = write_7scenes(tmp_path / "seven")
    (root / "camera-intrinsics.txt").unlink()
    with pytest.raises(FileNotFoundError, match="--intrinsic"):
        open_rgbd(root)
    assert open_rgbd(root, intrinsic=(1, 2, 3, 4)).depth_intrinsic[1, 1] == 2
    with pytest.raises(ValueError, match="positive focal lengths"):
        open_rgbd(root, intrinsic=(0, 2, 3, 4))


def test_bad_frames_are_named_or_skipped(tmp_path):
    root = write_7scenes(tmp_path / "seven")
    (root / "frame-000001.pose.txt").write_text("\n".join(["-inf -inf -inf -inf"] * 4))
    with pytest.raises(ValueError, match="frame-000001.*not finite.*--skip-bad-frames"):
        open_rgbd(root, intrinsic=(60, 58, 32.5, 23.5))
    folder = open_rgbd(root, on_bad_frame="skip")
    assert folder.dropped == ("frame-000001",) and len(folder.frames) == 2
    (root / "frame-000002.color.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="frame-000002.color.jpg"):
        open_rgbd(root, on_bad_frame="skip")
    Image.new("RGB", (9, 9)).save(root / "frame-000000.color.jpg")
    with pytest.raises(ValueError, match="9 x 9, the first is"):
        folder.read(folder.frames[0])


def test_bad_tum_lists_are_named(tmp_path):
    root = write_tum(tmp_path / "freiburg1")
    (root / "rgb.txt").write_text("100.0 ../../secret.png\n100.5 rgb/100.5.png\n")
    with pytest.raises(ValueError, match="lies outside the folder"):
        open_rgbd(root)
    (root / "rgb.txt").write_text("abc rgb/1.png\n")
    with pytest.raises(ValueError, match="rgb.txt, line 1: wanted a time stamp"):
        open_rgbd(root)
    (root / "rgb.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no line with a time stamp"):
        open_rgbd(root)


@pytest.mark.parametrize(
    "name, kind, count", [("rgbd_7scenes", "7scenes", 100), ("rgbd_scannet_scene0014_00", "sens_info", 27)]
)
def test_real_frames_agree_with_each_other(real_data, name, kind, count):
    """Depth of one frame, lifted and seen by a neighbour, equals the neighbour's own depth within 2 cm (median)."""
    folder = open_rgbd(real_data(name))
    assert folder.kind == kind and len(folder.frames) == count
    errors = []
    for first, second in zip(folder.frames[:6], folder.frames[1:7], strict=True):
        _, depth = folder.read(first)
        _, other = folder.read(second)
        coord = unproject(depth, folder.depth_intrinsic, first.pose)[depth > 0]
        pixel, z = project(coord, folder.depth_intrinsic, np.linalg.inv(second.pose))
        inside = (z > 0.3) & (pixel[:, 0] >= 0) & (pixel[:, 0] < 640) & (pixel[:, 1] >= 0) & (pixel[:, 1] < 480)
        seen = other[pixel[inside, 1].astype(int), pixel[inside, 0].astype(int)]
        difference = np.abs(seen - z[inside])[seen > 0]
        errors.append(difference[difference < 0.3])  # the rest is occluded
    errors = np.concatenate(errors)
    assert len(errors) > 100_000 and np.median(errors) < 0.02
