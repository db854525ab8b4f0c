"""Masks of objects: rays against a labelled mesh."""

import sys

import numpy as np
import pytest

from pointcept3m.datasets.object_masks import LabelledMesh, View

SIZE = (30, 40)
INTRINSIC = np.array([[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]])


def square(z, half, cells=8):
    """A square grid across the camera's axis at depth z: (vertices, faces)."""
    x, y = np.meshgrid(np.linspace(-half, half, cells + 1), np.linspace(-half, half, cells + 1))
    vertices = np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=1)
    corner = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    faces = np.concatenate([np.stack([corner, corner + 1, corner + cells + 1], 1), np.stack([corner + 1, corner + cells + 2, corner + cells + 1], 1)])
    return vertices, faces


def two_squares():
    """A small square (id 7) before a large one (id 3)."""
    (near, near_faces), (far, far_faces) = square(2.0, 0.5), square(4.0, 3.0)
    vertices, faces = np.concatenate([near, far]), np.concatenate([near_faces, far_faces + len(near)])
    return vertices, faces, np.repeat([7, 3], [len(near), len(far)])


def pose_of(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = q * np.sign(np.linalg.det(q)), rng.normal(size=3)
    return pose


def expected():
    """Pixels whose centre's ray meets the near square: |x| < 0.5 at z = 2."""
    x = np.abs((np.arange(40) + 0.5 - 20) / 40 * 2) < 0.5
    y = np.abs((np.arange(30) + 0.5 - 15) / 40 * 2) < 0.5
    return np.where(y[:, None] & x, 7, 3)


def test_the_first_surface_along_a_ray_wins_from_any_pose():
    vertices, faces, ids = two_squares()
    pose = pose_of(np.random.default_rng(0))
    world = vertices @ pose[:3, :3].T + pose[:3, 3]
    found, depth = LabelledMesh(world, faces, ids).look(View(INTRINSIC, pose, SIZE))
    assert np.array_equal(found, expected())
    assert np.allclose(depth, np.where(expected() == 7, 2, 4), atol=1e-4)


def test_a_pixel_takes_the_id_of_the_corner_nearest_to_the_hit():
    vertices = np.array([[-3.0, -3, 2], [3, -3, 2], [-3, 3, 2], [3, 3, 2]])
    found, _ = LabelledMesh(vertices, [[0, 1, 2], [1, 3, 2]], [1, 2, 3, 4]).look(View(INTRINSIC, np.eye(4), SIZE))
    quarters = np.where(np.arange(30)[:, None] < 15, np.where(np.arange(40) < 20, 1, 2), np.where(np.arange(40) < 20, 3, 4))
    # along the shared edge a corner is nearer that the hit triangle does not have: there, and only there, it may differ
    assert (found == quarters).mean() > 0.75 and set(np.unique(found)) == {1, 2, 3, 4}
    by_face, _ = LabelledMesh(vertices, [[0, 1, 2], [1, 3, 2]], face_id=[10, 20]).look(View(INTRINSIC, np.eye(4), SIZE))
    assert set(np.unique(by_face)) == {10, 20} and (by_face[0, 0], by_face[-1, -1]) == (10, 20)


def test_nothing_in_view_is_minus_one_and_faces_without_area_do_not_shift_the_others():
    vertices, faces, ids = two_squares()
    back = np.diag([-1.0, 1, -1, 1])
    found, depth = LabelledMesh(vertices, faces, ids).look(View(INTRINSIC, back, SIZE))
    assert (found == -1).all() and (depth == 0).all()
    vertices = np.concatenate([[[np.nan, 0, 1]], vertices])
    faces = np.concatenate([[[1, 1, 1], [0, 1, 2]], faces + 1])
    found, _ = LabelledMesh(vertices, faces, np.concatenate([[99], ids])).look(View(INTRINSIC, np.eye(4), SIZE))
    assert np.array_equal(found, expected())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((np.zeros((3, 3)), [[0, 1, 2]], [0, 0, 0]), "none of 1 faces has an area"),
        ((np.eye(3), [[0, 1, 3]], [0, 0, 0]), "faces name vertices 0 to 3, there are 3"),
        ((np.eye(3), [[0, 1, 2]], [0, 0]), "wanted 3 whole numbers as vertex_id"),
        ((np.eye(3), np.zeros((0, 3), int), [0, 0, 0]), "none of 0 faces"),
    ],
)
def test_errors_say_what_is_wrong(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        LabelledMesh(*arguments)


def test_without_embreex_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "embreex.mesh_construction", None)
    with pytest.raises(ImportError, match="pip install embreex"):
        LabelledMesh(np.eye(3), [[0, 1, 2]], [0, 0, 0])
