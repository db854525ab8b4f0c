"""Configs run here as they are: Pointcept's and GaussianCross's (where a checkout is), and ours in both dialects.

POINTCEPT_ROOT=/path/to/Pointcept:/path/to/GaussianCross runs every supported config file of these checkouts, unmodified,
on small scenes: two steps, a validation, a test. Only batch size, number of epochs and folders differ.
"""

import json
import math
import os
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from pointcept3m.engines import TRAINERS
from pointcept3m.engines.convention import check_sections, input_convention
from pointcept3m.engines.defaults import with_defaults
from pointcept3m.utils.config import Config
from tests.conftest import REPOSITORY

SUPPORTED = (
    "semseg-spunet-v1m1-*", "semseg-spunet-base*", "semseg-spunet-efficient-*", "semseg-minkunet34c-*", "semseg-pt-v3m1-0-base",
    "insseg-pointgroup-*spunet*", "insseg-pointgroup-v1m2-0-ptv3-base", "insseg-pg-*", "pretrain-msc-v1m1-0-*",
)  # fmt: skip
ROOTS = [Path(root) for root in os.environ.get("POINTCEPT_ROOT", "").split(os.pathsep) if root]
FILES = sorted({f for root in ROOTS for d in ("scannet", "scannet200", "s3dis") for p in SUPPORTED for f in root.glob(f"configs/{d}/{p}.py")})
OURS = sorted(f for d in ("scannet", "scannet200", "s3dis") for f in (REPOSITORY / "configs" / d).glob("*.py"))
CONFIGS = REPOSITORY / "configs"


def write_scene(folder: Path, seed: int, labels: tuple[str, ...] = ("segment20", "segment200")) -> None:
    """A part of a room of 1,200 points: a floor of 1.8 m, a wall, and three boxes that are instances of their own."""
    rng = np.random.default_rng(seed)
    coord = rng.random((1200, 3)) * (1.8, 1.8, 0.02)
    coord[400:600] = coord[400:600][:, [2, 0, 1]]
    for number in range(3):
        part = slice(600 + 200 * number, 800 + 200 * number)
        coord[part] = rng.random((200, 3)) * 0.1 + (0.1 + 0.2 * number, 0.2, 0.05)
    segment = np.repeat([1, 0, 4, 4, 6], [400, 200, 200, 200, 200])
    segment[rng.random(1200) < 0.05] = -1
    normal = rng.normal(size=(1200, 3))
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", coord.astype(np.float32))
    np.save(folder / "color.npy", rng.integers(0, 256, (1200, 3)).astype(np.uint8))
    np.save(folder / "normal.npy", (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32))
    np.save(folder / "instance.npy", np.repeat([-1, 0, 1, 2], [600, 200, 200, 200]).astype(np.int16))
    for label in labels:
        np.save(folder / f"{label}.npy", segment.astype(np.int16))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working folder with data/scannet, its lists of few labels, and data/s3dis, where the configs look for them."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data/scannet"
    for seed, scene in enumerate(("train/scene0000_00", "train/scene0001_00", "val/scene0011_00", "test/scene0707_00")):
        write_scene(root / scene, seed)
    names = ["scene0000_00", "scene0001_00"]
    for folder in ("scenes", "points"):
        (root / "tasks" / folder).mkdir(parents=True)
    for share in (1, 5, 10, 20):
        (root / f"tasks/scenes/{share}.txt").write_text("\n".join(names))
    for count in (20, 50, 100, 200):
        torch.save({name: list(range(0, 1200, 1200 // count))[:count] for name in names}, root / f"tasks/points/points{count}")
    for area in range(1, 7):
        write_scene(tmp_path / f"data/s3dis/Area_{area}/office_1", 10 + area, ("segment",))
    return tmp_path / "data"


def run(path: Path, save_path: Path, **options) -> dict:
    """Trains the config for one epoch of two samples a batch; returns metrics.json."""
    options = dict(save_path=str(save_path), batch_size=2, num_worker=0, epoch=1, eval_epoch=1, seed=0) | options
    cfg = Config.fromfile(path, options)
    TRAINERS.build(dict(cfg.train), cfg=cfg).train()
    return json.loads((save_path / "metrics.json").read_text())


# ---- other people's checkouts


@pytest.mark.long
@pytest.mark.skipif(not ROOTS, reason="POINTCEPT_ROOT names no checkout of Pointcept")
@pytest.mark.parametrize("path", FILES, ids=lambda path: "-".join(path.with_suffix("").parts[-4::2]) + "-" + path.stem)
def test_a_config_of_a_checkout_trains_unmodified(path, data, tmp_path, monkeypatch):
    from pointcept3m.engines.hooks import report

    monkeypatch.setattr(report, "write_report", lambda folder: folder)
    profiled = "profiler" in path.stem
    if profiled:  # it ends the run before training, as its `interrupt=True` asks
        with pytest.raises(SystemExit) as stopped:
            run(path, tmp_path / "run")
        assert stopped.value.code == 0 and "Self CPU" in (tmp_path / "run/train.log").read_text()
        return
    metrics = run(path, tmp_path / "run")["metrics"]
    assert math.isfinite(metrics["train_loss"])
    assert any(name in metrics for name in ("mIoU", "AP50")) or "pretrain" in path.stem
    if "semseg" in path.stem:
        assert math.isfinite(metrics["mIoU"]) and math.isfinite(metrics["test_mIoU"])
    cfg = Config.fromfile(tmp_path / "run/config.py")
    dialect = "minus_one_one" if "GaussianCross" in str(path) else "zero_one"
    assert input_convention(cfg).color == dialect


# ---- the dialects, in files of our own

POINTCEPT_LIKE = """
    from pointcept.datasets.preprocessing.scannet.meta_data.scannet200_constants import (
        CLASS_LABELS_200,
    )

    _base_ = ["../_base_/runtime.py"]
    enable_amp = True
    enable_wandb = True
    mix_prob = 0.8
    model = dict(
        type="DefaultSegmentor",
        backbone=dict(type="SpUNet-v1m1", in_channels=6, num_classes=200, base_channels=4, channels=(4, 4, 4, 4), layers=(1, 1, 1, 1)),
        criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
    )
    optimizer = dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=0.0001, nesterov=True)
    scheduler = dict(type="PolyLR")
    dataset_type = "ScanNet200Dataset"
    data_root = "data/scannet"
    data = dict(
        num_classes=200,
        ignore_index=-1,
        names=CLASS_LABELS_200,
        train=dict(
            type=dataset_type, split="train", data_root=data_root, la_file="data/scannet/tasks/points/points20", ignore_index=-1,
            transform=[
                dict(type="CenterShift", apply_z=True),
                dict(type="GridSample", grid_size=0.02, hash_type="fnv", mode="train", return_grid_coord=True),
                dict(type="SphereCrop", point_max=300, mode="random"),
                dict(type="NormalizeColor"),
                dict(type="ShufflePoint"),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal")),
            ],
            test_mode=False,
        ),
        val=dict(
            type=dataset_type, split="val", data_root=data_root,
            transform=[
                dict(type="Copy", keys_dict={"segment": "origin_segment"}),
                dict(type="GridSample", grid_size=0.02, hash_type="fnv", mode="train", return_grid_coord=True, return_inverse=True),
                dict(type="NormalizeColor"),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "segment", "origin_segment", "inverse"), feat_keys=("color", "normal")),
            ],
            test_mode=False,
        ),
    )
"""
GAUSSIANCROSS_LIKE = """
    _base_ = ["../_base_/runtime.py"]
    num_worker = 2 * 0
    enable_amp = True
    evaluate = True
    if evaluate:
        evaluate_interval = [(1, 2), (3, 1)]
    model = dict(
        type="DefaultSegmentorV2", num_classes=13, backbone_out_channels=4, freeze_backbone=True,
        backbone=dict(type="SpUNet-v1m1", in_channels=6, num_classes=0, base_channels=4, channels=(4, 4, 4, 4), layers=(1, 1, 1, 1)),
        criteria=[dict(type="CrossEntropyLoss", ignore_index=-1), dict(type="LovaszLoss", mode="multiclass", ignore_index=-1)],
    )
    optimizer = dict(type="AdamW", lr=0.003)
    scheduler = dict(type="OneCycleLR", max_lr=optimizer["lr"])
    data = dict(
        num_classes=13,
        ignore_index=-1,
        train=dict(
            type="S3DISDataset", split=("Area_1", "Area_2"), data_root="data/s3dis",
            transform=[
                dict(type="ToTensor"),
                dict(type="CenterShift", apply_z=True),
                dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
                dict(type="ChromaticJitter", p=0.95, std=0.05),
                dict(type="GridSample", grid_size=0.02, mode="train", return_grid_coord=True, keys=("coord", "color", "normal", "segment")),
                dict(type="NormalizeColor"),
                dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal")),
            ],
        ),
        val=dict(
            type="S3DISDataset", split="Area_5", data_root="data/s3dis",
            transform=[
                dict(type="ToTensor"),
                dict(type="Copy", keys_dict={"coord": "origin_coord", "segment": "origin_segment"}),
                dict(type="GridSample", grid_size=0.02, mode="train", return_grid_coord=True),
                dict(type="NormalizeColor"),
                dict(
                    type="Collect",
                    keys=("coord", "grid_coord", "origin_coord", "segment", "origin_segment"),
                    offset_keys_dict=dict(offset="coord", origin_offset="origin_coord"),
                    feat_keys=("color", "normal"),
                ),
            ],
        ),
        test=dict(),
    )
    hooks = [
        dict(type="CheckpointLoader", keywords="module.", replacement="module."),
        dict(type="CustomIterationTimer", warmup_iter=2),
        dict(type="CustomInformationWriter", interval=50, key=("loss")),
        dict(type="CustomSemSegEvaluator"),
        dict(type="CustomCheckpointSaver", save_freq=None),
    ]
"""
RUNTIME = """
    weight = None
    save_path = "exp/default"
    enable_amp = False
    amp_dtype = "float16"
    enable_wandb = False
    hooks = [
        dict(type="CheckpointLoader"),
        dict(type="ModelHook"),
        dict(type="IterationTimer", warmup_iter=2),
        dict(type="InformationWriter"),
        dict(type="SemSegEvaluator"),
        dict(type="CheckpointSaver", save_freq=None),
        dict(type="PreciseEvaluator", test_last=False),
    ]
    train = dict(type="DefaultTrainer")
"""


@pytest.fixture
def write(tmp_path):
    def make(name: str, text: str) -> Path:
        for file, content in (("_base_/runtime.py", RUNTIME), (f"scannet/{name}.py", text)):
            path = tmp_path / "configs" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(content))
        return path

    return make


@pytest.fixture
def no_report(monkeypatch):
    from pointcept3m.engines.hooks import report

    monkeypatch.setattr(report, "write_report", lambda folder: folder)


def test_pointcepts_dialect(data, write, tmp_path, no_report, monkeypatch):
    """Labels by import from `pointcept`, few points shuffled, float16 and wandb without a GPU and an account."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    path = write("pc", POINTCEPT_LIKE)
    assert Config.fromfile(path).data.names[:3] == ("wall", "chair", "floor")
    metrics = run(path, tmp_path / "run")["metrics"]
    assert math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["mIoU"])
    log = (tmp_path / "run/train.log").read_text()
    assert "so nothing is sent" in log and "colours in 0..1" in log
    assert torch.cuda.is_available() or "on this CPU the run computes in float32" in log


def test_gaussiancross_dialect(data, write, tmp_path, no_report):
    """ToTensor first, GridSample(keys=...), Custom hooks, and predictions of raw points by the nearest one."""
    metrics = run(write("gc", GAUSSIANCROSS_LIKE), tmp_path / "run", epoch=3, eval_epoch=3)["metrics"]
    assert math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["mIoU"])
    log = (tmp_path / "run/train.log").read_text()
    assert "colours in -1..1" in log
    # evaluate_interval = [(1, 2), (3, 1)]: rounds 2 and 3, not 1; each on all 1,200 points of the room
    assert log.count("validation: ") == 2 and "evaluate_interval" not in log
    confusion = [line for line in log.splitlines() if "scored on" in line]
    assert all("raw points" in line for line in confusion), confusion


def test_raw_points_take_the_prediction_of_the_nearest():
    from pointcept3m.engines.hooks.evaluator import raw_predictions

    batch = dict(
        coord=torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0], [2, 0, 0]]),
        offset=torch.tensor([2, 4]),
        segment=torch.zeros(4, dtype=torch.long),
        origin_coord=torch.tensor([[0.9, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [1.9, 0, 0], [0.9, 0, 0]]),
        origin_offset=torch.tensor([2, 5]),
        origin_segment=torch.arange(5),
    )
    pred, target = raw_predictions(torch.tensor([10, 11, 20, 21]), batch)
    assert pred.tolist() == [11, 10, 20, 21, 20] and target.tolist() == [0, 1, 2, 3, 4]


# ---- our own


@pytest.mark.parametrize("path", OURS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_our_config_is_sound(path):
    """It loads, feeds one input everywhere, and its backbone and input are those of the pretraining that it starts from."""
    cfg = with_defaults(Config.fromfile(path))
    pretraining = with_defaults(Config.fromfile(CONFIGS / "gaussiancross/scannet.py"))
    check_sections(cfg)
    known, ours = input_convention(pretraining), input_convention(cfg)
    assert (ours.color, ours.features) == (known.color, known.features) == ("minus_one_one", ("color", "normal"))
    assert ours.grid_size == (0.025 if "pointcontrast" in path.stem else known.grid_size)
    backbone = cfg.model.backbone
    if backbone.type == "SpUNet-v1m1":  # tests/test_configs.py looks at the others
        assert {**backbone, "num_classes": 0} == pretraining.model.backbone
    assert cfg.epoch % cfg.eval_epoch == 0
    head = cfg.model.get("num_classes") or cfg.model.get("semantic_num_classes")
    head = head or backbone.get("num_classes") or backbone.get("out_channels")
    if "pretrain" not in path.stem:
        assert head == cfg.data.num_classes == len(cfg.data["names"])
        rates = cfg.scheduler.max_lr
        assert (rates[0] if isinstance(rates, list) else rates) == cfg.optimizer.lr
    if "lin" in path.stem or "-ft" in path.stem:  # nobody shall probe random weights unknowingly
        assert cfg.weight == "exp/gaussiancross/scannet/model/model_last.pth"
    assert cfg.model.get("freeze_backbone", False) == ("lin" in path.stem)


# GaussianCross's released configurations: batch, lr, epochs, points of a sample (its Tables 1 to 4).
RECIPES = {
    "scannet/semseg-spunet-v1m1-0-base": (32, 0.005, 800, 102400),
    "scannet/semseg-spunet-v1m1-1-lin": (32, 0.005, 800, 102400),
    "scannet/semseg-spunet-v1m1-2-efficient-la20": (24, 0.003, 800, 102400),
    "scannet/semseg-spunet-v1m1-2-efficient-lr1": (24, 0.003, 800, 102400),
    "scannet200/semseg-spunet-v1m1-0-base": (32, 0.005, 800, 100000),
    "scannet200/semseg-spunet-v1m1-1-lin": (32, 0.005, 800, 102400),
    "s3dis/semseg-spunet-v1m1-0-base": (24, 0.003, 3000, 204800),
    "s3dis/semseg-spunet-v1m1-1-lin": (24, 0.003, 3000, 204800),
    "scannet/insseg-pointgroup-v1m1-0-spunet-base": (12, 0.006, 800, None),
    "scannet/insseg-pointgroup-v1m2-0-spunet-base": (12, 0.006, 800, None),
    "scannet200/insseg-pointgroup-v1m1-0-spunet-base": (24, 0.005, 800, None),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_released_ones(name):
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    chain = {entry.type: entry for entry in cfg.data.train.transform}
    found = (cfg.batch_size, cfg.optimizer.lr, cfg.epoch, chain["SphereCrop"].get("point_max"))
    assert found == RECIPES[name]
    assert ("ElasticDistortion" in chain) == ("s3dis" not in name)
    assert cfg.mix_prob == (0 if "insseg" in name else 0.8) and cfg.optimizer.type == "AdamW"
    assert cfg.model.get("segment_ignore_index") == ((-1, 0, 2) if "scannet200/insseg" in name else (-1, 0, 1) if "insseg" in name else None)


def test_the_area_is_one_option():
    for area in range(1, 7):
        cfg = Config.fromfile(CONFIGS / "s3dis/semseg-spunet-v1m1-1-lin.py", {"area": area, "data_root": "elsewhere"})
        assert cfg.data.val.split == cfg.data.test.split == f"Area_{area}" and cfg.data.train.data_root == "elsewhere"
        assert sorted([*cfg.data.train.split, cfg.data.val.split]) == [f"Area_{n}" for n in range(1, 7)]
    cfg = Config.fromfile(CONFIGS / "scannet/semseg-spunet-v1m1-2-efficient-la50.py", {"data_root": "elsewhere"})
    assert cfg.data.train.la_file == "elsewhere/tasks/points/points50"


SMALL = {"model.backbone.channels": (8, 8, 8, 8), "model.backbone.layers": (1, 1, 1, 1), "model.backbone.base_channels": 8}


def small_backbone(name: str) -> dict:
    """Options that shrink the network of one of our configs."""
    cfg = Config.fromfile(CONFIGS / name)
    return SMALL | ({"model.backbone_out_channels": 8} if "backbone_out_channels" in cfg.model else {})


@pytest.mark.long
def test_our_configs_run_one_after_the_other(data, tmp_path, no_report):
    """MSC pretrains; probe, few labels, fine-tuning and instances start from its backbone, on three data sets."""
    pretrained = tmp_path / "pretrain/model/model_last.pth"
    run(CONFIGS / "scannet/pretrain-msc-v1m1-0-spunet-base.py", tmp_path / "pretrain", **small_backbone("scannet/pretrain-msc-v1m1-0-spunet-base.py"))
    backbone = torch.load(pretrained, weights_only=True)["state_dict"]
    for name in (
        "scannet/semseg-spunet-v1m1-1-lin", "scannet/semseg-spunet-v1m1-4-ft", "scannet/semseg-spunet-v1m1-2-efficient-la20",
        "scannet/semseg-spunet-v1m1-2-efficient-lr10", "scannet/insseg-pointgroup-v1m1-0-spunet-base",
        "scannet/insseg-pointgroup-v1m2-0-spunet-base", "scannet200/semseg-spunet-v1m1-1-lin",
        "scannet200/insseg-pointgroup-v1m1-0-spunet-base", "s3dis/semseg-spunet-v1m1-4-ft",
    ):  # fmt: skip
        path = CONFIGS / f"{name}.py"
        metrics = run(path, tmp_path / name, **small_backbone(f"{name}.py"), weight=str(pretrained), **{"optimizer.lr": 0.0, "scheduler.max_lr": 1e-9})["metrics"]
        assert math.isfinite(metrics["train_loss"]), name
        assert math.isfinite(metrics["test_mIoU"]) if "semseg" in name else "test_AP50" in metrics, name
        state = torch.load(tmp_path / name / "model/model_last.pth", weights_only=True)["state_dict"]
        kernels = [key for key in state if key.startswith("backbone.") and key.endswith("conv1.weight")]
        assert kernels and all(torch.allclose(state[key], backbone[key], atol=1e-5) for key in kernels), name
