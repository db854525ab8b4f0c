"""Transforms: points and cameras together, unbiased sampling, both dialects, and what errors say."""

import copy

import numpy as np
import pytest
import torch

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms import Compose
from pointcept3m.datasets.transforms.color import hsv_to_rgb, rgb_to_hsv, shift_hue
from pointcept3m.datasets.transforms.geometry import rotation
from pointcept3m.structures.camera import project, unproject
from pointcept3m.structures.scene import Scene
from tests.datasets.synthetic import cloud, write_scene

AFFINE = [
    dict(type="CenterShift", apply_z=True),
    dict(type="PositiveShift"),
    dict(type="RandomShift", shift=((-1, 1), (-1, 1), (-0.5, 0.5))),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", p=1.0),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", always_apply=True),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", center=[0, 0, 0], p=1.0),
    dict(type="RandomRotateTargetAngle", p=1.0),
    dict(type="RandomScale", scale=[0.7, 1.4], anisotropic=True),
    dict(type="RandomScale", scale=[0.9, 1.1]),
    dict(type="RandomFlip", p=0.7),
    dict(type="NormalizeCoord"),
    dict(type="CenterShift", apply_z=False),
]


@pytest.fixture
def sample():
    data = {k: v.astype(np.float32) if v.ndim == 2 else v.astype(np.int64) for k, v in cloud().items()}
    return {**data, "name": "box"}


@pytest.fixture
def with_views(sample, tmp_path):
    scene = Scene(write_scene(tmp_path / "box", frames=4))
    frames = [scene.frame(name, (480, 640)) for name in scene.frame_names]
    sample.update({k: np.stack([getattr(f, k) for f in frames]) for k in ("rgb", "depth", "intrinsic", "extrinsic")})
    return sample


def pixels(data: dict, view: int) -> tuple[np.ndarray, np.ndarray]:
    return project(np.asarray(data["coord"]), np.asarray(data["intrinsic"])[view], np.asarray(data["extrinsic"])[view])


@pytest.mark.parametrize("seed", range(4))
def test_points_stay_on_their_pixels_through_all_affine_transforms(with_views, seed):
    np.random.seed(seed)
    order = np.random.permutation(len(AFFINE))
    before = copy.deepcopy(with_views)
    after = Compose([AFFINE[i] for i in order])(with_views)
    assert not np.allclose(after["coord"], before["coord"])
    for view in range(4):
        old_pixel, old_depth = pixels(before, view)
        new_pixel, new_depth = pixels(after, view)
        seen = (old_depth > 0.5) & (np.abs(old_pixel - [320, 240]) < [320, 240]).all(axis=1)
        assert seen.sum() > 100
        assert np.abs(new_pixel - old_pixel)[seen].max() < 1e-3
        assert np.abs(new_depth - old_depth)[seen].max() < 1e-5  # metres, however the world was scaled


@pytest.mark.parametrize("chosen", range(len(AFFINE)))
def test_each_affine_transform_moves_points_and_cameras_by_one_matrix(with_views, chosen):
    before = copy.deepcopy(with_views)
    after = Compose([AFFINE[chosen]])(with_views)
    old_pixel, old_depth = pixels(before, 0)
    new_pixel, _ = pixels(after, 0)
    front = old_depth > 0.5
    np.testing.assert_allclose(new_pixel[front], old_pixel[front], atol=1e-2)


def test_depth_is_left_alone_and_still_fits_the_moved_points(with_views):
    """Depth pixels lifted by the moved cameras land on the moved walls: the unit is the renderer's."""
    depth = with_views["depth"].copy()
    data = Compose([dict(type="RandomScale", scale=[0.5, 2.0], anisotropic=True), dict(type="RandomFlip", p=1)])(
        with_views
    )
    np.testing.assert_array_equal(data["depth"], depth)
    lifted = unproject(depth[1], data["intrinsic"][1], np.linalg.inv(data["extrinsic"][1])).reshape(-1, 3)
    low, high = data["coord"].min(axis=0), data["coord"].max(axis=0)
    to_wall = np.minimum(np.abs(lifted - low), np.abs(lifted - high)).min(axis=1)
    assert np.median(to_wall) < 0.03


def test_normals_stay_perpendicular_under_anisotropic_scale(sample):
    data = Compose([dict(type="RandomRotate", p=1), dict(type="RandomScale", scale=[0.4, 2.5], anisotropic=True)])(
        sample
    )
    np.testing.assert_allclose(np.linalg.norm(data["normal"], axis=1), 1, atol=1e-5)
    for wall in range(6):
        on = data["segment"] == wall
        within = data["coord"][on] - data["coord"][on][0]
        assert np.abs(within @ data["normal"][on][0]).max() < 1e-4


def test_rotation_turns_the_right_way():
    np.testing.assert_allclose(rotation("z", np.pi / 2, (0, 0, 0))[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation("x", np.pi / 2, (0, 0, 0))[:3, :3] @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation("y", np.pi / 2, (0, 0, 0))[:3, :3] @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation("z", 1.0, (3, 4, 5)) @ [3, 4, 9, 1], [3, 4, 9, 1], atol=1e-12)


@pytest.mark.parametrize("cfg", [dict(type="ElasticDistortion"), dict(type="PointClip")])
def test_transforms_that_are_not_affine_refuse_frames(with_views, cfg):
    with pytest.raises(ValueError, match=f"{cfg['type']} is not affine"):
        Compose([cfg])(with_views)


def test_elastic_distortion_is_smooth(sample):
    before = sample["coord"].copy()
    after = Compose([dict(type="ElasticDistortion", distortion_params=[[0.5, 0.3]], p=1)])(sample)["coord"]
    moved = after - before
    assert 0.005 < np.abs(moved).mean() < 0.3
    distance = np.linalg.norm(before[1:] - before[:1], axis=1)
    near = np.argsort(distance)[:5] + 1
    assert np.abs(moved[near] - moved[0]).max() < np.abs(moved - moved[0]).max()


# ---- sampling


def reference_cells(coord: np.ndarray, size: float) -> dict[tuple, list[int]]:
    """Cell -> rows, by a dict: the plain meaning of a grid."""
    cells: dict[tuple, list[int]] = {}
    grid = np.floor(coord.astype(np.float64) / size).astype(int)
    for row, cell in enumerate(grid - grid.min(axis=0)):
        cells.setdefault(tuple(cell.tolist()), []).append(row)
    return cells


def test_grid_sample_equals_the_reference(sample):
    raw = copy.deepcopy(sample)
    cells = reference_cells(raw["coord"], 0.3)
    sample["row"] = np.arange(3000)
    sample["index_valid_keys"] = ["row"]
    cfg = dict(type="GridSample", grid_size=0.3, return_grid_coord=True, return_inverse=True, return_min_coord=True,
               return_displacement=True)  # fmt: skip
    data = Compose([cfg])(sample)
    assert len(data["coord"]) == len(cells) < 3000
    assert sorted(map(tuple, data["grid_coord"].tolist())) == sorted(cells)
    for cell, row in zip(data["grid_coord"].tolist(), data["row"], strict=True):
        assert row in cells[tuple(cell)]
    for rows in cells.values():
        assert len(set(data["inverse"][rows].tolist())) == 1
    np.testing.assert_array_equal(data["grid_coord"][data["inverse"]][data["row"]], data["grid_coord"])
    np.testing.assert_array_equal(data["segment"], raw["segment"][data["row"]])
    np.testing.assert_allclose(
        data["min_coord"] + (data["grid_coord"] + 0.5 + data["displacement"]) * 0.3, data["coord"], atol=1e-5
    )


def test_grid_sample_draws_every_point_of_a_cell_alike():
    """Three points in one cell beside a cell of a hundred: Pointcept's one draw modulo the count is biased."""
    coord = np.concatenate([np.full((3, 3), 0.05), np.full((100, 3), 0.95)]).astype(np.float32)
    transform = TRANSFORMS.build(dict(type="GridSample", grid_size=0.1))
    picks = np.array(
        [transform({"coord": coord, "index_valid_keys": ["row"], "row": np.arange(103)})["row"] for _ in range(3000)]
    )
    small = np.bincount(picks[:, 0], minlength=3)
    assert np.abs(small - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)
    # the two cells draw independently of each other
    large = picks[:, 1] - 3
    assert abs(np.corrcoef(picks[:, 0], large)[0, 1]) < 0.1 and np.unique(large).size > 95


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_grid_sample_repeats_for_a_seed(sample, dtype):
    """One number of numpy for each cell, in the order of x, then y, then z: seeded runs stay as they were."""
    sample["coord"] = (10 * sample["coord"]).astype(dtype)
    sample["coord"].flags.writeable = False  # as a memory-mapped file gives it
    cells = reference_cells(sample["coord"], 3)
    data = {**sample, "index_valid_keys": ["row"], "row": np.arange(3000)}
    np.random.seed(5)
    rows = TRANSFORMS.build(dict(type="GridSample", grid_size=3))(data)["row"]
    np.random.seed(5)
    draws = np.random.random(len(cells))
    assert rows.tolist() == [cells[c][int(d * len(cells[c]))] for c, d in zip(sorted(cells), draws, strict=True)]


def test_grid_sample_test_mode_covers_every_point_in_cells_of_one(sample):
    cells = reference_cells(sample["coord"], 0.4)
    parts = TRANSFORMS.build(dict(type="GridSample", grid_size=0.4, mode="test", return_grid_coord=True))(sample)
    assert len(parts) == max(map(len, cells.values()))
    assert {len(p["coord"]) for p in parts} == {len(cells)}
    assert np.unique(np.concatenate([p["index"] for p in parts])).tolist() == list(range(3000))
    np.testing.assert_array_equal(parts[1]["coord"], sample["coord"][parts[1]["index"]])


def test_grid_sample_keeps_every_annotated_point(sample):
    coord = sample["coord"].copy()
    rows = np.arange(0, 60, 2)
    sample["sampled_index"] = rows
    data = TRANSFORMS.build(dict(type="GridSample", grid_size=0.5))(sample)
    kept = data["coord"][data["sampled_index"]]
    assert sorted(map(tuple, kept.tolist())) == sorted(map(tuple, coord[rows].tolist()))


@pytest.mark.parametrize(
    "coord, message",
    [
        (np.zeros((0, 3), np.float32), "0 points"),
        (np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), "1 points are not finite, the first is row 1"),
        (np.array([[0, 0, 0], [1e9, 1e9, 1e9]], np.float32), "more than 2\\^62"),
    ],
)
def test_grid_sample_refuses_what_would_break_silently(coord, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(dict(type="GridSample", grid_size=0.01))({"coord": coord})


def test_random_mask_point_hides_the_share(sample):
    coord = sample["coord"].copy()
    data = TRANSFORMS.build(dict(type="RandomMask", ratio=0.3))(sample)
    assert len(data["coord"]) == len(data["normal"]) == 2100
    rows = {tuple(row) for row in coord.tolist()}
    assert all(tuple(row) in rows for row in data["coord"].tolist())


def test_random_mask_block_hides_whole_blocks(sample):
    coord = sample["coord"].copy()
    kept = TRANSFORMS.build(dict(type="RandomMask", ratio=0.5, mode="block", size=0.5))(sample)["coord"]
    cells = reference_cells(coord, 0.5)
    rows = {tuple(row): number for number, row in enumerate(coord.tolist())}
    kept_rows = {rows[tuple(row)] for row in kept.tolist()}
    assert all(len(kept_rows & set(block)) in (0, len(block)) for block in cells.values())
    assert abs(len(kept) - 1500) <= max(map(len, cells.values()))


def test_random_mask_always_leaves_something():
    for mode in ("point", "block"):
        for _ in range(20):
            data = TRANSFORMS.build(dict(type="RandomMask", ratio=0.99, mode=mode))(
                {"coord": np.zeros((2, 3), np.float32)}
            )
            assert len(data["coord"]) >= 1


def test_dropout_and_shuffle_keep_rows_together(sample):
    paired = {tuple(c): tuple(n) for c, n in zip(sample["coord"].tolist(), sample["normal"].tolist(), strict=True)}
    data = Compose(
        [dict(type="RandomDropout", dropout_ratio=0.4, dropout_application_ratio=1.0), dict(type="ShufflePoint")]
    )(sample)
    assert len(data["coord"]) == 1800
    assert all(
        paired[tuple(c)] == tuple(n) for c, n in zip(data["coord"].tolist(), data["normal"].tolist(), strict=True)
    )


@pytest.mark.parametrize(
    "cfg, count", [(dict(point_max=500), 500), (dict(sample_rate=0.25), 750), (dict(mode="given", point_max=100), 100)]
)
def test_sphere_crop_keeps_the_nearest(sample, cfg, count):
    sample["center"] = np.array([2, 1.5, 1], np.float32)
    coord = sample["coord"].copy()
    data = TRANSFORMS.build(dict(type="SphereCrop", **cfg))(sample)
    assert len(data["coord"]) == len(data["segment"]) == count
    if cfg.get("mode") == "given":
        distance = np.sort(np.linalg.norm(coord - sample["center"], axis=1))
        assert np.linalg.norm(data["coord"] - sample["center"], axis=1).max() <= distance[count - 1] + 1e-6


def test_crop_boundary_drops_classes(sample):
    data = TRANSFORMS.build(dict(type="CropBoundary"))(sample)
    assert set(np.unique(data["segment"])) == {2, 3, 4, 5}


def test_crops_and_shuffle_refuse_to_break_inverse(sample):
    sampled = TRANSFORMS.build(dict(type="GridSample", grid_size=0.1, return_inverse=True))(sample)
    for cfg in (dict(type="SphereCrop", point_max=10), dict(type="ShufflePoint")):
        with pytest.raises(ValueError, match="inverse"):
            TRANSFORMS.build(cfg)(dict(sampled))


# ---- colour


def test_hsv_by_hand_and_back():
    hsv = rgb_to_hsv(np.array([[255.0, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [0, 0, 0]]))
    np.testing.assert_allclose(hsv[:3, 0], [0, 1 / 3, 2 / 3])
    np.testing.assert_allclose(hsv[:, 1], [1, 1, 1, 0, 0])
    random = np.random.rand(500, 3) * 255
    np.testing.assert_allclose(hsv_to_rgb(rgb_to_hsv(random)), random, atol=1e-9)
    np.testing.assert_allclose(shift_hue(np.array([[255.0, 0, 0]]), 1 / 3), [[0, 255, 0]], atol=1e-9)


PHOTOMETRIC = [
    dict(type="ChromaticAutoContrast", p=1.0),
    dict(type="ChromaticTranslation", p=1.0, ratio=0.2),
    dict(type="RandomColorGrayScale", p=1.0),
    dict(type="RandomColorJitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=1.0),
    dict(type="HueSaturationTranslation"),
]


@pytest.mark.parametrize("cfg", PHOTOMETRIC, ids=lambda c: c["type"])
def test_photometric_transforms_change_points_and_views_by_one_map(sample, cfg):
    """A view made of the points' own colours must stay equal to them."""
    sample["color"] = sample["color"] * 0.6 + 20
    sample["rgb"] = (sample["color"] / 255).reshape(1, 50, 60, 3).astype(np.float32)
    original = sample["color"].copy()
    data = TRANSFORMS.build(cfg)(copy.deepcopy(sample))
    assert np.abs(data["color"] - original).max() > 1
    np.testing.assert_allclose(data["rgb"].reshape(-1, 3) * 255, data["color"], atol=1e-2)
    assert data["color"].min() >= 0 and data["color"].max() <= 255 and data["color"].dtype == np.float32
    kept = TRANSFORMS.build({**cfg, "views": False})(copy.deepcopy(sample))
    np.testing.assert_array_equal(kept["rgb"], sample["rgb"])


def test_chromatic_jitter_leaves_views(sample):
    sample["rgb"] = np.random.rand(1, 4, 4, 3).astype(np.float32)
    data = TRANSFORMS.build(dict(type="ChromaticJitter", p=1.0, std=0.05))(copy.deepcopy(sample))
    np.testing.assert_array_equal(data["rgb"], sample["rgb"])
    inner = (sample["color"] > 60) & (sample["color"] < 195)
    assert abs((data["color"] - sample["color"])[inner].std() - 0.05 * 255) < 1


def test_normalize_color_modes(sample):
    color = sample["color"].copy()
    zero = TRANSFORMS.build(dict(type="NormalizeColor"))(dict(sample))["color"]
    minus = TRANSFORMS.build(dict(type="NormalizeColor", mode="minus_one_one"))(dict(sample))["color"]
    np.testing.assert_allclose(zero, color / 255, atol=1e-6)
    np.testing.assert_allclose(minus, color / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="normalised already"):
        TRANSFORMS.build(dict(type="NormalizeColor"))({"color": zero})
    with pytest.raises(ValueError, match="'zero_one' or 'minus_one_one'"):
        TRANSFORMS.build(dict(type="NormalizeColor", mode="01"))


@pytest.mark.parametrize(
    "name, key", [("RandomDropColor", "color"), ("RandomColorDrop", "color"), ("RandomDropNormal", "normal")]
)
def test_dropping_a_modality(sample, name, key):
    assert not TRANSFORMS.build(dict(type=name, p=1.0))(sample)[key].any()


# ---- dialects, collect, errors

PIPELINE = [
    dict(type="CenterShift", apply_z=True, keys=["extrinsic"]),
    dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=1.0),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1.0, keys=["extrinsic"]),
    dict(type="RandomScale", scale=[0.9, 1.1], keys=["extrinsic"]),
    dict(type="RandomFlip", p=0.5, keys=["extrinsic"]),
    dict(type="RandomJitter", sigma=0.005, clip=0.02),
    dict(type="ChromaticAutoContrast", p=1.0),
    dict(type="ChromaticTranslation", p=0.95, ratio=0.05),
    dict(type="ChromaticJitter", p=0.95, std=0.05),
    dict(type="GridSample", grid_size=0.1, hash_type="fnv", mode="train", keys=("coord", "color", "normal", "segment"),
         return_grid_coord=True),
    dict(type="SphereCrop", point_max=1000, mode="random"),
    dict(type="CenterShift", apply_z=False, keys="extrinsic"),
    dict(type="NormalizeColor"),
]  # fmt: skip
COLLECT = dict(type="Collect", keys=("coord", "grid_coord", "segment", "rgb", "depth", "intrinsic", "extrinsic", "name"),
               feat_keys=("color", "normal"))  # fmt: skip


def test_both_dialects_give_the_same_sample(with_views):
    import random

    results = []
    for pipeline in ([*PIPELINE, dict(type="ToTensor"), COLLECT], [dict(type="ToTensor"), *PIPELINE, COLLECT]):
        np.random.seed(3)
        random.seed(3)
        results.append(Compose(pipeline)(copy.deepcopy(with_views)))
    late, first = results
    assert late.keys() == first.keys()
    for key, value in late.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == first[key].dtype and value.shape == first[key].shape, key
            if key == "feat":  # a bare NormalizeColor after ToTensor means color / 127.5 - 1
                value = torch.cat([value[:, :3] * 2 - 1, value[:, 3:]], dim=1)
            torch.testing.assert_close(first[key], value, atol=2e-5, rtol=1e-5)
    assert late["feat"].shape == (1000, 6) and late["offset"].tolist() == [1000]
    assert late["grid_coord"].dtype == torch.int64 and late["extrinsic"].dtype == torch.float32


def test_collect_builds_offsets_and_features(sample):
    data = Compose([
        dict(type="Copy", keys_dict={"coord": "origin_coord", "segment": "origin_segment"}),
        dict(type="Update", keys_dict={"condition": "ScanNet"}),
        dict(type="GridSample", grid_size=0.3, return_inverse=True),
        dict(type="Collect", keys=("coord", "segment", "origin_segment", "inverse", "condition"), coord_feat_keys="coord",
             offset_keys_dict=dict(offset="coord", origin_offset="origin_coord"), feat_keys=("color", "segment")),
    ])(sample)  # fmt: skip
    assert data["origin_offset"].tolist() == [3000] == [len(data["inverse"])] == [len(data["origin_segment"])]
    assert data["offset"].tolist() == [len(data["coord"])] and data["feat"].shape[1] == 4
    assert torch.equal(data["coord_feat"], data["coord"]) and data["condition"] == "ScanNet"


def test_contrastive_views_sample_all_their_keys_together(sample):
    view = [
        dict(type="RandomRotate", p=1),
        dict(type="GridSample", grid_size=0.2, return_grid_coord=True),
        dict(type="SphereCrop", sample_rate=0.6),
    ]
    data = Compose([
        dict(type="Copy", keys_dict={"coord": "origin_coord"}),
        dict(type="ContrastiveViewsGenerator", view_keys=("coord", "color", "normal", "origin_coord"), view_trans_cfg=view),
        dict(type="ToTensor"),
        dict(type="Collect", keys=("view1_coord", "view1_origin_coord", "view2_coord", "view2_grid_coord"),
             offset_keys_dict=dict(view1_offset="view1_coord", view2_offset="view2_coord"),
             view1_feat_keys=("view1_color", "view1_normal")),
    ])(sample)  # fmt: skip
    count = int(data["view1_offset"])
    assert len(data["view1_coord"]) == len(data["view1_origin_coord"]) == len(data["view1_feat"]) == count < 3000
    assert len(data["view2_grid_coord"]) == int(data["view2_offset"])
    # a rotation about the middle keeps distances from it: the rows of both copies belong together
    middle = torch.tensor([2.0, 1.5, 1.25])
    a, b = (torch.linalg.norm(data[k] - middle, dim=1) for k in ("view1_coord", "view1_origin_coord"))
    torch.testing.assert_close(a, b, atol=0.02, rtol=0)


def test_instance_parser_by_hand():
    data = {
        "coord": np.array([[0, 0, 0], [2, 0, 0], [5, 5, 5], [1, 1, 1], [7, 7, 7]], np.float32),
        "segment": np.array([2, 2, 4, 0, 4]),
        "instance": np.array([9, 9, 4, 1, -1]),
    }
    data = TRANSFORMS.build(dict(type="InstanceParser", segment_ignore_index=(-1, 0, 1)))(data)
    assert data["instance"].tolist() == [1, 1, 0, -1, -1]
    np.testing.assert_allclose(data["instance_centroid"], [[1, 0, 0], [1, 0, 0], [5, 5, 5], [-1] * 3, [-1] * 3])
    np.testing.assert_allclose(data["bbox"], [[5, 5, 5, 0, 0, 0, 0, 2], [1, 0, 0, 2, 0, 0, 0, 0]])


def test_missing_key_names_transform_key_and_what_there_is():
    with pytest.raises(
        KeyError, match=r"CenterShift needs the key 'coord'; the sample has color, coords.*did you mean 'coords'"
    ):
        TRANSFORMS.build(dict(type="CenterShift"))({"coords": 1, "color": 2})
    with pytest.raises(KeyError, match="Collect needs the key 'normal'"):
        TRANSFORMS.build(dict(type="Collect", keys="coord", feat_keys=("normal",)))({"coord": np.zeros((1, 3))})


@pytest.mark.parametrize(
    "cfg, error, message",
    [
        (dict(type="RandomRotat"), KeyError, "did you mean 'RandomRotate'"),
        (dict(type="GridSample", gridsize=1), TypeError, "did you mean 'grid_size'"),
        (dict(type="GridSample", mode="val"), ValueError, "mode must be 'train' or 'test', got 'val'"),
        (dict(type="RandomMask", ratio=1.0), ValueError, r"ratio must lie in \[0, 1\), got 1.0"),
        (dict(type="RandomMask", mode="cube"), ValueError, "'point' or 'block'"),
        (dict(type="SphereCrop", mode="all"), ValueError, "got 'all'"),
        (dict(type="RandomDropout", dropout_ratio=2), ValueError, "got 2"),
        (dict(type="RandomColorJitter", hue=0.7), ValueError, "hue must lie within"),
        (dict(type="RandomColorJitter", contrast=(-1, 1)), ValueError, "contrast must be"),
        (dict(type="RandomJitter", clip=0), ValueError, "clip must be positive"),
        (dict(type="Collect", keys="coord", stack=1), TypeError, "not stack"),
    ],
)
def test_wrong_arguments_are_named(cfg, error, message):
    with pytest.raises(error, match=message):
        TRANSFORMS.build(cfg)


def test_degenerate_input_is_named():
    with pytest.raises(ValueError, match="no extent"):
        TRANSFORMS.build(dict(type="NormalizeCoord"))({"coord": np.ones((4, 3), np.float32)})
    with pytest.raises(ValueError, match="nothing would be left"):
        TRANSFORMS.build(dict(type="CropBoundary"))({"coord": np.ones((2, 3)), "segment": np.zeros(2, int)})
    with pytest.raises(ValueError, match="axis must be"):
        TRANSFORMS.build(dict(type="RandomRotate", axis="w", p=1))({"coord": np.ones((4, 3), np.float32)})
