"""Pictures of clouds: known pixels, what hides what, rooms opened like doll's houses; sheets of panels."""

import numpy as np
import pytest

from pointcept3m.engines.visualize import cloud_picture, sheet
from pointcept3m.engines.visualize.cloud_picture import Camera, Picture, looking
from pointcept3m.utils import palette


def draw_cloud(coord, color, camera, **settings):
    return Picture(coord, camera, **settings).draw(color)


STRAIGHT = Camera(np.eye(3), np.zeros(3), focal=100.0, center=(20.0, 15.0), size=(30, 40))


def test_known_points_have_known_pixels():
    coord = np.array([[0.1, 0.0, 2.0], [-0.2, 0.1, 2.0], [0.0, 0.0, -1.0]])  # the last is behind the camera
    color = np.array([[200, 10, 20], [10, 200, 20], [0, 0, 0]])
    image = draw_cloud(coord, color, STRAIGHT, point_size=0.06, shade=0, oversample=1)
    assert image.shape == (30, 40, 3)
    # x = 100 * 0.1 / 2 + 20 = 25, y = 15; a disc of 3 pixels across around it
    assert image[15, 25].tolist() == [200, 10, 20] and image[20, 10].tolist() == [10, 200, 20]
    inside = (image != 255).any(axis=2)
    assert 8 <= inside.sum() <= 18 and not inside[:, 28:].any() and not inside[:10].any()


def test_nearer_points_hide_farther_ones():
    side = np.linspace(-0.3, 0.3, 60)
    plane = np.stack([*np.meshgrid(side, side), np.zeros((60, 60))], axis=-1).reshape(-1, 3)
    near, far = plane * 0.4 + [0, 0, 2], plane * 3 + [0, 0, 3]
    for coord, order in ((np.concatenate([near, far]), 1), (np.concatenate([far, near]), -1)):
        color = np.repeat([[255, 0, 0], [0, 0, 255]][::order], len(plane), axis=0)
        image = draw_cloud(coord, color, STRAIGHT, point_size=0.05, shade=0)
        assert image[15, 20].tolist() == [255, 0, 0] and image[2, 2].tolist() == [0, 0, 255]
        # the near square is 100 * 0.24 / 2 = 12 pixels wide, and the disc of 2.5 pixels at its rim
        red = (image == [255, 0, 0]).all(axis=2)
        assert 144 <= red.sum() <= 17**2


def test_gaps_are_filled_and_edges_stay():
    column, row = np.meshgrid(np.arange(5, 35), np.arange(5, 25))  # a point in each of these pixels
    plane = np.stack([(column - 19.5) / 50, (row - 14.5) / 50, np.full(column.shape, 2.0)], axis=-1).reshape(-1, 3)
    holed = plane[np.random.default_rng(0).random(len(plane)) > 0.3]
    owner, depth = cloud_picture.nearest_points(holed, STRAIGHT, 0.001)
    assert (owner >= 0).sum() == len(holed)
    filled, _ = cloud_picture.fill_gaps(owner, depth, rounds=8)
    inside = np.zeros_like(owner, bool)
    inside[6:24, 6:34] = True
    assert (owner[inside] < 0).mean() > 0.2 and (filled[inside] < 0).mean() < 0.01
    inside[5:25, 5:35] = True
    assert (filled[~inside] < 0).all()
    lonely = np.full((9, 9), -1)
    lonely[4, :5] = 0
    assert np.array_equal(cloud_picture.fill_gaps(lonely, np.where(lonely < 0, np.inf, 1.0), 5)[0], lonely)


def test_shading_darkens_edges_only():
    far = np.stack([*np.meshgrid(np.linspace(-1, 1, 150), np.linspace(-1, 1, 150)), np.full((150, 150), 3.0)], axis=-1).reshape(-1, 3)
    near = far[np.abs(far[:, :2]).max(axis=1) < 0.2] - [0, 0, 1]
    coord = np.concatenate([far, near])
    image = draw_cloud(coord, np.full((len(coord), 3), 200), STRAIGHT, point_size=0.05, oversample=1)
    assert (image[:5, :5] == 200).all() and (image[15, 20] == 200).all()
    assert image.min() < 180


@pytest.mark.parametrize("view", cloud_picture.VIEWS)
def test_every_point_is_inside_the_picture_and_fills_it(view):
    coord = np.random.default_rng(0).random((2000, 3)) * [5, 3, 2.4] + [10, -4, 1]
    camera = looking(view, coord, (300, 400))
    pixel, depth = camera.project(coord)
    assert (depth > 0).all() and (pixel > 0).all() and (pixel < [400, 300]).all()
    assert (np.ptp(pixel, axis=0) / [400, 300]).max() > 0.9
    assert np.allclose(camera.rotation @ camera.rotation.T, np.eye(3)) and np.linalg.det(camera.rotation) == pytest.approx(1)
    up = camera.project(np.array([[12.5, -2.5, 2.0], [12.5, -2.5, 1.5]]))[0]
    assert view == "top" or up[0, 1] < up[1, 1]  # what is higher is higher in the picture


def room(step=0.05):
    """A box of 4 x 3 x 2.5 m seen from inside, with a table: coord, inward normals."""
    x, y, z = np.arange(0, 4, step), np.arange(0, 3, step), np.arange(0, 2.5, step)
    faces = []
    for first, second, place, normal in (
        (x, y, lambda a, b: (a, b, 0 * a), (0, 0, 1)), (x, y, lambda a, b: (a, b, 0 * a + 2.5), (0, 0, -1)),
        (x, z, lambda a, b: (a, 0 * a, b), (0, 1, 0)), (x, z, lambda a, b: (a, 0 * a + 3, b), (0, -1, 0)),
        (y, z, lambda a, b: (0 * a, a, b), (1, 0, 0)), (y, z, lambda a, b: (0 * a + 4, a, b), (-1, 0, 0)),
        (x[(x > 1) & (x < 2.5)], y[(y > 1) & (y < 2)], lambda a, b: (a, b, 0 * a + 0.75), (0, 0, 1)),
    ):  # fmt: skip
        points = np.stack(place(*np.meshgrid(first, second)), axis=-1).reshape(-1, 3)
        faces.append((points, np.broadcast_to(normal, points.shape)))
    return tuple(np.concatenate(part).astype(np.float32) for part in zip(*faces, strict=True))


def test_a_room_is_opened_like_a_dolls_house():
    coord, normal = room()
    shown = cloud_picture.choose_points(coord)
    assert not shown[coord[:, 2] == 2.5].any() and shown[coord[:, 2] < 2.2].all()
    assert cloud_picture.choose_points(coord, "keep").all()
    assert coord[cloud_picture.choose_points(coord, 1.0)][:, 2].max() <= 1.01
    open_top = coord[:, 2] < 2.4  # without a ceiling nothing is cut, the table is none
    assert cloud_picture.choose_points(coord[open_top]).all()
    camera = looking("iso", coord, azimuth=-60.0)  # stands at -y and +x
    facing = cloud_picture.facing(coord, normal, camera)
    inner = (coord[:, 2] > 0.3) & (coord[:, 2] < 2.2) & (coord[:, 0] > 0.3) & (coord[:, 0] < 3.7)
    assert facing[inner & (coord[:, 1] == 3)].all() and not facing[inner & (coord[:, 1] == 0)].any()
    table = (coord[:, 2] == 0.75) & (normal[:, 2] == 1)
    assert table.sum() > 100 and facing[table].all() and cloud_picture.facing(coord, None, camera).all()
    # estimated normals may be upside down: furniture stays, walls go
    upside_down = np.where(table[:, None], -normal, normal)
    assert not cloud_picture.facing(coord, upside_down, camera)[table].any()
    trusting = cloud_picture.facing(coord, upside_down, camera, estimated=True)
    assert trusting[table].all() and not trusting[inner & (coord[:, 1] == 0)].any()


@pytest.mark.parametrize("turn", [0.0, 25.0, 70.0])
def test_plan_angle_is_that_of_the_longer_side(turn):
    coord, _ = room()
    angle = np.deg2rad(turn)
    turned = coord @ np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert cloud_picture.plan_angle(turned) == pytest.approx(turn, abs=1.5)


def test_picture_refuses_other_shapes_and_takes_one_point():
    with pytest.raises(ValueError, match="colours"):
        Picture(np.zeros((4, 3)), STRAIGHT).draw(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="no point"):
        looking("iso", np.zeros((0, 3)))
    with pytest.raises(ValueError, match="not finite"):
        looking("iso", np.full((2, 3), np.nan))
    one = np.array([[3.0, 4.0, 5.0]])
    image = draw_cloud(one, np.array([[9, 9, 9]]), looking("iso", one, (60, 80)), shade=0)
    assert (image == 9).all(axis=2).any()


def test_sheet_places_panels_and_legends():
    panel = np.full((40, 60, 3), 77, np.uint8)
    classes = sheet.ClassLegend("classes", ["wall", "floor"], np.array([[1, 200, 3], [4, 5, 206]]))
    image = sheet.compose(["one", "two"], [("a", [panel, panel]), ("b", [panel, panel])], [classes, sheet.ScaleLegend("cosine", 0, 1)])
    assert 0 <= (image == 77).all(axis=2).sum() - 4 * 40 * 60 < 20  # smooth letters have all greys
    assert (image == [1, 200, 3]).all(axis=2).any() and (image == [4, 5, 206]).all(axis=2).any()
    assert all((image == end).all(axis=2).any() for end in palette.score_colors(np.array([0.0, 1.0])))
    with pytest.raises(ValueError, match="pictures for"):
        sheet.compose(["one"], [("a", [panel, panel])])
    white = np.full((30, 30, 3), 255, np.uint8)
    spot = white.copy()
    spot[10, 12] = 0
    assert [i.shape for i in sheet.crop_together([white, spot], margin=2)] == [(5, 5, 3)] * 2
    crossed = sheet.draw_cross(np.full((60, 60, 3), 255, np.uint8), 20, 30)
    assert crossed[30, 20].tolist() == [230, 0, 0] and (crossed[:, 40:] == 255).all()
