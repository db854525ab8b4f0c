"""PLY files: what is written comes back, other people's variants are read, damaged files are refused by name."""

import numpy as np
import plyfile
import pytest

from pointcept3m.datasets.readers import read_ply, write_ply


@pytest.fixture
def mesh():
    rng = np.random.default_rng(0)
    coord = rng.normal(size=(50, 3)).astype(np.float32)
    color = rng.integers(0, 256, (50, 3)).astype(np.uint8)
    return coord, color, rng.integers(0, 50, (80, 3))


def test_round_trip_keeps_everything(tmp_path, mesh):
    coord, color, faces = mesh
    label = np.arange(50, dtype=np.int64)
    write_ply(tmp_path / "a.ply", coord, color, normal=coord * 2, faces=faces, label=label, score=coord[:, 0])
    ply = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(ply.coord, coord)
    np.testing.assert_array_equal(ply.color, color)
    np.testing.assert_array_equal(ply.normal, coord * 2)
    np.testing.assert_array_equal(ply.faces, faces)
    np.testing.assert_array_equal(ply.vertex["label"], label)
    np.testing.assert_array_equal(ply.vertex["score"], coord[:, 0])


def test_plyfile_reads_what_we_write(tmp_path, mesh):
    coord, color, faces = mesh
    write_ply(tmp_path / "a.ply", coord, color, faces=faces)
    peer = plyfile.PlyData.read(str(tmp_path / "a.ply"))
    np.testing.assert_array_equal(peer["vertex"]["y"], coord[:, 1])
    np.testing.assert_array_equal(peer["vertex"]["blue"], color[:, 2])
    np.testing.assert_array_equal(np.stack(list(peer["face"]["vertex_indices"])), faces)


@pytest.mark.parametrize("text", [True, False])
def test_polygons_become_fans(tmp_path, text):
    vertex = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
    face = np.empty(2, dtype=[("vertex_index", object), ("category_id", "i4")])
    face["vertex_index"] = [np.array([0, 1, 2, 3], np.int32), np.array([1, 2, 3], np.int32)]
    face["category_id"] = 7, -1
    elements = [plyfile.PlyElement.describe(vertex, "vertex"), plyfile.PlyElement.describe(face, "face")]
    plyfile.PlyData(elements, text=text).write(str(tmp_path / "a.ply"))
    ply = read_ply(tmp_path / "a.ply")
    assert ply.faces.tolist() == [[0, 1, 2], [0, 2, 3], [1, 2, 3]]
    assert {name: values.tolist() for name, values in ply.face.items()} == {"category_id": [7, 7, -1]}
    assert ply.coord.shape == (4, 3)


def test_missing_property_lists_what_the_file_has(tmp_path, mesh):
    write_ply(tmp_path / "a.ply", mesh[0], label=np.zeros(50, np.uint8))
    ply = read_ply(tmp_path / "a.ply")
    with pytest.raises(KeyError, match="a.ply: has no vertex property red, green, blue; it has x, y, z, label"):
        _ = ply.color


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_file_cut_short_is_refused(tmp_path, mesh, share):
    write_ply(tmp_path / "a.ply", mesh[0], mesh[1], faces=mesh[2])
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "b.ply").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="b.ply"):
        read_ply(tmp_path / "b.ply")


def test_huge_count_is_refused_before_allocation(tmp_path, mesh):
    write_ply(tmp_path / "a.ply", mesh[0])
    data = (tmp_path / "a.ply").read_bytes().replace(b"element vertex 50", b"element vertex 99999999999")
    (tmp_path / "b.ply").write_bytes(data)
    with pytest.raises(ValueError, match="cut short.*99999999999"):
        read_ply(tmp_path / "b.ply")


def test_faces_that_name_no_vertex_are_refused(tmp_path, mesh):
    write_ply(tmp_path / "a.ply", mesh[0], faces=mesh[2] + 20)
    with pytest.raises(ValueError, match="faces name vertices .* the file has 50"):
        read_ply(tmp_path / "a.ply")


def test_errors_name_the_thing(tmp_path, mesh):
    with pytest.raises(FileNotFoundError, match="nowhere.ply"):
        read_ply(tmp_path / "nowhere.ply")
    (tmp_path / "c.ply").write_bytes(b"not a ply file")
    with pytest.raises(ValueError, match="is no PLY file"):
        read_ply(tmp_path / "c.ply")
    with pytest.raises(ValueError, match="label: wanted 50 values"):
        write_ply(tmp_path / "d.ply", mesh[0], label=np.zeros(3))
    with pytest.raises(ValueError, match="do not fit 32 bits"):
        write_ply(tmp_path / "d.ply", mesh[0], label=np.full(50, 2**40))
    with pytest.raises(ValueError, match=r"coord: wanted shape \[N, 3\]"):
        write_ply(tmp_path / "d.ply", np.zeros((4, 2)))
