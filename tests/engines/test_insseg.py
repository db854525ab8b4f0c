"""InsSegEvaluator and InsSegTester: whole runs, whose scores are computed anew from the files that they leave."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.transforms.compose import Compose
from pointcept3m.engines.testers import TESTERS, InsSegTester
from pointcept3m.models import MODELS
from tests.engines.test_instance_metrics import slow_table

IGNORE = (-1, 0)
NAMES = ["wall", "bed", "chair", "sink"]
KEYS = ("coord", "grid_coord", "segment", "instance", "instance_centroid", "bbox", "name")


def raw_scene(index: int) -> dict:
    """A wall (0), boxes of bed and chair, some points that are nothing; 4 objects of 60 to 260 points, no sink."""
    rng = np.random.default_rng(index)
    coord, segment, instance = [rng.uniform(0, 4, (300, 3)) * [1, 0.05, 1]], [np.zeros(300)], [np.zeros(300)]
    for number, size in enumerate((60, 150, 200, 260)):
        coord.append(np.array([0.6 + number, 1 + rng.random(), 0.3]) + rng.uniform(-0.25, 0.25, (size, 3)))
        segment.append(np.full(size, 1 + rng.integers(2)))
        instance.append(np.full(size, number + 1))
    coord.append(rng.uniform(0, 4, (40, 3)))
    segment.append(np.full(40, -1))
    instance.append(np.full(40, -1))
    coord, segment, instance = (np.concatenate(part) for part in (coord, segment, instance))
    shuffled = rng.permutation(len(coord))
    color = 127.5 + 60 * np.stack([segment, np.sin(3 * segment), np.ones_like(segment)], 1) + rng.normal(0, 5, (len(coord), 3))
    data = dict(coord=coord.astype(np.float32), color=color.clip(0, 255).astype(np.float32))
    data.update(segment=segment.astype(np.int64), instance=instance.astype(np.int64))
    return {**{key: value[shuffled] for key, value in data.items()}, "name": f"scene {index}"}


def transforms(raw: str) -> list:
    """Pointcept's transforms of val data; raw points by nearest neighbour ("nearest"), by cell ("inverse"), or none."""
    copied = {"segment": "origin_segment", "instance": "origin_instance"}
    more = {"nearest": ("origin_coord", *copied.values()), "inverse": ("inverse", *copied.values()), "none": ()}[raw]
    offsets = dict(offset="coord", origin_offset="origin_coord") if raw == "nearest" else dict(offset="coord")
    return [
        dict(type="CenterShift", apply_z=True),
        dict(type="Copy", keys_dict={"coord": "origin_coord", **copied}),
        dict(type="GridSample", grid_size=0.1, mode="train", return_grid_coord=True, return_inverse=True),
        dict(type="CenterShift", apply_z=False),
        dict(type="NormalizeColor"),
        dict(type="InstanceParser", segment_ignore_index=IGNORE, instance_ignore_index=-1),
        dict(type="ToTensor"),
        dict(type="Collect", keys=(*KEYS, *more), offset_keys_dict=offsets, feat_keys=("color", "coord")),
    ]


@DATASETS.register_module("InsSegTestScenes", force=True)
class Scenes(Dataset):
    def __init__(self, first=0, size=4, raw="nearest", labels=True, unlabelled=False):
        self.first, self.size, self.labels, self.unlabelled = first, size, labels, unlabelled
        self.transform = Compose(transforms(raw))

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        data = raw_scene(self.first + index)
        if self.unlabelled:
            data["segment"][:], data["instance"][:] = -1, -1
        data = self.transform(data)
        return data if self.labels else {k: v for k, v in data.items() if "segment" not in k and "instance" not in k}


@MODELS.register_module("InsSegTestBackbone", force=True)
class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, input_dict):
        return self.layers(input_dict["feat"])


def config(save_path, raw="nearest", **changes) -> dict:
    scored = dict(segment_ignore_index=IGNORE, instance_ignore_index=-1)
    cfg = dict(
        save_path=str(save_path),
        seed=1,
        num_worker=0,
        batch_size=2,
        epoch=12,
        eval_epoch=2,
        model=dict(
            type="PG-v1m1",
            backbone=dict(type="InsSegTestBackbone"),
            backbone_out_channels=8,
            semantic_num_classes=4,
            segment_ignore_index=IGNORE,
            cluster_min_points=3,
            cluster_propose_points=5,
            voxel_size=0.15,
        ),
        data=dict(
            num_classes=4,
            ignore_index=-1,
            names=NAMES,
            train=dict(type="InsSegTestScenes", size=8),
            val=dict(type="InsSegTestScenes", first=100, raw=raw),
            test=dict(type="InsSegTestScenes", first=100, raw=raw),
        ),
        optimizer=dict(type="AdamW", lr=0.02),
        scheduler=dict(type="OneCycleLR", max_lr=0.02),
        hooks=[
            dict(type="CheckpointLoader"),
            dict(type="IterationTimer"),
            dict(type="InformationWriter"),
            dict(type="InsSegEvaluator", **scored),
            dict(type="CheckpointSaver"),
            dict(type="PreciseEvaluator"),
        ],
        test=dict(type="InsSegTester", save_predictions=True, **scored),
    )
    return {**cfg, **changes}


def scores_of_files(folder, first=100, ids=None) -> np.ndarray:
    """The AP table of classes 1, 2, 3 from the benchmark's files in `folder` and the scenes' labels."""
    ids = ids or {k: k for k in range(1, 4)}
    scenes = []
    for index in range(first, first + len(list(folder.glob("*.txt")))):
        data = raw_scene(index)
        void = np.isin(data["segment"], IGNORE) | (data["instance"] < 0)
        true = np.where(void, 0, 1000 * data["segment"] + data["instance"])
        lines = [line.split(" ") for line in (folder / f"scene_{index}.txt").read_text().splitlines()]
        masks = [np.array((folder / path).read_text().split(), dtype=int) for path, _, _ in lines]
        assert all(len(mask) == len(true) and set(mask) <= {0, 1} for mask in masks)
        back = {written: k for k, written in ids.items()}
        predictions = [(m != 0, back[int(k)], float(s)) for m, (_, k, s) in zip(masks, lines, strict=True)]
        scenes.append((true, predictions))
    return slow_table(scenes, [1, 2, 3])


def means(table: np.ndarray) -> list[float]:
    return [np.nanmean(table[:, :9]), np.nanmean(table[:, 0]), np.nanmean(table[:, 9])]


@pytest.mark.parametrize("raw", ["nearest", "inverse"])
def test_a_run_scores_what_its_files_say(tmp_path, train, raw):
    trainer = train(config(tmp_path / "run", raw))
    table = scores_of_files(tmp_path / "run/result/instances")
    assert np.nanmean(table[:, 9]) > 0.2 and np.isnan(table[2]).all()
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert found["task"] == "insseg"
    assert [found["metrics"][f"test_{name}"] for name in ("mAP", "AP50", "AP25")] == pytest.approx(means(table), abs=1e-14)
    assert set(found["per_class"]) == {"bed", "chair", "sink"} and found["per_class"]["sink"]["ap50"] is None
    assert found["per_class"]["chair"]["ap50"] == pytest.approx(table[1, 0], abs=1e-14)
    assert {"val_loss", "val_seg_loss", "val_bias_l1_loss", "val_bias_cosine_loss"} <= set(found["metrics"])
    # The best epoch's weights are tested, so the test's AP50 is the metric that chose them.
    assert trainer.best_metric_value == found["metrics"]["test_AP50"] and trainer.model.training
    log = (tmp_path / "run/train.log").read_text()
    assert "best AP50 so far" in log and "sink" in log
    number = sum(len(raw_scene(100 + i)["coord"]) for i in range(4))
    source = {"nearest": "the nearest point that the grid keeps", "inverse": "its voxel"}[raw]
    points = f"all {number:,} raw points (those without a label too), each with the prediction of {source}"
    words = f"one forward a scene, no votes, scored on {points}"
    assert found["protocol"] == dict(val=words, test=words) and log.count(f"({words})") == 3
    assert re.search(r"peak memory [\d,]+ MiB.* so far with batch_size_test 1; 4 scenes", log)


def test_batches_of_any_size_score_the_same(tmp_path, train):
    cfg = config(tmp_path / "run", epoch=2, eval_epoch=1)
    trainer = train(cfg)
    evaluator = next(hook for hook in trainer.hooks if hook.sets_metric)
    scores = []
    for size in (1, 3):
        trainer.runtime = type(trainer.runtime)(**{**vars(trainer.runtime), "batch_size_val": size})
        trainer.val_loader = trainer.build_val_loader()
        scores.append(evaluator.evaluate())
    assert [scores[1][k] for k in ("mAP", "AP50", "AP25")] == [scores[0][k] for k in ("mAP", "AP50", "AP25")]
    assert scores[0]["AP25"] > 0


def test_processes_together_score_what_one_does(tmp_path, train, monkeypatch):
    """What two ranks gather of three scenes and one gives the scores of one process with all four, losses included."""
    from pointcept3m.engines.hooks import insseg

    trainer = train(config(tmp_path / "run", epoch=2, eval_epoch=1))
    evaluator = next(hook for hook in trainer.hooks if hook.sets_metric)
    alone = evaluator.evaluate()
    of_rank = []
    monkeypatch.setattr(insseg.comm, "all_gather", lambda value: of_rank.append(value) or [value])
    batches = list(trainer.val_loader)
    for part in (batches[:3], batches[3:]):
        trainer.val_loader = part
        evaluator.evaluate()
    monkeypatch.setattr(insseg.comm, "all_gather", lambda value: of_rank)
    assert evaluator.evaluate() == pytest.approx(alone, rel=1e-12)


def test_nothing_there_to_find(tmp_path, train):
    """Val data without a true instance: NaN is said, no checkpoint is the best, and the run ends as usual."""
    cfg = config(tmp_path / "run", epoch=2, eval_epoch=2)
    cfg["data"]["val"]["unlabelled"] = cfg["data"]["test"]["unlabelled"] = True
    trainer = train(cfg)
    found = json.loads((tmp_path / "run/metrics.json").read_text())["metrics"]
    assert found["AP50"] is None and found["val_loss"] == 0 and math.isnan(trainer.results["test_mAP"])
    assert "no true instance of at least 100 points" in (tmp_path / "run/train.log").read_text()
    assert not (tmp_path / "run/model/model_best.pth").exists() and (tmp_path / "run/model/model_last.pth").exists()
    cfg = config(tmp_path / "other", epoch=2, eval_epoch=1)
    cfg["data"]["val"]["labels"] = False
    with pytest.raises(KeyError, match="InsSegEvaluator: data.val has no labels"):
        train(cfg)


# ---- the tester by itself


@pytest.fixture
def tester(tmp_path):
    """`tester(raw="nearest", **arguments)`: a tester of an untrained model, all of whose proposals are kept."""

    def build(raw="nearest", data=(), **arguments):
        cfg = config(tmp_path / "run", raw)
        cfg["data"]["test"].update(data)
        torch.manual_seed(0)
        model = MODELS.build(cfg["model"])
        cfg.pop("test")
        return InsSegTester(cfg, model, segment_ignore_index=IGNORE, **arguments)

    return build


def test_files_of_an_earlier_test_are_replaced(tester, tmp_path):
    folder = tmp_path / "run/result/instances"
    (folder / "predicted_masks").mkdir(parents=True)
    for name in ("scene_100.txt", "scene_7.txt", "predicted_masks/scene_100_999.txt"):
        (folder / name).write_text("stale\n")
    (folder / "notes.md").write_text("mine")
    tester(data=dict(size=2), save_predictions=True).test()
    assert sorted(p.name for p in folder.iterdir()) == ["notes.md", "predicted_masks", "scene_100.txt", "scene_101.txt"]
    named = {line.split()[0] for p in folder.glob("*.txt") for line in p.read_text().splitlines()}
    assert named == {f"predicted_masks/{p.name}" for p in (folder / "predicted_masks").iterdir()} and named


def test_class_ids(tester, tmp_path):
    ids = {1: 4, 2: 5, 3: 34}  # ScanNet's
    scores, _ = tester(save_predictions=True, class_ids=[1, 4, 5, 34]).test()
    table = scores_of_files(tmp_path / "run/result/instances", ids=ids)
    assert [scores[name] for name in ("mAP", "AP50", "AP25")] == pytest.approx(means(table), abs=1e-14)
    with pytest.raises(ValueError, match="a class id for each of data.num_classes = 4, got 2"):
        tester(save_predictions=True, class_ids=[1, 4]).test()


def test_the_benchmarks_ids_come_from_the_dataset():
    from pointcept3m.datasets.scannet import ScanNet200Dataset, ScanNetDataset

    assert len(ScanNetDataset.class2id) == 20 and ScanNetDataset.class2id[3] == 4 and len(ScanNet200Dataset.class2id) == 200


def test_scenes_without_labels_are_predicted(tester, tmp_path):
    assert tester(data=dict(labels=False), save_predictions=True, verbose=True).test() == ({}, {})
    assert len(list((tmp_path / "run/result/instances").glob("*.txt"))) == 4


@pytest.mark.parametrize("raw", ["nearest", "inverse", "none"])
def test_which_points_are_scored(tester, raw):
    """All raw points where the samples carry them, the sampled ones else."""
    single = tester(raw)
    batch = next(iter(single.test_loader))
    ((name, instances, segment, instance),) = single.predict(batch)
    wanted = len(batch["coord"]) if raw == "none" else len(raw_scene(100)["coord"])
    assert name == "scene 100" and instances.num_points == len(segment) == len(instance) == wanted
    assert raw == "none" or (segment == raw_scene(100)["segment"]).all()
    assert not math.isnan(tester(raw, min_region_size=30).test()[0]["AP25"])


def test_a_full_disk_keeps_finished_scenes(tester, tmp_path, monkeypatch):
    from pointcept3m.engines.testers import insseg

    real = insseg.atomic_write

    def write(path, function):
        if "scene_101" in str(path):
            raise OSError(28, "No space left on device")
        real(path, function)

    monkeypatch.setattr(insseg, "atomic_write", write)
    with pytest.raises(OSError, match=r"scene scene 101: .*No space left.*the 1 scenes before it are whole in .*instances"):
        tester(save_predictions=True).test()
    assert [path.name for path in (tmp_path / "run/result/instances").glob("*.txt")] == ["scene_100.txt"]
    (tmp_path / "file").write_text("")
    blocked = tester(save_predictions=True)
    blocked.save_path, blocked.model = tmp_path / "file", None  # nothing was forwarded before
    with pytest.raises(OSError, match="nothing can be written to .*file/result/instances"):
        blocked.test()


def test_fragments_are_refused(tester):
    with pytest.raises(ValueError, match="wants whole scenes.*test_mode=False"):
        list(tester().predict(dict(fragment_list=[], segment=torch.zeros(3))))


def test_run_as_a_command_does(tmp_path, train, monkeypatch):
    """A test of its own finds the scores of the training's last test, and its files lie in its own folder."""
    from pointcept3m.engines import report

    monkeypatch.setattr(report, "write_report", lambda folder: folder)
    cfg = config(tmp_path / "run", epoch=2, eval_epoch=1)
    train(cfg)
    inside = json.loads((tmp_path / "run/metrics.json").read_text())["metrics"]
    cfg["weight"] = str(tmp_path / "run/model/model_best.pth")
    scores, _ = TESTERS.build(dict(cfg["test"]), cfg=cfg).run()
    assert scores == {name: inside[f"test_{name}"] for name in ("mAP", "AP50", "AP25")}
    table = scores_of_files(tmp_path / "run/test/result/instances")
    assert scores["AP25"] == pytest.approx(means(table)[2], abs=1e-14)
