"""Cameras: scaling, projection, affine worlds, registration of colour to depth."""

import numpy as np
import pytest

from pointcept3m.structures import camera

K = np.array([[500.0, 0, 320], [0, 480, 240], [0, 0, 1]])


def some_pose(rng: np.random.Generator) -> np.ndarray:
    pose = np.eye(4)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    pose[:3, 3] = rng.normal(size=3)
    return pose


def test_project_by_hand():
    pixel, depth = camera.project([[1.0, -0.5, 2.0], [0, 0, -1]], K, np.eye(4))
    np.testing.assert_allclose(pixel[0], [320 + 500 * 0.5, 240 - 480 * 0.25])
    np.testing.assert_allclose(depth, [2, -1])
    assert np.isnan(pixel[1]).all()


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 5])
def test_a_turned_view_shows_every_point_where_the_turned_picture_has_it(quarters):
    rng = np.random.default_rng(quarters)
    pose, size = some_pose(rng), (480, 640)
    shown = rng.integers(0, 200, size)
    depth = rng.uniform(1, 3, 40)
    row, column = rng.integers(0, size[0], 40), rng.integers(0, size[1], 40)
    coord = camera.transform_coord(camera.pixel_rays(size, K)[row, column] * depth[:, None], pose)
    intrinsic, turned, back = camera.turn_view(K, size, pose, quarters)
    picture = np.rot90(shown, -quarters)
    pixel, z = camera.project(coord, intrinsic, camera.invert_pose(back))
    assert turned == picture.shape and np.linalg.det(back[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(z, depth)
    np.testing.assert_allclose(pixel % 1, 0.5, atol=1e-6)
    assert np.array_equal(picture[pixel[:, 1].astype(int), pixel[:, 0].astype(int)], shown[row, column])


def test_most_pictures_decide_what_is_upright():
    level = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # looks along +y of a world whose z is up
    sideways = camera.turn_view(K, (480, 640), level, 3)[2]  # one quarter clockwise brings it back
    down = np.diag([1.0, -1, -1, 1])
    assert camera.upright_quarters([level]) == 0 and camera.upright_quarters([sideways, sideways, level]) == 1
    assert camera.upright_quarters([down] * 5 + [sideways]) == 1 and camera.upright_quarters(np.zeros((0, 4, 4))) == 0


def test_unproject_inverts_project_at_pixel_centres():
    rng = np.random.default_rng(0)
    pose = some_pose(rng)
    depth = rng.uniform(1, 4, (6, 8))
    small = camera.scale_intrinsic(K, (480, 640), (6, 8))
    coord = camera.unproject(depth, small, pose)
    pixel, z = camera.project(coord.reshape(-1, 3), small, camera.invert_pose(pose))
    v, u = np.mgrid[:6, :8] + 0.5
    np.testing.assert_allclose(pixel, np.column_stack([u.ravel(), v.ravel()]), atol=1e-9)
    np.testing.assert_allclose(z, depth.ravel())


def test_scaled_intrinsic_sees_the_same_corners():
    scaled = camera.scale_intrinsic(K, (480, 640), (120, 320))
    corner = np.array([[640.0, 480.0, 1.0]]) @ np.linalg.inv(K).T
    np.testing.assert_allclose(corner @ scaled.T, [[320, 120, 1]])
    np.testing.assert_allclose(camera.scale_intrinsic(np.diag([2.0, 2, 1, 1]), (4, 4), (8, 8)), np.diag([4, 4, 1]))


def test_affine_world_keeps_pixels_and_depth():
    rng = np.random.default_rng(1)
    extrinsic = camera.invert_pose(some_pose(rng))
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([0.7, -1.3, 2.0]) @ some_pose(rng)[:3, :3]
    matrix[:3, 3] = [3, -2, 1]
    coord = rng.normal(size=(50, 3))
    before = camera.transform_coord(coord, extrinsic)
    after = camera.transform_coord(
        camera.transform_coord(coord, matrix), camera.apply_affine_to_extrinsic(extrinsic, matrix)
    )
    np.testing.assert_allclose(after, before, atol=1e-12)


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_affine_that_cannot_be_inverted(matrix):
    with pytest.raises(ValueError, match="finite and invertible"):
        camera.apply_affine_to_extrinsic(np.eye(4), matrix)


def linear_image(height: int, width: int) -> np.ndarray:
    """A picture whose value is linear in the pixel centre, so that every interpolation of it is known."""
    v, u = np.mgrid[:height, :width] + 0.5
    return np.stack([u / width * 250, v / height * 250, np.full_like(u, 100)], axis=-1)


@pytest.mark.parametrize("size", [(48, 64), (24, 32), (30, 50), (16, 16)])
def test_register_color_reads_the_exact_place(size):
    color_intrinsic = np.array([[100.0, 0, 66], [0, 90, 47], [0, 0, 1]])
    target = camera.scale_intrinsic([[55, 0, 31.0], [0, 50, 25], [0, 0, 1]], (48, 64), size)
    image = linear_image(96, 128)
    result = camera.register_color(image, color_intrinsic, target, size) * 255
    rays = camera.pixel_rays(size, target)
    place = rays @ color_intrinsic.T
    inside = (np.abs(place[..., 0] / 128 - 0.5) < 0.45) & (np.abs(place[..., 1] / 96 - 0.5) < 0.45)
    assert inside.sum() > 50
    wanted = np.stack([place[..., 0] / 128 * 250, place[..., 1] / 96 * 250], axis=-1)
    np.testing.assert_allclose(result[inside][:, :2], wanted[inside], atol=1e-3)
    np.testing.assert_allclose(result[..., 2], 100, atol=1e-4)


def test_register_color_identity_and_skew():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(camera.register_color(image, K, K, (5, 7)), image.astype(np.float32) / 255)
    skewed = K.copy()
    skewed[0, 1] = 3
    with pytest.raises(ValueError, match="skew"):
        camera.register_color(image, skewed, K, (5, 7))


def test_resize_nearest_reads_pixel_centres():
    image = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(camera.resize_nearest(image, (3, 2)), image[:, [1, 3]])
    np.testing.assert_array_equal(camera.resize_nearest(image, (6, 8)), image.repeat(2, 0).repeat(2, 1))
    assert camera.resize_nearest(image, (3, 4)) is image
