"""Prediction on one's own scan: the test's numbers, boxes that agree with the whole, files, what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pointcept3m
from pointcept3m import cli
from pointcept3m.datasets.readers.ply import read_ply, write_ply
from pointcept3m.datasets.tiles import cut_tiles
from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.defaults import fill_registries
from pointcept3m.engines.predict.votes import InstanceMerge, Votes
from pointcept3m.models import MODELS, build_model
from pointcept3m.utils.config import Config
from tests.datasets.test_cloud_readers import room

GRID = 0.1
NAMES = ["wall", "floor", "table", "chair"]
BACKBONE = dict(type="SpUNet-v1m1", in_channels=6, num_classes=4, base_channels=8, channels=(8, 8), layers=(1, 1))
COLLECT = dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color", "normal"))


def config(**changes) -> Config:
    test = dict(
        type="RoomsDataset",
        split="val",
        transform=[dict(type="CenterShift", apply_z=True), dict(type="NormalizeColor", mode="minus_one_one")],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size=GRID, mode="test", return_grid_coord=True),
            crop=None,
            post_transform=[dict(type="CenterShift", apply_z=False), dict(type="ToTensor"), COLLECT],
            aug_transform=[[dict(type="RandomScale", scale=[0.9, 0.9])], [dict(type="RandomScale", scale=[1.1, 1.1])]],
        ),
    )
    model = dict(type="DefaultSegmentor", backbone=BACKBONE, criteria=[dict(type="CrossEntropyLoss")])
    return Config(dict(model=model, data=dict(num_classes=4, names=NAMES, test=test), **changes))


def save(cfg: Config, path: Path, seed: int = 0) -> Path:
    """Weights of random numbers, with batch norms that have seen something, and the config inside, as training writes it."""
    fill_registries()
    torch.manual_seed(seed)
    model = build_model(cfg.model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.01, 0.05)
    save_weights(model, path, {"config": cfg.pretty_text})
    return path


@pytest.fixture
def weight(tmp_path):
    return save(config(), tmp_path / "w.safetensors")


@pytest.fixture
def cloud():
    coord, normal = room(0.06)
    color = np.random.default_rng(2).integers(0, 256, coord.shape).astype(np.uint8)
    return {"coord": coord, "color": color, "normal": normal}


def quiet(text: str) -> None:
    pass


@pytest.mark.parametrize("mode", ["fast", "vote"])
def test_the_classes_are_those_of_the_tester(tmp_path, weight, cloud, mode):
    """The same scene through data.test and SemSegTester: every raw point gets the same class."""
    from pointcept3m.engines import TESTERS

    scene = tmp_path / "rooms" / "val" / "a"
    scene.mkdir(parents=True)
    for key, values in cloud.items():
        np.save(scene / f"{key}.npy", values)
    np.save(scene / "segment.npy", np.zeros(len(cloud["coord"]), np.int64))
    cfg = config(weight=str(weight), save_path=str(tmp_path / "run"), num_worker=0, test=dict(type="SemSegTester", mode=mode))
    cfg.data.test.data_root = str(tmp_path / "rooms")
    TESTERS.build(dict(cfg.test), cfg=cfg).test()
    (written,) = (tmp_path / "run" / "result").glob("*a_pred.npy")
    expected = np.load(written)
    assert len(set(expected.tolist())) > 1
    model = pointcept3m.load(weight)
    for points in (scene, cloud):
        np.testing.assert_array_equal(model.predict(points, mode=mode, say=quiet).label, expected)


def test_boxes_agree_with_the_whole(weight, cloud):
    """Where only one box looks, its result is that of the uncut scan; where two do, nearly always.

    The network looks 2 + 2 x 2 + 1 + 2 cells far, less than the overlap. How many turns a box takes through its voxels
    depends on its fullest one, so one turn it is.
    """
    copies = {key: np.concatenate([values] * 3) for key, values in cloud.items()}
    copies["coord"][:, 0] += np.repeat([0, 6, 12], len(cloud["coord"])).astype(np.float32)
    model, cloud = pointcept3m.load(weight), copies
    whole = model.predict(cloud, fragments=1, say=quiet)
    said = []
    boxes = model.predict(cloud, fragments=1, max_points=9000, overlap=1.2, say=said.append)
    assert any(" boxes of at most 9,000" in text for text in said)
    found = np.abs(whole.confidence - boxes.confidence) < 1e-5
    tiles = cut_tiles_of(model, cloud, 9000, 1.2)
    times = np.zeros(len(whole), int)
    for tile in tiles:
        times[tile.rows] += 1
    alone = times == 1
    assert len(tiles) >= 2 and 0.1 < alone.mean() < 0.95
    assert found[alone].all() and (whole.label == boxes.label)[alone].all()
    assert (whole.label == boxes.label).mean() > 0.97
    # with less overlap than the network looks far, borders show: the agreement above is no accident
    rough = model.predict(cloud, fragments=1, max_points=9000, overlap=0.0, say=quiet)
    assert (np.abs(whole.confidence - rough.confidence) > 1e-3).any()


def cut_tiles_of(model, cloud, most, margin):
    """The boxes of a prediction, from the coordinates that its config makes."""
    from pointcept3m.datasets.transforms.sampling import find_voxels

    coord = model.input.prepare({key: value.copy() for key, value in cloud.items()})["coord"]
    voxels = find_voxels(coord, GRID)
    cost = np.zeros(len(coord), np.uint8)
    cost[voxels.order[voxels.start[:-1]].numpy()] = 1
    return cut_tiles(coord, cost, most, margin)


def test_fragments(weight, cloud):
    """All points of a voxel share a class in the fast mode, not in a vote; four turns are the default of the former."""
    model = pointcept3m.load(weight)
    coord = model.input.prepare({key: value.copy() for key, value in cloud.items()})["coord"]
    cell = np.floor(coord.astype(np.float64) / GRID).astype(int)
    _, voxel = np.unique(cell, axis=0, return_inverse=True)
    order = np.argsort(voxel, kind="stable")
    same = voxel[order][1:] == voxel[order][:-1]
    one, four, default = (model.predict(cloud, fragments=number, say=quiet) for number in (1, 4, None))
    for result in (one, four):
        assert same.mean() > 0.3 and (result.label[order][1:] == result.label[order][:-1])[same].all()
    np.testing.assert_array_equal(four.confidence, default.confidence)
    assert np.abs(four.confidence - one.confidence).max() > 1e-3
    vote = model.predict(cloud, mode="vote", say=quiet)
    assert (vote.label[order][1:] != vote.label[order][:-1])[same].any()


def test_points_that_are_not_finite_come_back_unlabelled(weight, cloud):
    """The others get what they get without them."""
    model, count = pointcept3m.load(weight), len(cloud["coord"])
    holes = {key: values.copy() for key, values in cloud.items()}
    rows = [0, 500, count - 1]
    holes["coord"][rows] = [[np.nan] * 3, [np.inf, 0, 0], [0, -np.inf, 0]]
    kept = np.setdiff1d(np.arange(count), rows)
    result = model.predict(holes, say=quiet)
    assert (result.label[rows] == -1).all() and result.counts.keys() == set(NAMES) and sum(result.counts.values()) == len(kept)
    only = model.predict({key: values[kept] for key, values in cloud.items()}, say=quiet)
    np.testing.assert_array_equal(result.label[kept], only.label)
    assert "unlabelled" in result.table()


def test_the_order_of_points_is_kept(weight):
    """One point a voxel, so that nothing depends on who stands for it: a permuted scan gives permuted classes."""
    coord, normal = room(0.06)
    _, first = np.unique(np.floor(coord / GRID).astype(int), axis=0, return_index=True)
    centre = (np.floor(coord[first] / GRID) + 0.5) * GRID
    turn = np.random.default_rng(0).permutation(len(centre))
    model = pointcept3m.load(weight)
    points = {"coord": centre.astype(np.float32), "normal": normal[first]}
    # the centre of the bounding box decides where the grid lies; it is the same for both
    a = model.predict(points, say=quiet)
    b = model.predict({key: values[turn] for key, values in points.items()}, say=quiet)
    np.testing.assert_array_equal(a.label[turn], b.label)
    np.testing.assert_allclose(a.confidence[turn], b.confidence, atol=1e-5)


def test_votes_are_the_mean_over_views(tmp_path, cloud):
    """One view of no change and two of it give the same; with one turn the fast mode's; scaled views do not."""
    votes = []
    for number in (1, 2):
        cfg = config()
        cfg.data.test.test_cfg.aug_transform = [[dict(type="RandomScale", scale=[1, 1])]] * number
        model = pointcept3m.load(save(cfg, tmp_path / f"{number}.safetensors"))
        votes.append(model.predict(cloud, mode="vote", fragments=1, say=quiet))
    fast = model.predict(cloud, fragments=1, say=quiet)
    for other in (votes[1], fast):
        np.testing.assert_array_equal(votes[0].label, other.label)
        np.testing.assert_allclose(votes[0].confidence, other.confidence, atol=1e-5)
    model = pointcept3m.load(save(config(), tmp_path / "scaled.safetensors"))
    scaled = model.predict(cloud, mode="vote", fragments=1, say=quiet)
    assert np.abs(scaled.confidence - fast.confidence).max() > 1e-3
    np.testing.assert_array_equal(scaled.label, model.predict(cloud, mode="vote", fragments=1, say=quiet).label)


def test_a_validation_chain_serves_where_the_test_is_not_cut(tmp_path, cloud):
    """data.val with labels, copies and inverse, as Pointcept writes it: its labels are left out, its results are the test's."""
    cfg = config()
    test = cfg.data.pop("test")
    cfg.data.val = dict(
        type="RoomsDataset",
        transform=[
            test.transform[0],
            dict(type="Copy", keys_dict={"segment": "origin_segment", "coord": "origin_coord"}),
            dict(type="GridSample", grid_size=GRID, mode="train", return_grid_coord=True, return_inverse=True),
            test.transform[1],
            dict(type="InstanceParser"),
            dict(type="ToTensor"),
            dict(
                type="Collect",
                keys=("coord", "grid_coord", "segment", "origin_segment", "inverse", "name"),
                offset_keys_dict=dict(offset="coord", origin_offset="origin_coord"),
                feat_keys=("color", "normal"),
            ),
        ],
    )
    by_val = pointcept3m.load(save(cfg, tmp_path / "val.safetensors")).predict(cloud, say=quiet)
    by_test = pointcept3m.load(save(config(), tmp_path / "test.safetensors")).predict(cloud, say=quiet)
    np.testing.assert_array_equal(by_val.label, by_test.label)


def test_both_dialects(tmp_path, cloud):
    """GaussianCross's chains work on tensors from the start."""
    cfg = config()
    cfg.data.test.transform.insert(0, dict(type="ToTensor"))
    first = pointcept3m.load(save(cfg, tmp_path / "first.safetensors")).predict(cloud, say=quiet)
    late = pointcept3m.load(save(config(), tmp_path / "late.safetensors")).predict(cloud, say=quiet)
    assert (first.label == late.label).mean() > 0.999


# votes and objects of boxes


def test_votes_of_boxes_are_those_of_a_table(tmp_path):
    """Against a table of all points by all classes, which is what the bounded memory stands for."""
    rng = np.random.default_rng(0)
    coord = (rng.random((4000, 3)) * [20, 20, 3]).astype(np.float32)
    tiles = cut_tiles(coord, np.ones(len(coord), np.uint8), 700, 1.0)
    votes, table = Votes(len(coord), tiles), np.zeros((len(coord), 5))
    for tile in tiles:
        probability = rng.dirichlet(np.ones(5), len(tile.rows)).astype(np.float32)
        votes.add(tile, coord[tile.rows], probability)
        table[tile.rows] += probability.astype(np.float64) * tile.weight(coord[tile.rows])[:, None]
    table /= table.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(votes.label, table.argmax(axis=1))
    np.testing.assert_allclose(votes.confidence, table.max(axis=1), atol=1e-5)
    assert len(votes._rows) == 0


def test_an_object_across_a_cut_is_one():
    """Three objects along a line, one of them across the cut and numbered differently in both boxes, one of another class."""
    coord = np.stack([np.linspace(0, 10, 1001), np.zeros(1001), np.zeros(1001)], axis=1)
    tiles = cut_tiles(coord, np.ones(1001, np.uint8), 700, 1.0)
    spans = [(1, 2, 0), (4.2, 6.1, 1), (8, 9, 0)]
    merge = InstanceMerge(1001)
    for number, tile in enumerate(tiles):
        x = coord[tile.rows, 0]
        seen = [k for k, (low, high, _) in enumerate(spans) if ((x > low) & (x < high)).any()][:: -1 if number else 1]
        instance = np.full(len(x), -1, np.int32)
        for place, k in enumerate(seen):
            instance[(x > spans[k][0]) & (x < spans[k][1])] = place
        merge.add(tile, coord[tile.rows], instance, [spans[k][2] for k in seen], [0.9 - 0.1 * k for k in seen])
    instance, classes, scores = merge.result()
    assert classes.tolist() == [0, 1, 0] and np.allclose(scores, [0.9, 0.8, 0.7])
    for number, (low, high, _) in enumerate(spans):
        np.testing.assert_array_equal(instance == number, (coord[:, 0] > low) & (coord[:, 0] < high))


@MODELS.register_module("HalvesForTest", force=True)
class Halves(torch.nn.Module):
    """Objects by hand: class and object are the half of the room, x below or above its middle."""

    task = "insseg"

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch):
        right = (batch["coord"][:, 0] > 0).long()
        masks = torch.stack([right == 0, right == 1]).to_sparse()
        logits = torch.nn.functional.one_hot(right, 4) * 5.0 * self.scale
        return {"seg_logits": logits, "pred_masks": masks, "pred_scores": torch.tensor([0.6, 0.8]), "pred_classes": torch.tensor([0, 1])}


def test_objects_come_back_on_the_points(tmp_path, cloud):
    cfg = config()
    cfg.model = dict(type="HalvesForTest")
    result = pointcept3m.load(save(cfg, tmp_path / "i.safetensors")).predict(cloud, say=quiet)
    right = cloud["coord"][:, 0] > 2.5
    clear = np.abs(cloud["coord"][:, 0] - 2.5) > 2 * GRID
    assert result.classes.tolist() == [1, 0] and np.allclose(result.scores, [0.8, 0.6])
    np.testing.assert_array_equal(result.instance[clear], np.where(right, 0, 1)[clear])
    (path, _) = result.save(tmp_path / "i.ply")
    np.testing.assert_array_equal(read_ply(path).vertex["instance"], result.instance)
    assert "objects" in result.table()


# files


def test_files(tmp_path, weight, cloud):
    model = pointcept3m.load(weight)
    far = {**cloud, "coord": cloud["coord"].astype(np.float64) + [450_000, 5_400_000, 0]}
    result = model.predict(far, say=quiet)
    near = model.predict(cloud, say=quiet)
    assert (result.label == near.label).mean() > 0.97  # only the rounding of coordinates tells them apart
    for name in ("a.ply", "a.npy", "a.npz"):
        path, legend = result.save(tmp_path / name, confidence=True)
        assert legend.name == "a.legend.png" and legend.stat().st_size > 500
    ply = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(ply.vertex["label"], result.label)
    np.testing.assert_array_equal(ply.columns("x", "y", "z"), far["coord"])
    np.testing.assert_array_equal(ply.color, result.palette[result.label])
    np.testing.assert_array_equal(ply.columns("scan_red", "scan_green", "scan_blue"), cloud["color"])
    np.testing.assert_allclose(ply.vertex["confidence"], result.confidence)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), result.label)
    archive = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(archive["label"], result.label)
    assert archive["names"].tolist() == NAMES and archive["palette"].shape == (4, 3)


def test_las_out(tmp_path, weight, cloud):
    laspy = pytest.importorskip("laspy")
    far = {**cloud, "coord": cloud["coord"].astype(np.float64) + [450_000, 5_400_000, 0]}
    result = pointcept3m.load(weight).predict(far, say=quiet)
    for name in ("a.las", "a.laz"):
        path, _ = result.save(tmp_path / name)
        back = laspy.read(path)
        np.testing.assert_allclose(np.array(back.xyz), far["coord"], atol=1e-4)
        np.testing.assert_array_equal(back["label"], result.label)
        np.testing.assert_array_equal(np.array(back.red) // 257, result.palette[result.label][:, 0])


def test_the_legend_shows_what_occurs(tmp_path, weight, cloud):
    from PIL import Image

    result = pointcept3m.load(weight).predict(cloud, say=quiet)
    result.label[:] = 2
    result.label[:10] = 0
    image = np.asarray(Image.open(result.save_legend(tmp_path / "legend.png")))
    colors = {tuple(color) for color in image.reshape(-1, 3).tolist()}
    assert tuple(result.palette[2].tolist()) in colors and tuple(result.palette[0].tolist()) in colors
    assert tuple(result.palette[1].tolist()) not in colors
    assert result.counts == {"wall": 10, "floor": 0, "table": len(result) - 10, "chair": 0} and "no points: floor, chair" in result.table()


# the command


def run(*words: str) -> int:
    return cli.main(["predict", *map(str, words)])


def test_the_command(tmp_path, weight, cloud, capsys):
    write_ply(tmp_path / "scan.ply", cloud["coord"] * 1000, cloud["color"])
    out = tmp_path / "new" / "pred.ply"
    assert run(tmp_path / "scan.ply", "--weight", weight, "--out", out) == 0
    text = capsys.readouterr().out
    for words in ("4 classes (wall, floor, table, chair)", "grid 0.1 m", "unit: mm, guessed", "--unit", "--up-axis", "--color-range", "normals: estimated", "share", "pred.legend.png"):
        assert words in text, words
    assert len(read_ply(out).vertex["label"]) == len(cloud["coord"])
    assert run(tmp_path / "scan.ply", "--weight", weight, "--out", out) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(tmp_path / "scan.ply", "--weight", weight, "--out", out, "--overwrite", "--unit", "mm", "--up-axis", "-z", "--normals", "estimate") == 0
    assert "up is -z, as --up-axis says" in capsys.readouterr().out


def test_what_cannot_work_is_said_before_any_work(tmp_path, weight, cloud, capsys, monkeypatch):
    from pointcept3m.datasets.readers import cloud as cloud_reader
    from pointcept3m.engines.predict import predictor

    write_ply(tmp_path / "scan.ply", cloud["coord"])
    (tmp_path / "file").write_text("")
    for module in (predictor, cloud_reader):
        monkeypatch.setattr(module, "read_cloud", lambda *a, **k: pytest.fail("the scan was read"))
    scan = tmp_path / "scan.ply"
    for words, message in (
        ((scan, "--weight", weight, "--out", tmp_path / "p.obj"), "wanted a file name that ends in one of"),
        ((scan, "--weight", weight, "--out", tmp_path / "file" / "p.ply"), "cannot be written"),
        ((scan, "--weight", weight, "--out", scan), "exists"),
        ((scan, "--weight", weight, "--out", scan, "--overwrite"), "is the scan itself"),
        ((tmp_path / "scann.ply", "--weight", weight, "--out", tmp_path / "p.ply"), "scan.ply"),
        ((scan, "--weight", tmp_path / "ww.safetensors", "--out", tmp_path / "p.ply"), "w.safetensors"),
        ((scan, "--weight", tmp_path, "--out", tmp_path / "p.ply"), "model_best"),
        ((scan, "--weight", weight, "--out", tmp_path), "is a folder; wanted the name of a file in it"),
        ((scan, "--weight", weight, "--out", tmp_path / "p"), "this has no suffix"),
        ((scan, "--weight", scan, "--out", tmp_path / "p.ply"), "is no weight file; wanted a .pth or .safetensors file, or a run folder"),
    ):
        assert run(*words) == 1
        assert message in capsys.readouterr().err, message


def test_weights_that_cannot_predict(tmp_path, weight):
    cfg = config()
    save_weights(build_model(cfg.model), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="--config"):
        pointcept3m.load(tmp_path / "bare.safetensors")
    cfg.dump(tmp_path / "cfg.py")
    assert pointcept3m.load(tmp_path / "bare.safetensors", config=tmp_path / "cfg.py").names == NAMES
    cfg.model = dict(type="GaussianCross-v1m1")
    save_weights(torch.nn.Linear(1, 1), tmp_path / "pretrained.safetensors", {"config": cfg.pretty_text})
    with pytest.raises(ValueError, match=r"pretraining without a class head(.|\n)*pointcept3m train"):
        pointcept3m.load(tmp_path / "pretrained.safetensors")
    cfg.model = dict(type="SomeoneElses")
    cfg.custom_imports = dict(imports=["os"])
    save_weights(torch.nn.Linear(1, 1), tmp_path / "custom.safetensors", {"config": cfg.pretty_text})
    with pytest.raises(ValueError, match="pass --config"):
        pointcept3m.load(tmp_path / "custom.safetensors")
    cfg = config()
    cfg.data.num_classes, cfg.data.names = 3, NAMES[:3]
    with pytest.raises(ValueError, match="the model gives 4 classes, data.num_classes is 3"):
        pointcept3m.load(save(cfg, tmp_path / "three.safetensors")).predict(room(0.2)[0], say=quiet)


def test_a_run_folder_gives_its_best(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    for seed, name in enumerate(("model_last", "model_best")):
        save(config(), tmp_path / "run" / "model" / f"{name}.safetensors", seed)
    model = pointcept3m.load(tmp_path / "run")
    assert model.weight.endswith("model_best.safetensors")
    coord = room(0.2)[0]
    best = pointcept3m.load(tmp_path / "run" / "model" / "model_best.safetensors").predict(coord, say=quiet)
    np.testing.assert_array_equal(model.predict(coord, say=quiet).confidence, best.confidence)


def test_hard_scans(weight):
    """A point alone, copies of one point, a line: the documented result, never a crash."""
    model = pointcept3m.load(weight)
    for coord in (np.zeros((1, 3)), np.ones((300, 3)), np.stack([np.linspace(0, 9, 50)] * 3, axis=1)):
        said = []
        result = model.predict(coord, say=said.append)
        assert f"{len(coord)} point{'s' if len(coord) > 1 else ''} over " in "\n".join(said)
        assert len(result) == len(coord) and (result.label >= 0).all() and np.isfinite(result.confidence).all()
    for options, words in (({"mode": "best"}, "fast, vote"), ({"max_points": 0}, "at least 1"), ({"up_axis": "up"}, "up_axis"), ({"color_range": "0..2"}, "0..1")):
        with pytest.raises(ValueError, match=words):
            model.predict(np.zeros((5, 3)), say=quiet, **options)


def test_float16_on_a_cpu_is_said_to_be_float32(tmp_path, cloud):
    said = []
    half = pointcept3m.load(save(config(enable_amp=True, amp_dtype="float16"), tmp_path / "half.safetensors"), device="cpu")
    full = pointcept3m.load(save(config(), tmp_path / "full.safetensors"), device="cpu")
    result = half.predict(cloud, say=said.append)
    assert [line for line in said if "on this CPU the run computes in float32" in line]
    np.testing.assert_array_equal(result.confidence, full.predict(cloud, say=quiet).confidence)


def test_importing_the_package_imports_no_torch():
    code = "import sys, pointcept3m; pointcept3m.load; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
