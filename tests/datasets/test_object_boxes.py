"""Boxes of objects: around points, and of annotated boxes."""

import numpy as np
import pytest

from pointcept3m.datasets.object_boxes import box_of_obb, inside_obb, read_obb, upright_box
from pointcept3m.structures.scene_objects import SceneObject


def turned(size, heading, center=(1.0, -2.0, 0.5), count=2000, seed=0):
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3), -1).reshape(-1, 3)
    local = np.concatenate([rng.uniform(-0.5, 0.5, (count, 3)), corners]) * size
    cos, sin = np.cos(heading), np.sin(heading)
    return local @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + center


@pytest.mark.parametrize("heading", [-1.5, -0.7, 0.0, 0.3, 1.2, np.pi / 2])
def test_the_least_box_finds_size_and_heading(heading):
    center, size, found = upright_box(turned((2.0, 0.5, 0.8), heading))
    assert np.allclose(size, (2.0, 0.5, 0.8), atol=1e-9) and np.allclose(center, (1, -2, 0.5), atol=1e-9)
    assert np.isclose(np.sin(found - heading), 0, atol=1e-6) and -np.pi / 2 < found <= np.pi / 2 + 1e-9


def test_no_other_heading_has_a_smaller_box():
    points = np.random.default_rng(3).normal(size=(200, 3)) * [1, 0.3, 1]
    _, size, _ = upright_box(points)
    areas = [np.prod(upright_box(points, angle)[1][:2]) for angle in np.linspace(0, np.pi, 400)]
    assert size[0] * size[1] <= min(areas) + 1e-9 < max(areas)


def test_points_on_a_line_or_one_point_have_a_thin_box():
    line = np.outer(np.linspace(0, 1, 10), [1, 1, 0]) + [0, 0, 2]
    center, size, heading = upright_box(line)
    assert np.allclose(size, (np.sqrt(2), 1e-3, 1e-3)) and np.isclose(heading, np.pi / 4) and np.allclose(center, (0.5, 0.5, 2))
    assert upright_box([[1.0, 2, 3]]) == ((1, 2, 3), (1e-3, 1e-3, 1e-3), 0.0)
    square = np.array([[0.0, 1, 0], [1, 0, 0], [2, 1, 0], [1, 2, 1]])  # all points are corners of the hull
    assert np.allclose(upright_box(square)[1], (np.sqrt(2), np.sqrt(2), 1))
    for bad in (np.zeros((0, 3)), [[np.nan, 0, 0]]):
        with pytest.raises(ValueError, match="at least one"):
            upright_box(bad)


def test_annotated_boxes_hold_the_same_points_whichever_axis_is_vertical():
    heading, size = 0.4, np.array([2.0, 0.5, 0.8])
    points = turned(size, heading)
    x, y, z = [np.cos(heading), np.sin(heading), 0], [-np.sin(heading), np.cos(heading), 0], [0, 0, 1]
    for order, axes in (((0, 1, 2), [x, y, z]), ((0, 2, 1), [x, z, y]), ((2, 0, 1), [z, x, y])):
        obb = read_obb({"centroid": [1, -2, 0.5], "axesLengths": size[list(order)], "normalizedAxes": np.ravel(axes)}, "here")
        assert inside_obb(points * [1, 1, 1], obb[0], obb[1] + 1e-9, obb[2]).all()
        assert not inside_obb(points + [0, 0, 0.81], *obb).any()
        box = SceneObject(1, "desk", *box_of_obb(*obb)).box
        assert np.allclose(box[3:], points.max(axis=0) - points.min(axis=0), atol=1e-6)


def test_a_tilted_box_becomes_the_upright_box_around_its_corners():
    tilt = np.radians(30)
    axes = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    _, size, _ = box_of_obb(np.zeros(3), np.array([2.0, 4.0, 1.0]), axes)
    wide, high = 2 * np.cos(tilt) + np.sin(tilt), 2 * np.sin(tilt) + np.cos(tilt)
    assert np.allclose(sorted(size), sorted([4, wide, high]))


@pytest.mark.parametrize(
    "entry",
    [
        {"centroid": [0, 0, 0], "axesLengths": [1, 1, 1]},
        {"centroid": [0, 0], "axesLengths": [1, 1, 1], "normalizedAxes": np.eye(3).ravel()},
        {"centroid": [0, 0, np.nan], "axesLengths": [1, 1, 1], "normalizedAxes": np.eye(3).ravel()},
        {"centroid": [0, 0, 0], "axesLengths": [1, -1, 1], "normalizedAxes": np.eye(3).ravel()},
        {"centroid": [0, 0, 0], "axesLengths": [1, 1, 1], "normalizedAxes": 2 * np.eye(3).ravel()},
        None,
    ],
)
def test_boxes_that_are_none_are_named(entry):
    with pytest.raises(ValueError, match="^scan 7, object 3: wanted"):
        read_obb(entry, "scan 7, object 3")
