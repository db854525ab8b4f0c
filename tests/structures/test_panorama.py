"""Panoramas: views show what a camera that looks there would, and geometry fits."""

import numpy as np
import pytest

from pointcept3m.structures.camera import pixel_rays
from pointcept3m.structures.panorama import is_panorama, look, perspectives, view_intrinsic, view_rotation


def directions(height=90, width=180):
    """A panorama whose colours are its rays: x right, y down, z to the middle, 0..255 for -1..1."""
    u = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    v = ((np.arange(height) + 0.5) / height - 0.5) * np.pi
    u, v = np.meshgrid(u, v)
    ray = np.stack([np.cos(v) * np.sin(u), np.sin(v), np.cos(v) * np.cos(u)], axis=-1)
    return np.rint((ray + 1) * 127.5).astype(np.uint8), ray


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (90, 0), (200, 30), (-45, -60), (0, 90)])
def test_a_view_shows_the_rays_of_its_camera(yaw, pitch):
    image, _ = directions()
    size, rotation = (24, 32), view_rotation(yaw, pitch)
    intrinsic = view_intrinsic(70, size)
    ray = pixel_rays(size, intrinsic) @ rotation.T
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    np.testing.assert_allclose(look(image, rotation, intrinsic, size) / 127.5 - 1, ray, atol=0.03)
    assert np.isclose(np.linalg.det(rotation), 1) and np.allclose(rotation @ rotation.T, np.eye(3))
    assert np.isclose(2 * np.degrees(np.arctan(16 / intrinsic[0, 0])), 70)


def test_views_go_round_to_the_right_from_the_middle():
    image, _ = directions()
    views = perspectives(image, count=4, fov=60, size=(9, 9))
    middles = np.array([view[4, 4] for view in views]) / 127.5 - 1
    np.testing.assert_allclose(middles, [[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]], atol=0.03)
    above = perspectives(image, count=1, fov=60, size=(9, 9), pitch=90)[0][4, 4] / 127.5 - 1
    np.testing.assert_allclose(above, [0, -1, 0], atol=0.03)


def test_one_channel_is_read_at_the_nearest_pixel_over_the_seam():
    ids = np.repeat(np.arange(180)[None] // 10, 90, axis=0).astype(np.uint16)
    found = look(ids, view_rotation(180), view_intrinsic(60, (5, 31)), (5, 31))
    assert found.dtype == np.uint16 and set(np.unique(found)) == {16, 17, 0, 1} and found[2, 0] == 16 and found[2, -1] == 1


def test_what_is_no_panorama_is_said(tmp_path):
    image, _ = directions()
    assert is_panorama(image) and not is_panorama(image[:, :100]) and not is_panorama(np.tile(np.linspace(0, 255, 180).astype(np.uint8)[None, :, None], (90, 1, 3)))
    fine = np.random.default_rng(0).integers(0, 60, (90, 180, 3)) + (60 * np.sin(np.linspace(0, 2 * np.pi, 180, endpoint=False)) + 100)[None, :, None]
    assert is_panorama(fine.astype(np.uint8))  # a parquet differs from column to column, across the seam as elsewhere
    with pytest.raises(ValueError, match="twice as wide as high, got 100 x 90"):
        perspectives(image[:, :100])
    with pytest.raises(ValueError, match="1 to 170 degrees, got count=8, fov=180"):
        perspectives(image, fov=180)
