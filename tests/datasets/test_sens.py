"""`.sens` recordings: round trip, random access, and files that are cut short or damaged at any place."""

import struct
import zlib

import numpy as np
import pytest

from pointcept3m.datasets.readers import SensReader, write_sens

NUM_FRAMES = 4
HEADER = 4 + 8 + len("StructureSensor") + 4 * 64 + 8 + 16 + 4 + 8


@pytest.fixture
def recording(tmp_path):
    rng = np.random.default_rng(0)
    pose = np.tile(np.eye(4), (NUM_FRAMES, 1, 1))
    pose[:, :3, 3] = rng.normal(size=(NUM_FRAMES, 3))
    ramp = np.linspace(0, 255, 48)[None, :, None] * np.ones((36, 1, 3))
    color = np.clip(ramp + np.arange(NUM_FRAMES)[:, None, None, None] * 10, 0, 255).astype(np.uint8)
    depth = rng.integers(0, 5000, (NUM_FRAMES, 24, 32)).astype(np.uint16)
    intrinsic_color, intrinsic_depth = np.diag([40.0, 41.0, 1.0]), np.diag([30.0, 31.0, 1.0])
    path = tmp_path / "scene0000_00.sens"
    write_sens(path, pose, color, depth, intrinsic_color, intrinsic_depth)
    return path, pose, color, depth


def test_round_trip_in_any_order(recording):
    path, pose, color, depth = recording
    with SensReader(path) as sens:
        assert (len(sens), sens.color_size, sens.depth_size, sens.depth_shift) == (NUM_FRAMES, (36, 48), (24, 32), 1000)
        assert sens.sensor_name == "StructureSensor"
        assert sens.intrinsic_color[1, 1] == 41 and sens.intrinsic_depth[0, 0] == 30
        for index in (3, 0, 2, 1):
            np.testing.assert_array_equal(sens.depth(index), depth[index])
            np.testing.assert_allclose(sens.pose(index), pose[index], atol=1e-6)
            assert np.abs(sens.color(index).astype(int) - color[index]).max() < 12  # jpeg
        with pytest.raises(IndexError, match="frame 4 is not among its 4 frames"):
            sens.depth(4)


def test_layout_is_that_of_scannet(recording):
    """Header fields read by hand at the places that the format gives them."""
    data = recording[0].read_bytes()
    assert struct.unpack_from("<IQ", data) == (4, 15)
    at = 12 + 15 + 256
    assert struct.unpack_from("<2i4IfQ", data, at) == (2, 1, 48, 36, 32, 24, 1000.0, NUM_FRAMES)
    *_, color_size, depth_size = struct.unpack_from("<16f4Q", data, HEADER)
    depth = zlib.decompress(data[HEADER + 96 + color_size :][:depth_size])
    np.testing.assert_array_equal(np.frombuffer(depth, "<u2").reshape(24, 32), recording[3][0])


def test_every_cut_is_refused(recording):
    path = recording[0]
    data = path.read_bytes()
    cuts = [0, 3, 4, 11, 12, 20, HEADER - 1, HEADER, HEADER + 50, HEADER + 96, HEADER + 300, len(data) // 2, len(data) - 1]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="scene0000_00.sens: cut short"):
            SensReader(path)


def test_cut_names_the_frame(recording):
    path = recording[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="frame 3 of 4"):
        SensReader(path)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, struct.pack("<I", 3), "wanted .sens version 4, got 3"),
        (4, struct.pack("<Q", 2**62), "sensor name of at most"),
        (27, struct.pack("<f", np.nan), "intrinsic_color is not finite"),
        (283, struct.pack("<i", 7), "colour compression 7 is unknown"),
        (287, struct.pack("<i", 2), "depth compression 2 cannot be read"),
        (291, struct.pack("<I", 2**31), "wanted sides of pictures"),
        (307, struct.pack("<f", 0.0), "positive depth shift"),
        (311, struct.pack("<Q", 2**60), "cut short"),
        (HEADER + 80, struct.pack("<Q", 2**63), "cut short: frame 0 of 4"),
        (HEADER + 88, struct.pack("<Q", 2**63), "cut short: frame 0 of 4"),
    ],
)
def test_damaged_fields_are_refused_by_name(recording, at, value, message):
    path = recording[0]
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=message):
        SensReader(path)


def test_damaged_pictures_name_their_frame(recording):
    path = recording[0]
    data = bytearray(path.read_bytes())
    *_, color_size, depth_size = struct.unpack_from("<16f4Q", data, HEADER)
    data[HEADER + 96 : HEADER + 110] = b"x" * 14
    data[HEADER + 96 + color_size : HEADER + 104 + color_size] = b"y" * 8
    path.write_bytes(bytes(data))
    with SensReader(path) as sens:
        with pytest.raises(ValueError, match="frame 0: its jpeg colour cannot be decoded"):
            sens.color(0)
        with pytest.raises(ValueError, match="frame 0: its depth cannot be unpacked"):
            sens.depth(0)
        sens.color(1)


def test_depth_that_unpacks_to_more_than_a_picture_is_refused(recording):
    path = recording[0]
    data = path.read_bytes()
    *_, color_size, depth_size = struct.unpack_from("<16f4Q", data, HEADER)
    bomb = zlib.compress(bytes(10_000_000))
    start = HEADER + 96 + color_size
    data = data[: HEADER + 88] + struct.pack("<Q", len(bomb)) + data[HEADER + 96 : start] + bomb + data[start + depth_size :]
    path.write_bytes(data)
    with SensReader(path) as sens, pytest.raises(ValueError, match="frame 0: wanted 1536 bytes of depth .* got more"):
        sens.depth(0)


def test_lost_tracking_is_seen(recording, tmp_path):
    _, pose, color, depth = recording
    pose = pose.copy()
    pose[1], pose[2] = -np.inf, np.nan
    pose[3, :3, :3] *= 2
    write_sens(tmp_path / "b.sens", pose, color, depth, np.eye(3), np.eye(3))
    with SensReader(tmp_path / "b.sens") as sens:
        assert [sens.pose_is_valid(k) for k in range(NUM_FRAMES)] == [True, False, False, False]


def test_writer_refuses_unequal_numbers(tmp_path, recording):
    _, pose, color, depth = recording
    with pytest.raises(ValueError, match="as many poses as pictures"):
        write_sens(tmp_path / "c.sens", pose[:2], color, depth, np.eye(3), np.eye(3))
    with pytest.raises(FileNotFoundError, match="none.sens"):
        SensReader(tmp_path / "none.sens")
