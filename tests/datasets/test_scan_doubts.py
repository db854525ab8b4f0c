"""Scans that are read but doubtful: lost digits, odd units, far outliers; clouds as text; kinds that are not read."""

import numpy as np
import pytest

from pointcept3m.datasets.readers.cloud import Cloud, read_cloud
from pointcept3m.datasets.scan import ScanOptions, describe_extent, prepare_scan
from tests.datasets.test_cloud_readers import room


@pytest.fixture
def parts():
    coord, normal = room(0.2)
    return coord, np.random.default_rng(1).integers(0, 256, coord.shape).astype(np.uint8), normal


def said(cloud, *words, **arguments) -> bool:
    """Whether one of the sentences about a scan holds all the words."""
    scan = prepare_scan(cloud, needs=(), **arguments)
    return any(all(word in sentence for word in words) for sentence in scan.guesses)


def test_float32_far_from_0_is_refused_where_a_grid_notices():
    """UTM as float32: steps of 2^-5 m at 500 km and 2^-2 m at 4,000 km; doubles that were such floats; kept doubles are fine."""
    coord, _ = room(0.1)
    far = coord.astype(np.float64) + [500_000, 4_000_000, 100]
    for ruined in (far.astype(np.float32), far.astype(np.float32).astype(np.float64)):
        with pytest.raises(ValueError, match=r"0\.031 x 0\.25 x [\d.e-]+ m along x, y, z, and the model's grid is 0\.06 m(.|\n)*save them as doubles, or subtract"):
            prepare_scan(Cloud("a", "test", ruined), ScanOptions("z", "m"), (), grid_size=0.06)
        assert said(Cloud("a", "test", ruined), "caution", "0.25", options=ScanOptions("z", "m"))
    near = (coord.astype(np.float64) + [100_000, 0, 0]).astype(np.float32)  # steps of 2^-7 m: a warning for 6 cm, too coarse for 1 cm
    assert said(Cloud("a", "test", near), "caution", "0.0078", "0.06 m", grid_size=0.06)
    with pytest.raises(ValueError, match="0.0078"):
        prepare_scan(Cloud("a", "test", near), needs=(), grid_size=0.01)
    for fine in (far, coord, (far * 1000).astype(np.int64)):
        assert not said(Cloud("a", "test", fine), "caution", grid_size=0.02)
    lattice = np.round(coord.astype(np.float64) / 0.05) * 0.05
    assert said(Cloud("a", "test", lattice), "caution", "steps of 0.05 x 0.05 x 0.05 m", grid_size=0.02)
    assert not said(Cloud("a", "test", lattice), "caution", grid_size=0.06)


def test_a_room_of_odd_height_is_doubted():
    coord, _ = room(0.06)
    for unit, metres in (("ft", 0.3048), ("in", 0.0254)):
        assert said(Cloud("a", "test", coord / np.float32(metres)), "caution", f"--unit {unit} would make it 5.00 x 4.00 x 2.5"), unit
    assert said(Cloud("a", "test", coord * 100), "--unit cm would make", options=ScanOptions(unit="m"))
    chair = coord * np.float32([0.1, 0.12, 0.35])
    hall = coord * np.float32([10, 10, 8])
    for fine in (coord, coord * 1000, chair, hall):
        assert not said(Cloud("a", "test", fine), "caution")


def test_the_extent_names_far_outliers():
    coord, _ = room(0.1)
    assert describe_extent(coord) == "5.00 x 4.00 x 2.60 m"
    words = describe_extent(np.concatenate([coord, np.float32([[300, 300, 300]])]))
    assert words.startswith("300.00 x 300.00 x 300.00 m, 99 % of each axis within 5.00 x 4.00 x 2.5") and ": 1 point lies more than 5 m off" in words
    assert "3 points lie" in describe_extent(np.concatenate([coord, np.float32([[0, 0, -40]] * 3)]))
    assert describe_extent(np.zeros((1, 3), np.float32)) == "0.00 x 0.00 x 0.00 m"


def test_the_sentence_on_normals_counts_the_points():
    for number, words in ((1, "for want of a plane"), (5, "the 5 nearest"), (40, "the 16 nearest")):
        points = np.random.default_rng(0).random((number, 3))
        assert any(words in guess for guess in prepare_scan(Cloud("a", "test", points), needs=("normal",)).guesses)


# text


@pytest.mark.parametrize(("head", "sign", "parts_of", "tail"), [
    ("", " ", "cr", ""), ("x,y,z,r,g,b\n", ",", "cr", ""), ("//X Y Z R G B Nx Ny Nz\n", " ", "crn", ""), ("# made by hand\n\n", "\t", "c", ""),
    ("{n}\n", " ", "c", ""), ("x;y;z;label\n", ";", "c", ";3"), ("", " ", "c", " 0.5"), ("", " ", "crn", ""), ("", ", ", "cn", ""),
])  # fmt: skip
def test_text(tmp_path, parts, head, sign, parts_of, tail):
    tables = dict(zip("crn", (part[::29][:60] for part in parts), strict=True))
    rows = [sign.join(repr(v) for key in parts_of for v in tables[key][i].tolist()) + tail for i in range(60)]
    (tmp_path / "a.xyz").write_text(head.format(n=60) + "\n".join(rows) + "\n")
    cloud = read_cloud(tmp_path / "a.xyz")
    np.testing.assert_array_equal(cloud.coord, tables["c"])
    for key, values in (("r", cloud.color), ("n", cloud.normal)):
        if key in parts_of:
            np.testing.assert_array_equal(values, tables[key])
        else:
            assert values is None
    assert any("not used" in note for note in cloud.notes) == bool(tail)


def test_text_that_is_none_is_refused(tmp_path):
    for name, data, words in (
        ("empty.txt", b"", "no line of numbers"), ("prose.txt", b"Dear reader,\nhello\n", "line 1 is 'Dear reader,'"), ("bytes.xyz", b"1 2 3\0", "is no text"),
        ("ragged.csv", b"1,2,3\n4,5\n", "number of columns"), ("word.xyz", b"1 2 3\n4 x 6\n", "could not convert.*'x'"), ("seven.txt", b"1 2 3 4 5 6 7\n", "7 columns without names"),
        ("short.txt", b"x y z r\n1 2 3\n", "names 4 columns.* and has 3"), ("two.txt", b"1 2\n3 4\n", "2 columns"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: .*{words}"):
            read_cloud(tmp_path / name)
    (tmp_path / "leica.pts").write_text("1\n1 2 3 -500 10 20 30\n")
    assert read_cloud(tmp_path / "leica.pts").color.tolist() == [[10, 20, 30]]


def test_other_kinds_come_with_a_way_out(tmp_path):
    for name, words in (("a b.obj", "trimesh.*'.*a b.obj'"), ("a.stl", "trimesh"), ("a.e57", "CloudCompare"), ("bare", "without a suffix")):
        (tmp_path / name).write_bytes(b"v 0 0 0\n")
        with pytest.raises(ValueError, match=words):
            read_cloud(tmp_path / name)
