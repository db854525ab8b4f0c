"""Colours of features and similarity, features on all points, and the command from end to end."""

import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pointcept3m.cli import main
from pointcept3m.datasets.readers.ply import read_ply
from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.visualize import embedding, point_features
from pointcept3m.engines.visualize.scene_files import PointScene
from pointcept3m.models import build_model
from pointcept3m.utils import palette
from pointcept3m.utils.config import Config

from .test_cloud_picture import room

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


def labels_alone(folder, asset):
    """A scene folder whose labels 0, 2 and 7 lie in `asset`.npy."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(folder / "coord.npy", rng.random((300, 3), dtype=np.float32))
    np.save(folder / "color.npy", rng.integers(0, 256, (300, 3)).astype(np.uint8))
    np.save(folder / f"{asset}.npy", np.array([0, 2, 7])[np.arange(300) % 3])
    return folder


def test_labels_without_a_weight_have_the_names_that_are_known(tmp_path, capsys, monkeypatch):
    """segment20 and segment200 say their classes; a plain segment does by --config, and without it the output says so."""
    from pointcept3m.datasets.scannet_labels import SCANNET20_NAMES, SCANNET200_NAMES
    from pointcept3m.engines.visualize import command

    legends, made = [], command.sheet.ClassLegend
    monkeypatch.setattr(command.sheet, "ClassLegend", lambda title, names, colors: legends.append((list(names), colors)) or made(title, names, colors))
    out = ["--out", tmp_path / "out", "--color", "label", "--size", 100]
    for asset, names in (("segment20", SCANNET20_NAMES), ("segment200", SCANNET200_NAMES)):
        status, text, _ = run(capsys, labels_alone(tmp_path / asset / "hall", asset), *out)
        assert status == 0 and "does not tell" not in text
        assert legends[-1][0] == [names[k] for k in (0, 2, 7)]
        assert np.array_equal(legends[-1][1], command.palette.palette_for(names)[[0, 2, 7]])
    plain = labels_alone(tmp_path / "plain" / "hall", "segment")
    status, text, _ = run(capsys, plain, *out)
    assert status == 0 and legends[-1][0] == ["class 0", "class 2", "class 7"]
    assert "segment.npy does not tell the names of its classes, nor their colours: --config FILE or --weight W" in text
    config = tmp_path / "names.py"
    config.write_text("data = dict(num_classes=8, names=['wall', 'floor', 'chair', 'table', 'bed', 'sofa', 'desk', 'lamp'])\n")
    status, text, _ = run(capsys, plain, *out, "--config", config)
    assert status == 0 and legends[-1][0] == ["wall", "chair", "lamp"] and "does not tell" not in text
    torch.save({"state_dict": {"a": torch.zeros(1)}, "config": config.read_text()}, tmp_path / "w.pth")
    status, text, _ = run(capsys, plain, *out, "--weight", tmp_path / "w.pth")
    assert status == 0 and legends[-1][0] == ["wall", "chair", "lamp"] and "does not tell" not in text


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
    assert run(capsys, bare, "--weight", weight, "--out", out, "--fill-color", 127, 127, 127, "--size", 100)[0] == 0
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


def test_coordinates_of_a_map_stay_exact(tmp_path, capsys):
    """500 km from the origin float32 knows 3 cm; what comes out is what went in, and an earlier file is replaced."""
    coord = room(0.125)[0].astype(np.float64) + [512_345.1, 5_401_234.2, 210.3]
    np.savez(tmp_path / "scan.npz", coord=coord, color=np.full(coord.shape, 50, np.uint8))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scan_rgb.ply").write_text("old")
    status, _, error = run(capsys, tmp_path / "scan.npz", "--out", tmp_path / "out", "--color", "rgb", "--size", 100, "--unit", "m", "--up-axis", "z")
    assert status == 0, error
    vertex = read_ply(tmp_path / "out/scan_rgb.ply").vertex
    assert np.abs(np.stack([vertex[axis] for axis in "xyz"], 1) - coord).max() < 1e-6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scan_rgb.ply", "scan_rgb.png"]


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
