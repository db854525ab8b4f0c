"""The scene folder: what is read, and what each kind of damage is called."""

import numpy as np
import pytest
from PIL import Image

from pointcept3m.ops.offsets import offset_to_batch, offset_to_counts
from pointcept3m.structures.images import write_depth
from pointcept3m.structures.keys import index_operator, key_of, kind_of
from pointcept3m.structures.scene import Scene, heldout, natural_key
from tests.datasets.synthetic import INTRINSIC, SIZE, cast, look, write_scene


@pytest.fixture
def root(tmp_path):
    return write_scene(tmp_path / "train" / "box")


def test_points_have_the_types_of_the_table(root):
    scene = Scene(root)
    points = scene.points(("coord", "color", "normal", "segment", "instance", "segment20"))
    assert (scene.name, scene.split) == ("box", "train")
    assert {k: (v.dtype.name, v.shape[1:]) for k, v in points.items()} == {
        "coord": ("float32", (3,)),
        "color": ("float32", (3,)),
        "normal": ("float32", (3,)),
        "segment": ("int64", ()),
        "instance": ("int64", ()),
    }


def test_frame_is_what_was_cast(root):
    frame = Scene(root).frame("2")
    depth, color = cast(look(2 * np.pi * 2 / 9))
    assert frame.rgb.shape == (*SIZE, 3) and frame.name == "box/2"
    np.testing.assert_allclose(frame.depth, depth, atol=6e-4)
    np.testing.assert_allclose(frame.rgb * 255, color, atol=1e-4)
    np.testing.assert_allclose(frame.extrinsic @ look(2 * np.pi * 2 / 9), np.eye(4), atol=1e-12)


def test_frame_of_another_size_back_projects_onto_the_walls(root):
    from pointcept3m.structures.camera import invert_pose, unproject

    frame = Scene(root).frame("1", (24, 32))
    np.testing.assert_allclose(frame.intrinsic, [[30, 0, 16.25], [0, 29, 11.75], [0, 0, 1]])
    coord = unproject(frame.depth, frame.intrinsic, invert_pose(frame.extrinsic)).reshape(-1, 3)
    to_wall = np.minimum(np.abs(coord), np.abs(coord - [4, 3, 2.5])).min(axis=1)
    assert np.median(to_wall) < 0.02  # depth is read at the nearest pixel, so half a pixel off


def test_frames_may_lie_apart(root, tmp_path):
    apart = tmp_path / "frames" / "box"
    apart.mkdir(parents=True)
    for name in ("color", "depth", "pose", "intrinsic"):
        (root / name).rename(apart / name)
    scene = Scene(root, frames_root=tmp_path / "frames")
    assert scene.frame_names == tuple("012345678")
    with pytest.raises(FileNotFoundError, match="has no frames"):
        _ = Scene(root).frame_names
    with pytest.raises(FileNotFoundError, match="no frames of scene 'box'"):
        Scene(root, frames_root=tmp_path)


def test_heldout_are_every_eighth_in_the_order_of_numbers():
    names = [str(n) for n in range(20)]
    assert heldout(reversed(names)) == ["4", "12"]
    assert heldout(names, 0) == []
    assert sorted(["a10", "a9", "b"], key=natural_key) == ["a9", "a10", "b"]
    with pytest.raises(ValueError, match="holdout"):
        heldout(names, 1)


def damaged(asset: str, value: np.ndarray):
    return lambda root: np.save(root / f"{asset}.npy", value)


def bad_coord(row: int, value: float) -> np.ndarray:
    coord = np.zeros((3000, 3), np.float32)
    coord[row] = value
    return coord


CASES = {
    "nan": (damaged("coord", bad_coord(17, np.nan)), r"coord.npy: 1 of 3000 rows are not finite, the first is row 17"),
    "huge": (damaged("coord", bad_coord(5, 2e4)), r"coord.npy: row 5 is .*20000.* beyond 10000 m"),
    "empty": (damaged("coord", np.zeros((0, 3), np.float32)), r"coord.npy: the scene is empty"),
    "columns": (damaged("coord", np.zeros((5, 4), np.float32)), r"coord.npy: wanted shape \[N, 3\], got \[5, 4\]"),
    "integers": (damaged("coord", np.zeros((5, 3), np.int32)), r"coord.npy: wanted float values, got dtype int32"),
    "rows": (damaged("color", np.zeros((7, 3), np.uint8)), r"color.npy: 7 rows where coord.npy has 3000"),
    "color range": (damaged("color", np.full((3000, 3), 300.0)), r"colours run from 300 to 300; wanted 0..255"),
    "color unit": (damaged("color", np.full((3000, 3), 0.5)), r"seem to be 0..1; wanted 0..255"),
    "label type": (damaged("segment", np.zeros(3000, np.float32)), r"segment.npy: wanted integer values"),
    "pickle": (lambda root: np.save(root / "coord.npy", np.array([{}]), allow_pickle=True), r"not a readable .npy"),
    "cut": (lambda root: (root / "coord.npy").write_bytes((root / "coord.npy").read_bytes()[:900]), r"not a readable"),
    "no npy": (lambda root: (root / "coord.npy").write_bytes(b"hello"), r"coord.npy: not a readable .npy"),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_points_are_named(root, case):
    damage, message = CASES[case]
    damage(root)
    with pytest.raises(ValueError, match=message):
        Scene(root).points(("color", "normal", "segment"))


def test_header_that_promises_terabytes_allocates_nothing(root):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 3), }"
    header += b" " * (117 - len(header)) + b"\n"
    (root / "coord.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match="not a readable .npy"):
        Scene(root).load("coord")


def text(path: str, content: str):
    return lambda root: (root / path).write_text(content)


FRAME_CASES = {
    "nan pose": (text("pose/0.txt", "nan 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1"), r"pose/0.txt: the pose is not finite"),
    "inf pose": (text("pose/0.txt", "\n".join(["-inf -inf -inf -inf"] * 4)), r"pose/0.txt: the pose is not finite"),
    "scaled pose": (text("pose/0.txt", "2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1"), r"pose/0.txt: wanted a camera->world"),
    "words": (text("pose/0.txt", "a b c d"), r"pose/0.txt: not a matrix of numbers"),
    "short": (text("pose/0.txt", "1 0 0"), r"wanted a 3x3 or 4x4 matrix, got rows of \[3\]"),
    "singular": (
        text("intrinsic/intrinsic_depth.txt", "0 0 0\n0 0 0\n0 0 1"),
        r"intrinsic_depth.txt: wanted an intrin",
    ),
    "other size": (
        text("intrinsic/intrinsic_color.txt", "1161 0 648\n0 1159 484\n0 0 1"),
        r"intrinsic_color.txt: principal point .* belongs to about 1296 x 968",
    ),
    "8-bit depth": (
        lambda root: Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "depth/0.png"),
        r"depth/0.png: wanted depth as one channel of 16 bits, got an 8-bit",
    ),
    "cut picture": (
        lambda root: (root / "color/0.png").write_bytes((root / "color/0.png").read_bytes()[:300]),
        r"color/0.png: the image is cut short",
    ),
    "no picture": (lambda root: (root / "color/0.png").write_text("no"), r"color/0.png: not a readable"),
}


@pytest.mark.parametrize("case", FRAME_CASES)
def test_damaged_frames_are_named(root, case):
    damage, message = FRAME_CASES[case]
    damage(root)
    with pytest.raises(ValueError, match=message):
        Scene(root).frame("0")


def test_what_is_absent_is_named_with_near_names(root):
    scene = Scene(root)
    with pytest.raises(FileNotFoundError, match=r"no such scene folder; did you mean 'box'"):
        Scene(root.parent / "bax")
    with pytest.raises(KeyError, match="did you mean 'normal'"):
        scene.load("normals")
    with pytest.raises(KeyError, match="has no frame '99'"):
        scene.frame("99")
    (root / "intrinsic" / "intrinsic_depth.txt").unlink()
    with pytest.raises(FileNotFoundError, match="intrinsic_depth.txt: no such file"):
        scene.frame("0")
    for file in (root / "pose").iterdir():
        file.rename(file.with_name("x" + file.name))
    with pytest.raises(
        ValueError, match=r"no frame has color, depth and pose under one name \(9 color, 9 depth, 9 pose"
    ):
        _ = Scene(root).frame_names


def test_a_frame_may_have_a_camera_of_its_own(root):
    """Frame 2 is cast by another camera than the others, with its matrix beside theirs, or alone."""
    own, pose = np.array([[44.0, 0, 30.5], [0, 47.0, 26.0], [0, 0, 1]]), look(2 * np.pi * 2 / 9)
    depth, color = cast(pose, own)
    write_depth(root / "depth/2.png", depth)
    Image.fromarray(color).save(root / "color/2.png")
    np.savetxt(root / "intrinsic/2.txt", own)
    scene = Scene(root)
    frame = scene.frame("2")
    np.testing.assert_array_equal(frame.intrinsic, own)
    np.testing.assert_allclose(frame.depth, depth, atol=6e-4)
    np.testing.assert_allclose(frame.rgb * 255, color, atol=1e-4)
    np.testing.assert_array_equal(scene.frame("3").intrinsic, INTRINSIC)
    np.testing.assert_allclose(scene.camera("2", (24, 32))[0], own * [[0.5], [0.5], [1]])
    for kind in ("color", "depth"):
        (root / f"intrinsic/intrinsic_{kind}.txt").unlink()
    scene = Scene(root)
    scene.check_frames(["2"])
    np.testing.assert_array_equal(scene.frame("2").intrinsic, own)
    with pytest.raises(FileNotFoundError, match=r"intrinsic_depth.txt: no such file, nor 3.txt beside it"):
        scene.frame("3")
    Image.fromarray(color[::2, ::2]).save(root / "color/2.png")
    with pytest.raises(ValueError, match=r"2.txt: is for colour of 32 x 24 and depth of 64 x 48; wanted one size"):
        scene.frame("2")


def test_frames_without_depth(root):
    """nuScenes' cameras: the folder depth/ is absent, not empty."""
    with_depth = Scene(root).frame("4")
    for path in (root / "depth").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no frame has color, depth and pose under one name \(9 color, 0 depth"):
        _ = Scene(root).frame_names
    (root / "depth").rmdir()
    scene = Scene(root)
    assert not scene.has_depth and scene.frame_names == tuple("012345678")
    frame = scene.frame("4")
    assert frame.depth is None and scene.frame_size("4") == SIZE
    np.testing.assert_array_equal(frame.rgb, with_depth.rgb)
    np.testing.assert_array_equal(frame.extrinsic, with_depth.extrinsic)
    assert scene.frame("4", (24, 32)).rgb.shape == (24, 32, 3)
    for read in (lambda: scene.depth("4"), lambda: scene.check_frames(["4"])):
        with pytest.raises(FileNotFoundError, match="depth not found; its frames have no depth"):
            read()


def test_table_of_keys():
    assert kind_of("coord") == kind_of("view1_coord") == "per_point"
    assert kind_of("origin_segment") == kind_of("view2_origin_coord") == "packed"
    assert kind_of("origin_offset") == kind_of("view1_offset") == "offset"
    assert kind_of("view1_feat") == "per_point" and kind_of("unheard_of") is None
    assert key_of("rgb").shape == ("M", "H", "W", 3)


def test_index_operator_follows_the_table():
    data = {"coord": np.zeros((4, 3)), "origin_coord": np.zeros((4, 3)), "extra": np.arange(4), "name": "x"}
    kept = index_operator(data, np.array([0, 2]), duplicate=True, extra=("extra",))
    assert len(kept["coord"]) == 2 and len(kept["origin_coord"]) == 4 and kept["extra"].tolist() == [0, 2]
    assert len(data["coord"]) == 4
    data["segment"] = np.zeros(3)
    with pytest.raises(ValueError, match="'segment' has 3 rows where coord has 4"):
        index_operator(data, np.array([0]))


def test_offset_gives_counts_and_scene_numbers():
    import torch

    offset = torch.tensor([2, 2, 5])
    assert offset_to_counts(offset).tolist() == [2, 0, 3]
    assert offset_to_batch(offset).tolist() == [0, 0, 2, 2, 2]
