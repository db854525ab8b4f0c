"""Clouds from files that people have: every kind read back, guesses on known scans, hostile files refused by name."""

import io
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch

from pointcept3m.datasets.normals import estimate_normals
from pointcept3m.datasets.readers.cloud import Cloud, as_cloud, read_cloud
from pointcept3m.datasets.readers.pcd import decompress_lzf, read_pcd
from pointcept3m.datasets.readers.ply import write_ply
from pointcept3m.datasets.scan import (
    ScanOptions,
    guess_color_range,
    guess_unit,
    guess_up,
    prepare_scan,
)
from pointcept3m.datasets.tiles import cut_tiles


def room(step: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(coord, normal towards the inside) of a room of 5 x 4 x 2.6 m without ceiling, with a cupboard and a table, z up."""
    rng = np.random.default_rng(seed)
    faces = [((0, 0, 0), (5, 0, 0), (0, 4, 0)), ((0, 0, 0), (0, 4, 0), (0, 0, 2.6)), ((0, 0, 0), (0, 0, 2.6), (5, 0, 0))]
    faces += [((5, 0, 0), (0, 0, 2.6), (0, 4, 0)), ((0, 4, 0), (5, 0, 0), (0, 0, 2.6))]
    faces += [((1, 1, 0.7), (1.5, 0, 0), (0, 1, 0)), ((4, 0.6, 0), (0, 0, 1.2), (1, 0, 0)), ((4, 0, 1.2), (1, 0, 0), (0, 0.6, 0))]
    coord, normal = [], []
    for corner, u, v in (np.array(face, float) for face in faces):
        count = int(np.linalg.norm(u) * np.linalg.norm(v) / step**2)
        coord.append(corner + rng.random((count, 1)) * u + rng.random((count, 1)) * v)
        n = np.cross(u, v)
        normal.append(np.tile(n / np.linalg.norm(n), (count, 1)))
    return np.concatenate(coord).astype(np.float32), np.concatenate(normal).astype(np.float32)


@pytest.fixture
def parts():
    coord, normal = room(0.2)
    return coord, np.random.default_rng(1).integers(0, 256, coord.shape).astype(np.uint8), normal


def write_pcd(path, coord, color, normal, kind: str, packed: str = "F"):
    """A PCD file as PCL writes it, by hand: x y z rgb normal_x normal_y normal_z."""
    rgb = (color[:, 0].astype(np.uint32) << 16) | (color[:, 1].astype(np.uint32) << 8) | color[:, 2]
    rows = np.zeros(len(coord), [("xyz", "<f4", 3), ("rgb", "<u4"), ("n", "<f4", 3)])
    rows["xyz"], rows["rgb"], rows["n"] = coord, rgb, normal
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb normal_x normal_y normal_z\nSIZE 4 4 4 4 4 4 4\n"
    head += f"TYPE F F F {packed} F F F\nCOUNT 1 1 1 1 1 1 1\nWIDTH {len(coord)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\n"
    head += f"POINTS {len(coord)}\nDATA {kind}\n"
    if kind == "ascii":
        shown = rgb.view(np.float32) if packed == "F" else rgb
        lines = [" ".join([*(repr(float(v)) for v in c), repr(shown[i].item()), *(repr(float(v)) for v in n)]) for i, (c, n) in enumerate(zip(coord, normal, strict=True))]
        body = ("\n".join(lines) + "\n").encode()
    elif kind == "binary":
        body = rows.tobytes()
    else:
        plain = b"".join(np.ascontiguousarray(column).tobytes() for column in (*rows["xyz"].T, rows["rgb"], *rows["n"].T))
        packed_bytes = compress_lzf(plain)
        body = struct.pack("<II", len(packed_bytes), len(plain)) + packed_bytes
    path.write_bytes(head.encode() + body)


def compress_lzf(data: bytes) -> bytes:
    """LZF with a reference wherever the next four bytes were seen within 8 KB."""
    out, literal, seen, i = bytearray(), bytearray(), {}, 0

    def flush():
        for at in range(0, len(literal), 32):
            part = literal[at : at + 32]
            out.append(len(part) - 1)
            out.extend(part)
        literal.clear()

    while i < len(data):
        place = seen.get(data[i : i + 4], -(10**9))
        seen[data[i : i + 4]] = i
        if i - place <= 8192 and i + 4 <= len(data):
            length = 4
            while i + length < len(data) and length < 264 and data[place + length] == data[i + length]:
                length += 1
            flush()
            back, code = i - place - 1, length - 2
            out.append((min(code, 7) << 5) | (back >> 8))
            if code >= 7:
                out.append(code - 7)
            out.append(back & 255)
            i += length
        else:
            literal.append(data[i])
            i += 1
    flush()
    return bytes(out)


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("packed", ["F", "U"])
def test_pcd(tmp_path, parts, kind, packed):
    coord, color, normal = parts
    color[:, 0] = np.minimum(color[:, 0], 126)  # beyond, the bits of some colours are no finite float and do not print
    write_pcd(tmp_path / "a.pcd", *parts, kind, packed)
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.coord, coord)
    np.testing.assert_array_equal(cloud.color, color)
    np.testing.assert_array_equal(cloud.normal, normal)


def test_lzf_by_hand():
    # "abc", then 6 bytes from 3 back (which repeats what is being written), then 20 bytes from 1 back
    data = bytes([2]) + b"abc" + bytes([4 << 5, 2]) + bytes([7 << 5, 11, 0])
    assert decompress_lzf(data, 29) == b"abcabcabc" + b"c" * 20
    for bad, size, words in ((data, 28, "promised"), (data[:-1], 29, "within a reference"), (bytes([1 << 5, 0]), 3, "before the first")):
        with pytest.raises(ValueError, match=words):
            decompress_lzf(bad, size)


def test_lzf_gives_back_what_was_packed():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        plain = rng.integers(0, 3, 5000).astype(np.uint8).tobytes() + rng.bytes(500) + bytes(3000)
        assert bytes(decompress_lzf(compress_lzf(plain), len(plain))) == plain


def test_ply_npy_npz_and_folder(tmp_path, parts):
    coord, color, normal = parts
    write_ply(tmp_path / "a.ply", coord, color, normal)
    np.save(tmp_path / "a3.npy", coord.astype(np.float64))
    np.save(tmp_path / "a6.npy", np.hstack([coord, color]))
    np.save(tmp_path / "n6.npy", np.hstack([coord, normal]))
    np.save(tmp_path / "a9.npy", np.hstack([coord, color, normal]))
    rows = np.zeros(len(coord), [("x", "f8"), ("y", "f8"), ("z", "f8"), ("r", "u1"), ("g", "u1"), ("b", "u1")])
    for name, column in zip(rows.dtype.names, [*coord.T, *color.T], strict=True):
        rows[name] = column
    np.save(tmp_path / "s.npy", rows)
    np.savez(tmp_path / "a.npz", points=coord, rgb=color, normals=normal, semantic=np.zeros(len(coord)))
    scene = tmp_path / "scene"
    scene.mkdir()
    for name, values in (("coord", coord), ("color", color), ("normal", normal)):
        np.save(scene / f"{name}.npy", values)
    for name, has_color, has_normal in (
        ("a.ply", 1, 1), ("a3.npy", 0, 0), ("a6.npy", 1, 0), ("n6.npy", 0, 1), ("a9.npy", 1, 1), ("s.npy", 1, 0), ("a.npz", 1, 1), ("scene", 1, 1),
    ):  # fmt: skip
        cloud = read_cloud(tmp_path / name)
        np.testing.assert_array_equal(cloud.coord, coord)
        assert (cloud.color is not None, cloud.normal is not None) == (bool(has_color), bool(has_normal)), name
        if has_color:
            np.testing.assert_array_equal(cloud.color, color)
        if has_normal:
            np.testing.assert_array_equal(cloud.normal, normal)
    assert any("semantic" in note for note in read_cloud(tmp_path / "a.npz").notes)
    assert any("--columns" in note for note in read_cloud(tmp_path / "n6.npy").notes)


def test_las(tmp_path, parts):
    laspy = pytest.importorskip("laspy")
    coord, color, _ = parts
    far = coord.astype(np.float64) + [450_000, 5_400_000, 500]
    for suffix in ("las", "laz"):
        header = laspy.LasHeader(point_format=2, version="1.2")
        header.offsets, header.scales = far.min(axis=0), [1e-4] * 3
        las = laspy.LasData(header)
        las.x, las.y, las.z = far.T
        las.red, las.green, las.blue = color.T.astype(np.uint16) * 257
        las.write(tmp_path / f"a.{suffix}")
        cloud = read_cloud(tmp_path / f"a.{suffix}")
        assert np.abs(cloud.coord - far).max() < 1e-4
        scan = prepare_scan(cloud, needs=("color",))
        assert np.abs(scan.coord - (far - far.min(axis=0))).max() < 2e-4
        np.testing.assert_array_equal(scan.color, color)
        assert any("0..65535" in guess and "--color-range" in guess for guess in scan.guesses)
    data = bytearray((tmp_path / "a.las").read_bytes())
    data[107:111] = struct.pack("<I", 2**31)  # the number of points
    (tmp_path / "bad.las").write_bytes(data)
    with pytest.raises(ValueError, match=r"bad.las: cut short"):
        read_cloud(tmp_path / "bad.las")
    (tmp_path / "noise.laz").write_bytes(b"LASF" + bytes(400))
    with pytest.raises(ValueError, match=r"noise.laz"):
        read_cloud(tmp_path / "noise.laz")


def test_las_without_laspy_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "laspy", None)
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(ImportError, match="pip install"):
        read_cloud(tmp_path / "a.las")


def test_from_memory(parts):
    coord, color, normal = parts
    for points in (torch.from_numpy(np.hstack([coord, color, normal])), {"coord": coord, "color": torch.from_numpy(color), "normal": normal}):
        cloud = as_cloud(points)
        np.testing.assert_array_equal(cloud.color, color)
        np.testing.assert_array_equal(cloud.normal, normal)
    assert as_cloud({"coord": coord, "color": None}).color is None
    with pytest.raises(KeyError, match="did you mean 'cord'"):
        as_cloud({"cord": coord})
    with pytest.raises(ValueError, match=r"\[N, 9\].*got \[\d+, 7\]"):
        as_cloud(np.zeros((5, 7)))
    with pytest.raises(ValueError, match="color has 4 rows where coord has 5"):
        as_cloud({"coord": np.zeros((5, 3)), "color": np.zeros((4, 3))})
    with pytest.raises(ValueError, match="no points"):
        as_cloud(np.zeros((0, 3)))


# hostile files


def test_hostile_files_are_refused_by_name(tmp_path, parts):
    write_pcd(tmp_path / "good.pcd", *parts, "binary")
    head, body = (tmp_path / "good.pcd").read_bytes().split(b"DATA binary\n")
    count = str(len(parts[0])).encode()
    cases = {
        "huge.pcd": head.replace(count, b"9999999999999") + b"DATA binary\n" + body,
        "short.pcd": head + b"DATA binary\n" + body[:-8],
        "packed.pcd": head + b"DATA binary_compressed\n" + struct.pack("<II", 10, 2**32 - 1) + bytes(10),
        "words.pcd": head + b"DATA ascii\n" + b"a " * 7 * len(parts[0]),
        "endless.pcd": b"VERSION 0.7\n" + b"#\n" * 70_000,
        "picture.pcd": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "type.pcd": head.replace(b"TYPE F F F F", b"TYPE F F F Q") + b"DATA binary\n" + body,
        "negative.pcd": head.replace(b"HEIGHT 1", b"HEIGHT -1").replace(b"POINTS " + count, b"POINTS -" + count) + b"DATA binary\n" + body,
    }
    cases["noise.npz"] = bytes(100)
    np.save(tmp_path / "objects.npy", np.array([object()], dtype=object), allow_pickle=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    cases["claims.npy"] = header.getvalue() + bytes(120)
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        archive.writestr("coord.npy", header.getvalue() + bytes(120))
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    for name in [*cases, "objects.npy", "claims.npz"]:
        with pytest.raises(ValueError, match=name):
            read_cloud(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="good.pcd"):
        read_cloud(tmp_path / "goood.pcd")
    (tmp_path / "a.e57").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.e57.*\.ply"):
        read_cloud(tmp_path / "a.e57")


def test_pcd_cut_anywhere_is_an_error_or_complete(tmp_path, parts):
    write_pcd(tmp_path / "a.pcd", *(part[:40] for part in parts), "binary_compressed")
    data = (tmp_path / "a.pcd").read_bytes()
    for end in range(0, len(data) - 1, 97):
        (tmp_path / "cut.pcd").write_bytes(data[:end])
        with pytest.raises(ValueError, match="cut.pcd"):
            read_pcd(tmp_path / "cut.pcd")


# guesses


AXES = {"x": (2, 0, 1), "y": (1, 2, 0), "z": (0, 1, 2)}


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_up_is_found_and_turned_to_z(up):
    """A turned room comes back with its floor at the bottom, and its given normals turn with it."""
    coord, normal = room()
    turn = np.eye(3)[list(AXES[up[-1]])] * (1 if len(up) == 1 else -1)
    if np.linalg.det(turn) < 0:  # a turn, not a mirror
        turn[[a for a in range(3) if abs(turn[a] @ (0, 0, 1)) < 0.5][0]] *= -1
    assert guess_up((coord @ turn.T).astype(np.float32))[0] == up
    scan = prepare_scan(Cloud("a", "test", coord @ turn.T, normal=normal @ turn.T), needs=("normal",))
    np.testing.assert_allclose(scan.coord[:, 2], coord[:, 2], atol=1e-5)
    np.testing.assert_allclose(scan.normal[:, 2], normal[:, 2], atol=1e-5)
    given = prepare_scan(Cloud("a", "test", coord @ turn.T), ScanOptions(up_axis="z"), needs=())
    np.testing.assert_allclose(given.coord, coord @ turn.T, atol=1e-6)


def test_normals_of_length_0_are_those_of_the_turned_scan():
    """The scan lies on its side, y up; a few of its normals are missing."""
    coord, normal = room(0.1)
    lying, turned = coord[:, [0, 2, 1]] * [1, 1, -1], normal[:, [0, 2, 1]] * [1, 1, -1]
    flat = np.flatnonzero((coord[:, 2] == 0) & (np.abs(coord[:, :2] - [1, 1]) < 0.5).all(axis=1))[:10]
    assert len(flat) == 10
    turned[flat] = 0
    scan = prepare_scan(Cloud("a", "test", lying, normal=turned), ScanOptions(up_axis="y"), needs=("normal",))
    np.testing.assert_allclose(scan.normal[flat], np.tile([0, 0, 1], (10, 1)), atol=0.2)
    assert any("10 of length 0 estimated" in guess for guess in scan.guesses)


def test_unit_is_found():
    coord, _ = room()
    for unit, scale in (("m", 1), ("cm", 100), ("mm", 1000)):
        scan = prepare_scan(Cloud("a", "test", coord * scale), needs=())
        np.testing.assert_allclose(scan.coord, coord, rtol=1e-5, atol=1e-5)
        assert any(guess.startswith(f"unit: {unit},") and "--unit" in guess for guess in scan.guesses)
    assert guess_unit(0.03, 150) == "m"  # a building
    assert guess_unit(5, 4000) == "mm"
    feet = prepare_scan(Cloud("a", "test", coord / 0.3048), ScanOptions(unit="ft"), needs=())
    np.testing.assert_allclose(feet.coord, coord, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unit"):
        ScanOptions(unit="furlong")


@pytest.mark.parametrize(("values", "name"), [
    (np.uint8([0, 255]), "0..255"), (np.uint16([0, 300]), "0..65535"), (np.float32([0, 1]), "0..1"),
    (np.float32([-1, 1]), "-1..1"), (np.float64([0, 255]), "0..255"), (np.float64([0, 60000]), "0..65535"),
])  # fmt: skip
def test_color_range(values, name):
    assert guess_color_range(values.dtype, float(values.min()), float(values.max())) == name
    color = np.stack([values] * 3, axis=1)
    coord = np.float32([[0, 0, 0], [1, 1, 1]])
    scan = prepare_scan(Cloud("a", "test", coord, color), needs=("color",))
    full = {"0..1": 255, "-1..1": 127.5, "0..255": 1, "0..65535": 1 / 257}[name]
    np.testing.assert_allclose(scan.color, color * full + (127.5 if name == "-1..1" else 0), rtol=1e-5)
    with pytest.raises(ValueError, match="--color-range"):
        prepare_scan(Cloud("a", "test", coord, color + color.dtype.type(3)), ScanOptions(color_range="0..1"), needs=("color",))


def test_what_a_scan_lacks_is_said():
    coord, _ = room(0.2)
    scan = prepare_scan(Cloud("a", "test", coord))
    assert (scan.color == 127.5).all() and any("--fill-color" in g for g in scan.guesses) and any("--normals" in g for g in scan.guesses)
    with pytest.raises(ValueError, match="--normals estimate"):
        prepare_scan(Cloud("a", "test", coord), ScanOptions(normals="file"))
    bare = prepare_scan(Cloud("a", "test", coord), needs=())
    assert bare.color is None and bare.normal is None


def test_points_that_are_not_finite_are_left_out_and_named():
    coord, normal = room(0.2)
    coord = coord.astype(np.float64)
    coord[[3, 7]] = [[np.nan, 0, 0], [0, np.inf, 0]]
    scan = prepare_scan(Cloud("a", "test", coord, normal=normal), needs=("normal",))
    assert len(scan.coord) == len(coord) - 2 and np.flatnonzero(~scan.valid).tolist() == [3, 7]
    assert any("2 of" in guess and "rows 3, 7" in guess for guess in scan.guesses)
    np.testing.assert_array_equal(scan.normal[3], normal[4])
    with pytest.raises(ValueError, match="not one of its 2 points"):
        prepare_scan(Cloud("a", "test", np.full((2, 3), np.nan)))
    with pytest.raises(ValueError, match="far outliers"):
        prepare_scan(Cloud("a", "test", np.array([[0, 0, 0], [1e7, 0, 0]])), ScanOptions(unit="m"))


# normals and tiles


def test_normals_of_a_room_point_inwards():
    coord, true = room(0.04)
    normal = estimate_normals(coord)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, rtol=1e-5)
    cosine = (normal * true).sum(axis=1)
    wall = (np.abs(coord - [2.5, 2, 1.3]) > [2.49, 1.99, 9]).any(axis=1) & (coord[:, 2] > 1.4)
    floor = coord[:, 2] == 0
    assert (cosine[wall] > 0.9).mean() > 0.95 and (cosine[floor] > 0.9).mean() > 0.95


def test_normals_of_few_points():
    assert estimate_normals(np.zeros((0, 3), np.float32)).shape == (0, 3)
    for cloud in (np.zeros((1, 3)), np.zeros((40, 3)), np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]])):
        normal = estimate_normals(cloud.astype(np.float32))
        assert np.isfinite(normal).all() and np.allclose(np.linalg.norm(normal, axis=1), 1)


def test_normals_where_most_points_stand_at_one_place(monkeypatch):
    """Depth cameras and scanners write their invalid pixels as points at the origin."""
    monkeypatch.setattr("pointcept3m.datasets.normals.BLOCK", 500)
    rng = np.random.default_rng(0)
    floor = np.column_stack([rng.random((800, 2)) * 3, np.ones(800)])
    normal = estimate_normals(np.concatenate([np.zeros((1000, 3)), floor]).astype(np.float32))
    assert np.isfinite(normal).all()
    np.testing.assert_allclose(np.abs(normal[1000:, 2]), 1, atol=1e-5)
    # a middle between two neighbouring numbers is one of the two
    twins = np.repeat(np.float32([1, np.nextafter(np.float32(1), 2)]), [600, 400])
    cloud = np.column_stack([twins, np.zeros((1000, 2))]).astype(np.float32)
    assert sorted(len(tile.rows) for tile in cut_tiles(cloud, np.ones(1000), 500, 0.0)) == [400, 600]


def test_tiles_cover_every_point_once_and_its_surroundings():
    rng = np.random.default_rng(0)
    coord = (rng.random((20_000, 3)) * [30, 12, 3]).astype(np.float32)
    cost = (rng.random(len(coord)) < 0.4).astype(np.uint8)
    tiles = cut_tiles(coord, cost, 1500, 0.7)
    owner = np.zeros(len(coord), int)
    assert len(tiles) > 5
    for tile in tiles:
        assert cost[tile.rows].sum() <= 1500 and (np.diff(tile.rows) > 0).all()
        core = tile.in_core(coord)
        owner += core
        low, high = coord[core].min(axis=0) - 0.7 + 1e-5, coord[core].max(axis=0) + 0.7 - 1e-5
        near = np.flatnonzero(((coord >= low) & (coord < high)).all(axis=1))
        assert np.isin(near, tile.rows).all()
        weight = tile.weight(coord[tile.rows])
        assert (weight > 0).all() and weight.max() <= 1
    assert (owner == 1).all()
    assert len(cut_tiles(coord, cost, 1e9, 0.7)) == 1
    with pytest.raises(ValueError, match="--max-points"):
        cut_tiles(coord, cost, 10, 0.7)
    doubles = np.repeat(coord[:10], 100, axis=0)  # with nothing between them a cut is still found
    assert sum(len(tile.rows) for tile in cut_tiles(doubles, np.ones(1000, np.uint8), 100, 0.0)) == 1000


def test_the_weight_falls_to_the_border_of_a_tile():
    coord = np.stack([np.linspace(0, 10, 1001), np.zeros(1001), np.zeros(1001)], axis=1)
    left, right = cut_tiles(coord, np.ones(1001, np.uint8), 700, 1.0)
    cut = left.high[0]
    inside, middle, border = (np.array([[cut + d, 0, 0]]) for d in (-1.0, 0.0, 0.999))
    assert left.weight(inside) == 1 and left.weight(middle) == pytest.approx(0.5) and left.weight(border) < 0.002
    both = np.abs(coord[:, 0] - cut) < 1
    np.testing.assert_allclose(left.weight(coord[both]) + right.weight(coord[both]), 1, atol=2e-3)
