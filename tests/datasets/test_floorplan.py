"""Floorplans: where things are drawn, how they look, and what cannot be drawn."""

import numpy as np
import pytest

from pointcept3m.datasets import floorplan as module
from pointcept3m.datasets.floorplan import render_floorplan
from pointcept3m.datasets.rooms.geometry import Shape

SQUARE = np.array([[[0, 0], [4, 0]], [[4, 0], [4, 3]], [[4, 3], [0, 3]], [[0, 3], [0, 0]]], dtype=float)


def box(low, high):
    shape = Shape()
    shape.box(low, high, "top")
    return np.concatenate(shape.vertices), np.concatenate(shape.faces)


def grey(plan, points):
    column, row = np.floor(plan.pixel(np.array(points, dtype=float))).astype(int).T
    return plan.image[row, column].mean(axis=1)


def test_every_part_is_drawn_where_pixel_says():
    plan = render_floorplan(SQUARE, [box((1, 1, 0), (2, 1.5, 0.7))], doors=np.array([[[1, 0], [2, 0]]]), windows=np.array([[[4, 1], [4, 2]]]))
    assert plan.metres_per_pixel == 0.02 and plan.image.dtype == np.uint8
    np.testing.assert_allclose(np.array(plan.image.shape[:2]) * 0.02, [3.5, 4.5], atol=0.021)
    np.testing.assert_allclose(plan.pixel(np.array([[-0.25, 3.25]])), 0, atol=1.01)  # the margin's corner, rounded up to a pixel
    assert (grey(plan, [[3, 0], [0, 1.5], [2, 3], [4, 0.5]]) < 60).all()  # walls
    assert (grey(plan, [[3, 2.5], [0.5, 0.5], [-0.2, -0.2], [2.2, 1.2]]) == 255).all()  # paper
    assert grey(plan, [[1.5, 0]])[0] > 250  # the door's opening
    assert grey(plan, [[1, 0.5]])[0] < 100 and grey(plan, [[1.5, 0.5]])[0] == 255  # its leaf stands open, at a right angle
    red, green, blue = plan.image[tuple(np.floor(plan.pixel(np.array([[4, 1.5]]))[0][::-1]).astype(int))].astype(int)
    assert blue > red + 30 and blue > green  # glass
    assert 150 < grey(plan, [[1.5, 1.25]])[0] < 245  # furniture is shaded
    assert grey(plan, [[1.5, 1.008]])[0] < 150  # and has an outline
    assert len(np.unique(plan.image)) > 8  # edges are smooth


def test_north_is_up_and_mirrored_rooms_give_mirrored_plans():
    low_left = [box((0.5, 0.5, 0), (1.5, 1.0, 1))]
    plan = render_floorplan(SQUARE, low_left)
    dark = (plan.image.mean(axis=2) < 250)[20:-20, 20:-20]
    rows, columns = np.nonzero(dark)
    assert rows.mean() > dark.shape[0] / 2 and columns.mean() < dark.shape[1] / 2  # south, west
    flipped = render_floorplan(SQUARE * [-1, 1], [box((-1.5, 0.5, 0), (-0.5, 1.0, 1))])
    assert (np.abs(flipped.image[:, ::-1].astype(int) - plan.image) > 60).mean() < 0.02


def test_the_higher_thing_is_drawn_over_the_lower_whatever_their_order():
    low, high = box((1, 1, 0), (3, 2, 0.5)), box((1.5, 1.2, 0.5), (2, 1.8, 1.5))
    one, two = render_floorplan(SQUARE, [low, high]), render_floorplan(SQUARE, [high, low])
    np.testing.assert_array_equal(one.image, two.image)
    assert (np.abs(one.image.astype(int) - render_floorplan(SQUARE, [low]).image) > 30).any()


def test_a_bed_is_told_from_a_table():
    """Same footprint, other shape: the plan must show more than the outline."""
    table = box((1, 1, 0.7), (3, 2, 0.75))
    bed = [box((1, 1, 0), (3, 2, 0.4)), box((1, 1.1, 0.4), (1.5, 1.9, 0.55))]
    joined = np.concatenate([v for v, _ in bed]), np.concatenate([bed[0][1], bed[1][1] + len(bed[0][0])])
    a, b = (render_floorplan(SQUARE, [solid]).image.astype(int) for solid in (table, joined))
    assert (np.abs(a - b) > 20).mean() > 0.02


def test_a_plan_of_furniture_alone_and_of_walls_alone():
    assert (render_floorplan(np.zeros((0, 2, 2)), [box((0, 0, 0), (1, 1, 1))]).image < 255).any()
    assert (render_floorplan(SQUARE, []).image < 60).any()
    upright = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0, 1.0]]), np.array([[0, 1, 2]])  # a sheet on edge is a line from above
    assert (render_floorplan(np.zeros((0, 2, 2)), [upright]).image < 255).any()
    assert (render_floorplan(np.zeros((1, 2, 2)), [box((0, 0, 0), (1, 1, 1))]).image < 255).any()  # a wall of no length


def test_a_large_plan_keeps_its_size_in_pixels():
    plan = render_floorplan(SQUARE * 100, [])
    assert max(plan.image.shape) <= module.MAX_SIDE + 1 and plan.metres_per_pixel > 0.19
    assert grey(plan, [[200, 300]])[0] < 200


@pytest.mark.parametrize(
    ("walls", "solids", "message"),
    [
        (np.zeros((0, 2, 2)), [], "a floorplan needs a wall or a solid; there is nothing to draw"),
        (np.zeros((0, 2, 2)), [(np.zeros((3, 3)), np.zeros((0, 3), int))], "there is nothing to draw"),
        (np.ones((3, 2, 2)), [], "there is nothing to draw"),
        (SQUARE * np.nan, [], "coordinates must be finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(walls, solids, message):
    with pytest.raises(ValueError, match=message):
        render_floorplan(walls, solids)
