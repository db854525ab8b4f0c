"""Colours of features, similarity, classes and errors; pictures of clouds; the command from end to end."""

import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pointcept3m.cli import main
from pointcept3m.datasets.readers.ply import read_ply
from pointcept3m.datasets.scannet_labels import NYU40_NAMES, SCANNET20_NAMES, SCANNET200_NAMES
from pointcept3m.engines import cloud_picture, embedding, point_features, sheet
from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.cloud_picture import Camera, Picture, draw_cloud, looking
from pointcept3m.engines.scene_files import PointScene
from pointcept3m.models import build_model
from pointcept3m.utils import palette
from pointcept3m.utils.config import Config

# palettes


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


# features to colours


def test_pca_equals_the_singular_value_decomposition(monkeypatch):
    monkeypatch.setattr(embedding, "ROWS", 37)  # many pieces
    whole = (torch.randn(500, 8) @ torch.diag(torch.tensor([9.0, 5, 3, 1, 1, 0.5, 0.1, 0.1])) @ torch.randn(8, 8)) + 4
    parts = [whole[:123], whole[123:]]
    mean, axes = embedding.principal_axes(parts)
    centred = whole.double() - whole.double().mean(0)
    _, scale, rows = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(mean, whole.double().mean(0))
    assert torch.allclose((axes * rows[:3].T).sum(0).abs(), torch.ones(3, dtype=torch.float64), atol=1e-9)
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()  # the sign is fixed
    share = float(scale[:3].square().sum() / scale.square().sum())
    assert embedding.explained_share(parts) == pytest.approx(share, abs=1e-9)
    values = torch.cat([embedding.component_values(part, mean, axes) for part in parts])
    assert torch.allclose(values.double(), centred @ axes, atol=1e-4)


def test_pca_colors_are_shared_robust_and_repeatable():
    features = [torch.randn(400, 6) + shift for shift in (0, 2)]
    features[0][0] = 1e6  # one outlier must not take the colour from the others
    features[1][:5] = features[0][10:15]  # the same features in two scenes
    colors = embedding.pca_colors(features)
    assert (colors[1][:5] == colors[0][10:15]).all() and all(c.dtype == np.uint8 for c in colors)
    assert all(np.array_equal(a, b) for a, b in zip(colors, embedding.pca_colors(features), strict=True))
    clean = embedding.pca_colors([torch.randn(400, 6)])[0]
    assert clean.std(axis=0).min() > 40 and np.abs(np.median(clean.astype(int), axis=0) - 127.5).max() <= 1
    alone = embedding.pca_colors(features, joint=False)[1]
    assert np.array_equal(alone, embedding.pca_colors([features[1]])[0]) and not np.array_equal(alone, colors[1])
    assert (embedding.pca_colors([torch.ones(4, 5)])[0] == 128).all()  # no variance, no colour


def test_pca_refuses_what_has_no_components():
    with pytest.raises(ValueError, match="channels"):
        embedding.principal_axes([torch.zeros(5, 2)])
    with pytest.raises(ValueError, match="no point"):
        embedding.principal_axes([torch.zeros(0, 4)])


def test_similarity_is_the_cosine(monkeypatch):
    monkeypatch.setattr(embedding, "ROWS", 7)
    feature = torch.randn(50, 12)
    feature[3] = 0
    score = embedding.cosine_similarity(feature, feature[20] * 3)
    assert torch.allclose(score, F.cosine_similarity(feature, feature[20:21]), atol=1e-6)
    assert score[20] == pytest.approx(1) and score[3] == 0
    low, high = embedding.similarity_range([torch.linspace(-1, 1, 1001)])
    assert (low, high) == (pytest.approx(-1), 1.0)


def test_umap_fits_a_part_and_places_the_rest_by_neighbours(monkeypatch):
    seen = {}

    class UMAP:
        def __init__(self, **settings):
            seen.update(settings)

        def fit_transform(self, rows):
            seen["rows"] = len(rows)
            return rows[:, :3] * 10

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    base = torch.randn(30, 8)
    features = [base.repeat(20, 1), base[:7]]  # every voxel has equals, so most stand exactly where a fitted one does
    colors, said = embedding.umap_colors(features, seed=3, max_fit=300)
    assert seen["rows"] == 300 and seen["random_state"] == 3 and seen["n_components"] == 3
    assert "300 of 607" in said and "nearest" in said
    assert [len(c) for c in colors] == [600, 7] and (colors[1] == colors[0][:7]).all()
    whole, said = embedding.umap_colors(features, max_fit=1000)
    assert "nearest" not in said and (np.abs(whole[0].astype(int) - colors[0]) <= 12).mean() > 0.9


def test_umap_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        embedding.umap_colors([torch.randn(20, 4)])


# pictures

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


# the command, on a backbone of a few channels

CONFIG = """
model = dict(
    type={kind},
    num_classes=3,
    backbone_out_channels=8,
    backbone=dict(type="SpUNet-v1m1", in_channels=6, num_classes=0, base_channels=8, channels=(8, 8, 8, 8), layers=(1, 1, 1, 1)),
    criteria=[dict(type="CrossEntropyLoss", ignore_index=-1)],
)
steps = [
    dict(type="CenterShift", apply_z=True),
    dict(type="GridSample", grid_size=0.1, mode="train", return_grid_coord=True),
    dict(type="NormalizeColor", mode="minus_one_one"),
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal")),
]
data = dict(
    num_classes=3,
    ignore_index=-1,
    names=("wall", "floor", "table"),
    val=dict(type="RoomsDataset", transform=steps),
)
"""


@pytest.fixture
def weight(tmp_path):
    """A segmentor with random weights and the config inside, as a run writes it."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(kind='"DefaultSegmentorV2"'))
    config = Config.fromfile(path)
    model = build_model(config.model)
    save_weights(model, tmp_path / "w.safetensors", {"config": config.pretty_text})
    return tmp_path / "w.safetensors"


def write_scene(folder, shift=0.0, **replace):
    """A scene folder of the room above, walls, floor and table labelled."""
    coord, normal = room(0.125)
    segment = np.where(normal[:, 2] == 0, 0, np.where(coord[:, 2] == 0, 1, np.where(coord[:, 2] < 1, 2, -1)))
    color = np.clip(coord * 60 + np.array([20, 40, 60]), 0, 255).astype(np.uint8)
    arrays = {"coord": coord + np.float32(shift), "color": color, "normal": normal, "segment": segment.astype(np.int64), **replace}
    folder.mkdir(parents=True)
    for name, values in arrays.items():
        if values is not None:
            np.save(folder / f"{name}.npy", values)
    return folder


def run(capsys, *words):
    """(exit status, stdout, stderr) of the command."""
    status = main(["visualize", *map(str, words)])
    return status, *capsys.readouterr()


def test_command_writes_every_colour(weight, tmp_path, capsys):
    scenes = [write_scene(tmp_path / "a" / "room"), write_scene(tmp_path / "b" / "room", shift=4.0)]
    out = tmp_path / "out"
    status, said, error = run(
        capsys, "--weight", weight, *scenes, "--out", out, "--color", "rgb,pca,similarity", "--color", "prediction,label,error",
        "--query", "4.5,5.5,4.0", "--query", "b-room:7", "--figure", "--size", 200,
    )  # fmt: skip
    assert status == 1 and "the nearest point of a-room" in error  # a place of the other scene
    assert not list(out.iterdir())
    arguments = ["--weight", weight, *scenes, "--out", out, "--color", "rgb,pca,similarity", "--color", "prediction,label,error"]
    arguments += ["--query", "b-room:4.5,5.5,4.0", "--query", "7", "--figure", "--size", 200]
    status, said, error = run(capsys, *arguments)
    assert status == 0, error
    names = ["rgb", "pca", "similarity1", "similarity2", "prediction", "label", "error"]
    wanted = {f"{scene}_{name}.{kind}" for scene in ("a-room", "b-room") for name in names for kind in ("ply", "png")} | {"figure.png"}
    assert {path.name for path in out.iterdir()} == wanted
    ply = {name: read_ply(out / f"b-room_{name}.ply") for name in names}
    coord, segment = np.load(scenes[1] / "coord.npy"), np.load(scenes[1] / "segment.npy")
    assert all(np.array_equal(p.coord, coord) for p in ply.values())
    assert np.array_equal(ply["rgb"].color, np.load(scenes[1] / "color.npy"))
    prediction = ply["prediction"].vertex["prediction"]
    assert np.array_equal(ply["prediction"].color, palette.class_colors(prediction, palette.palette_for(["wall", "floor", "table"])))
    assert np.array_equal(ply["error"].color, palette.error_colors(prediction, segment))
    counted = segment >= 0
    assert f"b-room: {(prediction == segment)[counted].mean():.1%} of {counted.sum():,}" in said
    # the two scenes are one room twice, so are their colours; the query point is wholly like itself
    assert np.array_equal(ply["pca"].color, read_ply(out / "a-room_pca.ply").color)
    nearest = np.linalg.norm(coord - [4.5, 5.5, 4.0], axis=1).argmin()
    score = ply["similarity1"].vertex["similarity"]
    assert score[nearest] == pytest.approx(1, abs=1e-5) and score.min() < 0.99
    assert read_ply(out / "a-room_similarity2.ply").vertex["similarity"][7] == pytest.approx(1, abs=1e-5)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(capsys, *arguments)[0] == 0
    assert all(path.read_bytes() == before[path.name] for path in out.iterdir())


def test_features_of_the_backbone_reach_every_point(weight, tmp_path):
    coord, normal = room(0.125)
    color = np.full(coord.shape, 90, np.float32)
    scene = PointScene("room", tmp_path, coord, coord, np.arange(len(coord)), color, normal)
    path, cfg = point_features.config_of(str(weight))
    recipe = point_features.input_recipe(cfg)
    assert recipe.feat_keys == ("color", "normal") and recipe.grid_size == 0.1
    backbone = point_features.load_backbone(path, cfg)
    found = point_features.voxel_features(scene, recipe, backbone)
    # by hand: one voxel a row, in the order in which the sample gives them
    np.random.seed(0)
    sample = recipe.chain()({"coord": coord, "color": color, "normal": normal})
    with torch.no_grad():
        wanted = backbone({key: sample[key] for key in ("grid_coord", "feat", "offset")})
    assert len(found.value) == len(wanted)
    assert torch.allclose(found.value[found.inverse], wanted[sample["inverse"]], atol=1e-5)


def test_large_scenes_are_cut_and_no_point_is_left_out(weight, tmp_path):
    coord = np.random.default_rng(0).random((6000, 3)).astype(np.float32) * [60, 4, 2]
    scene = PointScene("hall", tmp_path, coord.astype(np.float32), coord, np.arange(len(coord)), np.full(coord.shape, 9.0, np.float32), np.ones_like(coord))
    path, cfg = point_features.config_of(str(weight))
    recipe = point_features.input_recipe(cfg)
    sizes = []

    class Height(torch.nn.Module):
        def forward(self, batch):
            sizes.append(len(batch["coord"]))
            return batch["coord"][:, 2:3]

    found = point_features.voxel_features(scene, recipe, Height(), max_voxels=2000)
    assert len(sizes) > 2 and max(sizes) <= 2000
    assert np.abs(found.value[found.inverse][:, 0].numpy() - coord[:, 2]).max() < 0.1 + 0.02  # within the voxel, but for the shift
    assert set(found.inverse.tolist()) == set(range(len(found.value)))


def test_a_pretraining_and_a_pair_of_views_say_their_input():
    pair = dict(type="Collect", keys=("view1_coord",), view1_feat_keys=("view1_color", "view1_normal"))
    views = [dict(type="RandomFlip"), dict(type="GridSample", grid_size=0.02), dict(type="NormalizeColor")]
    chain = [dict(type="CenterShift"), dict(type="ContrastiveViewsGenerator", view_trans_cfg=views), dict(type="ToTensor"), pair]
    recipe = point_features.input_recipe(Config(data=dict(train=dict(type="ScanNetDataset", transform=chain))))
    assert recipe.feat_keys == ("color", "normal") and recipe.grid_size == 0.02
    assert [step["type"] for step in recipe.transforms] == ["CenterShift", "GridSample", "NormalizeColor"]
    assert recipe.transforms[2]["mode"] == "zero_one"  # Pointcept's, since ToTensor comes late
    with pytest.raises(ValueError, match="GridSample"):
        point_features.input_recipe(Config(data=dict(train=dict(type="ScanNetDataset", transform=[]))))


def test_a_classifier_at_the_end_is_left_out(tmp_path):
    backbone = dict(type="SpUNet-v1m1", in_channels=6, num_classes=5, base_channels=8, channels=(8, 8, 8, 8), layers=(1, 1, 1, 1))
    model = dict(type="DefaultSegmentor", backbone=backbone, criteria=[dict(type="CrossEntropyLoss")])
    save_weights(build_model(model), tmp_path / "w.safetensors")
    assert point_features.load_backbone(str(tmp_path / "w.safetensors"), Config(model=model)).out_channels == 8
    first, second = (point_features.load_backbone("random", Config(model=model), seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(ValueError, match="no backbone"):
        point_features.load_backbone("random", Config(model=backbone))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--color", "pcb"], "did you mean 'pca'"),
        (["--color", "similarity"], "needs --query"),
        (["--query", "3"], "was not asked for"),
        (["--color", "similarity", "--query", "99999"], "none in row 99999"),
        (["--color", "similarity", "--query", "-9,0,0"], "the nearest point of room is"),
        (["--color", "similarity", "--query", "moon:1"], "neither one of the scenes"),
        (["--color", "similarity", "--query", "1,2"], "wanted INDEX"),
        (["--weight", "random"], "needs --config"),
        (["--weight", "nowhere.pth"], "no file or run folder"),
        (["--size", "3"], "--size must be at least"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(weight, tmp_path, capsys, words, sentence):
    scene = write_scene(tmp_path / "room")
    status, _, error = run(capsys, scene, "--weight", weight, "--out", tmp_path / "out", *words)
    assert status == 1 and sentence in error, error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_scans_that_lack_something(weight, tmp_path, capsys):
    out = tmp_path / "out"
    bare = write_scene(tmp_path / "bare", color=None, segment=None)
    for words, sentence in (
        ([], "bare has no color"),
        (["--color", "rgb"], "bare has no colours"),
        (["--color", "label"], "bare has no labels"),
    ):
        status, _, error = run(capsys, bare, "--weight", weight, "--out", out, *words)
        assert status == 1 and sentence in error
    assert run(capsys, bare, "--weight", weight, "--out", out, "--fill-color", "127,127,127", "--size", 100)[0] == 0
    status, _, error = run(capsys, tmp_path / "missing", "--weight", weight, "--out", out)
    assert status == 1 and "no such scene" in error and "bare" in error
    (tmp_path / "file").write_text("")
    status, _, error = run(capsys, bare, "--weight", weight, "--out", tmp_path / "file" / "x")
    assert status == 1 and "nothing can be written" in error
    empty = tmp_path / "empty"
    empty.mkdir()
    np.save(empty / "coord.npy", np.zeros((0, 3), np.float32))
    status, _, error = run(capsys, empty, "--weight", weight, "--out", out)
    assert status == 1 and "0 points" in error
    one = {name: np.ones((1, 3), np.float32) for name in ("coord", "color", "normal")}
    single = write_scene(tmp_path / "single", segment=np.zeros(1, np.int64), **one)
    assert run(capsys, single, "--weight", weight, "--out", out, "--size", 100, "--color", "rgb,pca,error")[0] == 0


def test_a_pretraining_predicts_no_classes(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.replace("num_classes=3,\n    backbone_out", "backbone_in_channels=6,\n    backbone_out").format(kind='"MSC-v1m1"').replace('    criteria=[dict(type="CrossEntropyLoss", ignore_index=-1)],\n', ""))
    settings = Config.fromfile(config)
    save_weights(build_model(settings.model), tmp_path / "msc.safetensors", {"config": settings.pretty_text})
    scene, out = write_scene(tmp_path / "room"), tmp_path / "out"
    status, _, error = run(capsys, scene, "--weight", tmp_path / "msc.safetensors", "--out", out, "--color", "prediction")
    assert status == 1 and "pretraining" in error
    assert run(capsys, scene, "--weight", tmp_path / "msc.safetensors", "--out", out, "--size", 100, "--normalize")[0] == 0
    assert (out / "room_pca.png").is_file()


def test_a_ply_in_centimetres_with_y_up(weight, tmp_path, capsys):
    from pointcept3m.datasets.readers.ply import write_ply

    coord, _ = room(0.125)
    path, out = tmp_path / "scan.ply", tmp_path / "out"
    stored = coord[:, [0, 2, 1]] * [100, 100, -100]
    write_ply(path, stored, np.full(coord.shape, 50, np.uint8))
    status, said, error = run(
        capsys, path, "--weight", weight, "--out", out, "--unit", "cm", "--up-axis", "y", "--size", 100,
        "--color", "similarity", "--query", "100,0,-100",
    )  # fmt: skip
    assert status == 0, error
    assert "normals: estimated" in said and "0.1 m" in said
    found = read_ply(out / "scan_similarity.ply")
    assert np.allclose(found.coord, stored, atol=1e-3)  # in the coordinates of the file
    assert found.vertex["similarity"][np.linalg.norm(stored - [100, 0, -100], axis=1).argmin()] == pytest.approx(1, abs=1e-5)


def test_real_scan(real_data, weight, tmp_path, capsys):
    source = np.load(real_data("scannet_scene0000_00") / "scene0000_00.npz")
    chosen = np.flatnonzero(source["has_color"])[::3]
    np.savez(tmp_path / "scene0000_00.npz", coord=source["coord"][chosen], color=source["color"][chosen])
    status, said, error = run(capsys, tmp_path / "scene0000_00.npz", "--weight", weight, "--out", tmp_path / "out", "--color", "pca", "--size", 480)
    assert status == 0, error
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "out" / "scene0000_00_pca.png"))
    drawn = (picture != 255).any(axis=2)
    assert 0.3 < drawn.mean() < 0.95 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
