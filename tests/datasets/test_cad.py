"""CAD models: meshes from files, points on their surfaces."""

import sys

import numpy as np
import pytest

from pointcept3m.datasets.cad import read_mesh, sample_surface

VERTICES = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3], [10, 0, 3], [0, 10, 3]], dtype=float)
FACES = np.array([[0, 1, 2], [3, 4, 5]])  # areas 0.5 and 50
OBJ = "v 0 0 0\nv 2 0 0\nv 2 1 0\nv 0 1 0\n"


def test_points_are_uniform_over_the_area():
    points = sample_surface(VERTICES, FACES, 20000, np.random.default_rng(0))
    assert points.shape == (20000, 3) and points.dtype == np.float32
    small = points[:, 2] < 1
    assert np.isclose(small.mean(), 0.5 / 50.5, atol=0.003)
    large = points[~small]
    assert (large[:, :2] >= 0).all() and (large[:, :2].sum(axis=1) <= 10 + 1e-4).all() and (large[:, 2] == 3).all()
    np.testing.assert_allclose(large[:, :2].mean(axis=0), 10 / 3, atol=0.1)  # the triangle's middle
    np.testing.assert_allclose((large[:, :2] ** 2).mean(axis=0), 100 / 6, rtol=0.03)  # second moment of a right triangle
    np.testing.assert_array_equal(points, sample_surface(VERTICES, FACES, 20000, np.random.default_rng(0)))


def test_triangles_without_area_get_no_point():
    faces = np.array([[0, 0, 1], [0, 1, 2], [2, 2, 2]])
    points = sample_surface(VERTICES, faces, 500, np.random.default_rng(0))
    assert (points[:, 2] == 0).all() and (points[:, :2].sum(axis=1) <= 1 + 1e-6).all() and points[:, 1].max() > 0.5


@pytest.mark.parametrize("faces", [np.zeros((0, 3), int), np.array([[0, 0, 1]])])
def test_a_mesh_without_area_is_refused(faces):
    with pytest.raises(ValueError, match="has no area to take points from"):
        sample_surface(VERTICES, faces, 5, np.random.default_rng(0))


def test_files_in_their_own_axes(tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "quad.obj").write_text(OBJ + "f 1 2 3\nf 1 3 4\n")
    vertices, faces = read_mesh(tmp_path / "quad.obj")
    assert len(faces) == 2 and vertices.dtype == np.float64 and faces.dtype == np.int64
    corner = vertices[faces]
    assert np.isclose(np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1).sum() / 2, 2.0)
    import trimesh

    scene = trimesh.Scene([trimesh.creation.box((1, 2, 3)), trimesh.creation.box((1, 1, 1), trimesh.transformations.translation_matrix((5, 0, 0)))])
    scene.export(tmp_path / "parts.glb")
    vertices, _ = read_mesh(tmp_path / "parts.glb")
    np.testing.assert_allclose([vertices.min(axis=0), vertices.max(axis=0)], [[-0.5, -1, -1.5], [5.5, 1, 1.5]])  # both parts, where they are


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("chair.obj", None, FileNotFoundError, r"chair\.obj: no such mesh"),
        ("chair.txt", "", ValueError, r"chair\.txt: wanted a mesh \(\.obj, .*got \.txt"),
        ("chair", "", ValueError, "got no ending"),
        ("chair.obj", OBJ, ValueError, "a mesh without faces has no surface"),
        ("chair.ply", "ply\nformat", ValueError, "not a readable mesh"),
        ("chair.obj", "v nan 0 0\n" + OBJ + "f 1 2 3\n", ValueError, "1 of [0-9]+ vertices are not finite"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, error, message):
    pytest.importorskip("trimesh")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        read_mesh(tmp_path / name)


def test_without_trimesh_the_command_that_brings_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "chair.obj").write_text(OBJ + "f 1 2 3\n")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match="pip install trimesh"):
        read_mesh(tmp_path / "chair.obj")
