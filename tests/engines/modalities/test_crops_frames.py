"""Crop boxes, the largest views, and key frames, by hand and against loops."""

import numpy as np
import pytest
from PIL import Image

from pointcept3m.engines.modalities.crops import cut_crops, grown_box, mask_names, scaled_box, top_views, views_in
from pointcept3m.engines.modalities.frames import choose_key_frames, color_paths, sharpness, spread_poses
from pointcept3m.structures.scene_objects import write_mask
from tests.engines.modalities.scenes import make_scene


@pytest.mark.parametrize("level, box", [(0, (30, 10, 53, 21)), (1, (26, 8, 57, 23)), (2, (22, 6, 61, 25)), (9, (0, 0, 80, 39))])
def test_boxes_follow_the_formula(level, box):
    """Width 23 and height 11 grow by int(4.6) = 4 and int(2.2) = 2 a level; the picture ends at 80 x 60."""
    assert grown_box((30, 10, 53, 21), level, (60, 80)) == box


def test_box_in_a_larger_picture():
    assert scaled_box((3, 4, 7, 9), (60, 80), (120, 160)) == (6, 8, 14, 18)
    assert scaled_box((3, 4, 7, 9), (60, 80), (90, 120)) == (4, 6, 11, 14)
    assert scaled_box((0, 0, 80, 60), (60, 80), (59, 79)) == (0, 0, 79, 59)


def test_views_against_loops():
    mask = np.random.default_rng(0).integers(-1, 6, (20, 30)) * (np.indices((20, 30)).sum(0) % 3 > 0)
    found = views_in(mask, "7")
    assert set(found) == set(mask[mask >= 0].tolist())
    for object_id, view in found.items():
        rows, columns = np.nonzero(mask == object_id)
        assert view.pixels == len(rows) and view.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_top_views_are_the_largest(tmp_path):
    folder = make_scene(tmp_path / "s", 5)
    paths = color_paths(folder)
    views, foreign = top_views(folder, mask_names(folder, paths), {2, 5, 9}, 3)
    assert [view.frame for view in views[2]] == ["4", "3", "2"] and [view.pixels for view in views[2]] == [360, 320, 280]
    assert [view.frame for view in views[5]] == ["0", "1"]  # as large: the earlier first
    assert 9 not in views and foreign == 5 * 5 * 10


def test_crops_are_the_boxes_resized(tmp_path):
    folder = make_scene(tmp_path / "s", 2)
    paths = color_paths(folder)
    views, _ = top_views(folder, list(paths), {5}, 1)
    crops = list(cut_crops(paths, views, 2, 16))
    picture = Image.open(folder / "color" / "0.png")
    wanted = [picture.crop(box).resize((16, 16), Image.Resampling.BICUBIC) for box in ((2, 40, 10, 45), (1, 39, 11, 46))]
    assert [object_id for object_id, _ in crops] == [5, 5]
    for (_, crop), image in zip(crops, wanted, strict=True):
        assert np.array_equal(crop, np.asarray(image))


def test_masks_that_do_not_go_with_pictures(tmp_path):
    folder = make_scene(tmp_path / "s", 2)
    write_mask(folder, "0", np.full((60, 60), 5))
    paths = color_paths(folder)
    views, _ = top_views(folder, ["0"], {5}, 1)
    with pytest.raises(ValueError, match=r"color/0.png: the picture is 80 x 60 and mask/0.png 60 x 60 pixels"):
        list(cut_crops(paths, views, 1, 16))
    with pytest.raises(ValueError, match="none of its 2 masks .* has the name of a picture"):
        mask_names(folder, {"other": paths["0"]})


def test_sharp_key_frames(tmp_path):
    """Of three pictures a span the one that is not blurred."""
    (tmp_path / "color").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        noise = Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8) if i in (1, 6, 11) else np.full((40, 40), 99, np.uint8))
        noise.convert("RGB").save(tmp_path / "color" / f"{i}.png")
    paths = color_paths(tmp_path)
    assert list(paths) == [str(i) for i in range(12)]  # 10 after 9
    assert choose_key_frames(tmp_path, paths, 4) == ["1", "3", "6", "11"]
    assert choose_key_frames(tmp_path, paths, 4, "even") == ["1", "4", "7", "10"]
    assert choose_key_frames(tmp_path, paths, 12) == list(paths)
    assert sharpness(paths["1"]) > 100 * sharpness(paths["0"])


def test_pose_rule_against_loops(tmp_path):
    poses = np.stack([np.eye(4)] * 7)
    poses[:, 0, 3] = [0, 1, 2, 3, 4, 9, 10]
    poses[2, :3, :3] = np.diag([-1, -1, 1])  # half a turn about z
    assert spread_poses(poses, 4).tolist()[:2] == [0, 2]
    assert len(set(spread_poses(poses, 7).tolist())) == 7 and len(spread_poses(poses, 20)) == 7
    folder = make_scene(tmp_path / "s", 9)
    assert choose_key_frames(folder, color_paths(folder), 3, "pose") == ["0", "4", "8"]
    (folder / "pose" / "4.txt").write_text("-inf " * 16)
    assert "4" not in choose_key_frames(folder, color_paths(folder), 8, "pose")
    for path in (folder / "pose").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="none of 9 frames has a pose; choose key frames without"):
        choose_key_frames(folder, color_paths(folder), 3, "pose")
    with pytest.raises(KeyError, match="no rule of key frames is called 'poses'"):
        choose_key_frames(folder, color_paths(folder), 3, "poses")
