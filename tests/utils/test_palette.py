"""Colours of classes, scores and errors."""

import numpy as np
import pytest

from pointcept3m.datasets.scannet_labels import NYU40_NAMES, SCANNET20_NAMES, SCANNET200_NAMES
from pointcept3m.utils import palette


def test_palettes_of_data_sets():
    colors = palette.palette_for(SCANNET20_NAMES)
    assert colors.dtype == np.uint8 and colors.shape == (20, 3)
    assert colors[0].tolist() == [174, 199, 232] and colors[-1].tolist() == [82, 84, 163]  # wall, otherfurniture
    assert palette.palette_for(SCANNET200_NAMES)[-1].tolist() == [42, 94, 198]  # mattress
    assert palette.palette_for(["Ceiling", "beam", "clutter"]).tolist() == [[0, 255, 0], [255, 255, 0], [50, 50, 50]]
    assert list(palette.NYU40) == list(NYU40_NAMES) and list(palette.SCANNET200) == list(SCANNET200_NAMES)
    # a data set with some of ScanNet's classes has ScanNet's colours, whatever their order
    assert palette.palette_for(["bed", "wall"]).tolist() == [colors[3].tolist(), colors[0].tolist()]
    assert palette.palette_for([]).shape == (0, 3)


def test_unknown_classes_get_colors_that_differ():
    colors = palette.palette_for([f"class {k}" for k in range(60)])
    assert np.array_equal(colors[:7], palette.palette_for([f"class {k}" for k in range(7)]))  # the first k stay
    lab = palette.oklab(np.concatenate([colors, [(255, 255, 255), palette.UNLABELLED]]))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + np.eye(len(lab)) * 9
    assert distance.min() > 0.05
    mixed = palette.palette_for(["wall", "floor", "spaceship"])
    assert mixed[0].tolist() == [174, 199, 232] and (mixed[:2] != mixed[2]).any(axis=1).all()


def test_class_and_error_colors_by_hand():
    table = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    grey = list(palette.UNLABELLED)
    assert palette.class_colors(np.array([1, -1, 0, 2, -100]), table).tolist() == [[4, 5, 6], grey, [1, 2, 3], grey, grey]
    colors = palette.error_colors(np.array([0, 1, 2, 3]), np.array([0, 2, -1, 255]), ignore_index=255)
    assert colors.tolist() == [list(palette.RIGHT), list(palette.WRONG), grey, grey]
    with pytest.raises(ValueError, match="predictions for"):
        palette.error_colors(np.zeros(3), np.zeros(4))


def test_score_colors_are_brighter_where_higher():
    colors = palette.score_colors(np.array([-5.0, 0.2, 0.5, 0.8, 9.0, np.nan]), 0.2, 0.8).astype(int)
    light = palette.oklab(colors)[:, 0]
    assert (np.diff(light[1:4]) > 0.1).all()
    assert (colors[0] == colors[1]).all() and (colors[4] == colors[3]).all() and tuple(colors[5]) == palette.UNLABELLED
