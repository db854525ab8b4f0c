"""Labelling by words: tests of scenes on disk computed another way, validation while training, prediction, probes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scores_by_loops import by_loops
from torch import nn

from pointcept3m.engines.hooks.open_vocabulary import OpenVocabularyEvaluator
from pointcept3m.engines.open_vocabulary.ensemble import similarity
from pointcept3m.engines.open_vocabulary.scores import Tally
from pointcept3m.engines.open_vocabulary.vocabulary import build_vocabulary, give_vocabulary
from pointcept3m.engines.testers import TESTERS
from pointcept3m.models import build_model
from pointcept3m.models.builder import MODELS, TEXT_ENCODERS
from pointcept3m.models.text import TextEncoder
from pointcept3m.structures.fused_features import write_features
from pointcept3m.structures.label_sets import label_set

DIM = 6
GRID = 0.1


@TEXT_ENCODERS.register_module(force=True)
class SpelledWords(TextEncoder):
    """A unit vector that depends on the letters of the text."""

    dim, name = DIM, "spelled"

    def embed(self, texts):
        return torch.stack([torch.randn(DIM, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts])


@MODELS.register_module(force=True)
class ColourNet(nn.Module):
    """Features are the input's, through a batch norm: each voxel alone, so that a loop can redo it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch):
        return self.norm(batch["feat"])


# vocabularies


def test_vocabulary_of_a_config():
    cfg = dict(text_encoder=dict(type="SpelledWords"), prompt="a {label} in a scene", data=dict(names=label_set("scannet20").names))
    vocabulary = build_vocabulary(cfg)
    assert vocabulary.labels is label_set("scannet20")
    said = SpelledWords()(["a other in a scene"])[0]
    assert torch.allclose(vocabulary.embedding[19], said, atol=1e-6)
    detailed = build_vocabulary(cfg, "nuscenes16")
    assert detailed.embedding.shape == (43, DIM)
    cosine = torch.randn(5, 43)
    by_class = detailed.of_classes(cosine)
    for k in range(16):
        assert torch.equal(by_class[:, k], cosine[:, detailed.mapping == k].amax(1))
    assert build_vocabulary(cfg, "chair, lamp").labels.names == ("chair", "lamp")
    with pytest.raises(KeyError, match="text_encoder is missing"):
        build_vocabulary(dict(data=cfg["data"]), "chair,lamp")
    with pytest.raises(KeyError, match="data.names is missing"):
        build_vocabulary(dict(text_encoder=cfg["text_encoder"]))
    with pytest.raises(TypeError, match="Linear has classes of its own"):
        give_vocabulary(nn.Linear(2, 2), cfg)


# scenes on disk

NAMES = ["wall", "chair", "lamp", "plant"]


def write_scenes(root, split="val", scenes=2, classes=4, seed=0):
    """Folders with coord, color, segment; several points a voxel, colours that follow the class roughly."""
    for number in range(scenes):
        random = np.random.default_rng(seed + number)
        folder = root / split / f"scene{number}"
        folder.mkdir(parents=True, exist_ok=True)
        count = 150 + 20 * number
        segment = random.integers(-1, classes, count)
        color = 60 * np.stack([segment + 1, (segment * 2) % 4, segment == 1], 1) + random.normal(0, 20, (count, 3))
        np.save(folder / "coord.npy", random.uniform(0, 0.5, (count, 3)).astype(np.float32))
        np.save(folder / "color.npy", color.clip(0, 255).astype(np.uint8))
        np.save(folder / "segment.npy", segment.astype(np.int32))


def write_fused(root, teacher="text", split="val", seed=5, dim=DIM):
    """Fused features of 70 % of the points: the text of the class, and noise."""
    words = SpelledWords()([f"a {name} in a scene" for name in NAMES])
    for folder in sorted((root / split).iterdir()):
        random = np.random.default_rng(seed)
        coord, segment = np.load(folder / "coord.npy"), np.load(folder / "segment.npy")
        mask = random.random(len(coord)) < 0.7
        feature = words[segment.clip(min=0)].numpy() + random.normal(0, 0.5, (len(coord), DIM))
        feature = np.pad(feature, ((0, 0), (0, dim - DIM)))[mask].astype(np.float32)
        path = folder / "features" / f"{teacher}.safetensors"
        write_features(path, feature, mask, teacher, folder.name, coord, storage="float16")


def make_config(root, save_path, **changes):
    """A distilled model of colours; val and test are the same scenes."""
    grid = dict(type="GridSample", grid_size=GRID, return_grid_coord=True, return_inverse=True)
    color, tensor = dict(type="NormalizeColor", mode="zero_one"), dict(type="ToTensor")
    keys = ("coord", "grid_coord", "segment", "origin_segment", "inverse", "name")
    chain = [
        dict(type="Copy", keys_dict={"segment": "origin_segment"}), grid, color, tensor,
        dict(type="Collect", keys=keys, feat_keys=("color",)),
    ]  # fmt: skip
    targets = [grid, dict(type="SampleTargets", num_points=60), color, tensor]
    collected = dict(type="Collect", keys=("coord", "grid_coord", "target_index", "target_text"), feat_keys=("color",))
    labelled = dict(type="DefaultDataset", split="val", data_root=str(root), transform=chain)
    cfg = dict(
        save_path=str(save_path), seed=3, num_worker=0, batch_size=2, epoch=2, eval_epoch=2,
        text_encoder=dict(type="SpelledWords"), prompt="a {label} in a scene",
        model=dict(type="CUA-O3D-v1m1", backbone=dict(type="ColourNet"), backbone_out_channels=3, heads=dict(text=dict(dim=DIM), other=dict(dim=4))),
        data=dict(
            num_classes=4, ignore_index=-1, names=NAMES, val=labelled, test=labelled,
            train=dict(type="DefaultDataset", split="val", data_root=str(root), feature_teachers=("text",), transform=[*targets, collected]),
        ),
        optimizer=dict(type="AdamW", lr=0.01), scheduler=dict(type="OneCycleLR", max_lr=0.01),
        hooks=[dict(type="CheckpointLoader"), dict(type="InformationWriter"), dict(type="OpenVocabularyEvaluator"), dict(type="CheckpointSaver")],
    )  # fmt: skip
    cfg.update(changes)
    return cfg


@pytest.fixture
def scenes(tmp_path):
    write_scenes(tmp_path / "data")
    write_fused(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def model(scenes):
    model = build_model(make_config(scenes, "unused")["model"])
    model.backbone.norm.running_mean.copy_(torch.tensor([0.5, 0.3, 0.1]))
    model.backbone.norm.running_var.copy_(torch.tensor([0.2, 0.1, 0.3]))
    return model.eval()


def make_tester(scenes, tmp_path, model, changes=None, **arguments):
    cfg = make_config(scenes, tmp_path / "run", **(changes or {}))
    return TESTERS.build(dict(type="OpenVocabularyTester", **arguments), cfg=cfg, model=model)


def features_by_loop(model, folder):
    """Distilled features [N, D] of each raw point, those of the first point of its voxel, and the fused ones with their mask."""
    coord, color = np.load(folder / "coord.npy"), np.load(folder / "color.npy")
    first = {}
    cells = [tuple(cell) for cell in np.floor(coord.astype(np.float64) / GRID).astype(int)]
    for row, cell in enumerate(cells):
        first.setdefault(cell, row)
    with torch.no_grad():
        own = model.heads["text"](model.backbone.norm(torch.from_numpy(color[[first[cell] for cell in cells]] / 255.0).float()))
    from pointcept3m.structures.fused_features import open_features

    file = open_features(folder / "features/text.safetensors")
    fused = torch.zeros(len(coord), DIM)
    fused[torch.from_numpy(file.mask)] = torch.from_numpy(file.read_all())
    return own, fused, torch.from_numpy(file.mask)


def test_all_kinds_of_a_test_are_those_of_loops(scenes, tmp_path, model):
    tester = make_tester(scenes, tmp_path, model, feature="all", repeats=1, augment=False)
    scores, per_class = tester.test()
    text = SpelledWords()([f"a {name} in a scene" for name in NAMES])
    preds = {kind: [] for kind in ("3d", "2d", "2d3d_max", "2d3d_mean")}
    targets = []
    for folder in sorted((scenes / "val").iterdir()):
        own, fused, mask = features_by_loop(model, folder)
        for o, f, m in zip(own, fused, mask, strict=True):
            o, f = o / o.norm(), f / f.norm() if m else f
            a, b = o @ text.T, f @ text.T
            preds["3d"].append(int(a.argmax()))
            preds["2d"].append(int(b.argmax()) if m else -1)
            preds["2d3d_max"].append(int((b if m and b.max() > a.max() else a).argmax()))
            preds["2d3d_mean"].append(int(((o + f) @ text.T).argmax()))
        targets += np.load(folder / "segment.npy").tolist()
    for kind, pred in preds.items():
        wanted = by_loops(pred, targets, range(4))
        assert (scores[f"{kind}_mIoU"], scores[f"{kind}_mAcc"]) == pytest.approx(wanted), kind
        saved = [np.load(tmp_path / f"run/result/{kind}/scene{number}_pred.npy") for number in (0, 1)]
        assert np.concatenate(saved).tolist() == pred
        assert set(per_class["lamp"]) >= {f"{kind}_iou", f"{kind}_acc"}
    assert len({round(scores[f"{kind}_mIoU"], 6) for kind in preds}) == 4
    assert {name.split("_", 1)[0] for name in scores} == {"3d", "2d", "2d3d"}, "no score without the kind that it is of"
    record = json.loads((tmp_path / "run/result/confusion.json").read_text())
    assert record["kind"] == "3d" and record["names"] == NAMES and set(record["kinds"]) == set(preds)
    labelled = sum(t >= 0 for t in targets)
    assert np.sum(record["confusion"]) == labelled and np.sum(record["kinds"]["2d"]["missed"]) == sum(
        p == -1 and t >= 0 for p, t in zip(preds["2d"], targets, strict=True)
    )
    first, *rest = tester.protocol.split("; ")
    assert first == f"4 classes (data.names) said as 'a {{label}} in a scene' to spelled, scored on {labelled} raw points"
    assert [words.partition(":")[0] for words in rest] == list(preds) and "that no camera saw are errors" in rest[1] and rest[0].endswith("1 view")
    assert rest[3].endswith("each brought to length 1")


def test_repeats_are_seeded_and_add_up(scenes, tmp_path, model):
    def run(seed, repeats=3):
        tester = make_tester(scenes, tmp_path, model, dict(seed=seed), feature="all", repeats=repeats)
        return tester.test()[0], tester

    first, tester = run(3)
    assert run(3)[0] == first, "the same seed gives the same scores"
    assert run(4)[0]["3d_mIoU_view_std"] != first["3d_mIoU_view_std"]
    assert first["3d_mIoU_view_std"] > 0 and "2d_mIoU_view_std" not in first
    assert "cosines of 3 views added up, turned and scaled at random" in tester.protocol

    # the views' own features, taken from the loader, give the same sums
    views = make_tester(scenes, tmp_path, model, feature="3d", repeats=3)
    text, tally, single = views.vocabulary.embedding, Tally(views.labels), [Tally(views.labels) for _ in range(3)]
    segment = total = None
    with torch.no_grad():
        for (sample,) in views.test_loader:
            number, of = sample["view"]
            segment, total = (sample["segment"], 0) if number == 0 else (segment, total)
            cosine = similarity(model.embed(sample["fragment"]), text)[sample["inverse"]]
            single[number].add(cosine, segment)
            total = total + cosine
            if number == of - 1:
                tally.add(total, segment)
    assert tally.scores()[0]["mIoU"] == pytest.approx(first["3d_mIoU"])
    each = [one.scores()[0]["mIoU"] for one in single]
    assert first["3d_mIoU_view_mean"] == pytest.approx(np.mean(each)) and first["3d_mIoU_view_std"] == pytest.approx(np.std(each, ddof=1))


def test_two_dimensional_features_need_no_weight(scenes, tmp_path, model):
    tester = make_tester(scenes, tmp_path, None, feature="2d")
    assert tester.model is not model and not list(tester.model.parameters())
    scores, _ = tester.test()
    assert scores["2d_mIoU"] == make_tester(scenes, tmp_path, model, feature="all", repeats=1).test()[0]["2d_mIoU"]
    drop = make_tester(scenes, tmp_path, None, feature="2d", unseen="drop").test()[0]
    assert drop["2d_mIoU"] > scores["2d_mIoU"] and drop["2d_mAcc"] == scores["2d_mAcc"]


def test_another_label_set_and_data_set(tmp_path, model):
    """Classes come from the label set, not from the training: 20 of them, the config says 4."""
    write_scenes(tmp_path / "other", "test", classes=20)
    section = {**make_config(tmp_path / "other", "x")["data"]["test"], "split": "test"}
    cfg = make_config(tmp_path / "other", tmp_path / "run")
    cfg["data"]["test"] = section
    tester = TESTERS.build(dict(type="OpenVocabularyTester", label_set="scannet20", split="B12/N7", repeats=1), cfg=cfg, model=model)
    scores, per_class = tester.test()
    assert list(per_class) == list(label_set("scannet20").names)
    assert {"3d_hIoU", "3d_mIoU_base", "3d_mIoU_novel", "3d_f-mIoU"} <= set(scores)
    assert np.load(tmp_path / "run/result/scene0_pred.npy").max() > 3
    with pytest.raises(ValueError, match="scene0.*label 4, 5, 6, 7, 8"):
        TESTERS.build(dict(type="OpenVocabularyTester", repeats=1), cfg=cfg, model=model).test()


def test_labels_of_a_data_set_that_tells_its_classes(scenes, tmp_path, model):
    """RoomsDataset knows what its labels mean: they are the default, and no other set is scored with them."""
    cfg = make_config(scenes, tmp_path / "run")
    cfg["data"]["test"]["type"] = "RoomsDataset"

    def build(**arguments):
        return TESTERS.build(dict(type="OpenVocabularyTester", **arguments), cfg=cfg, model=model)

    assert build().labels is label_set("rooms") and len(cfg["data"]["names"]) == 4
    assert build(label_set="rooms").labels is label_set("rooms")
    reworded = build(label_set=[name.replace("sofa", "couch") for name in label_set("rooms").names])
    assert "couch" in reworded.labels.names and len(reworded.labels) == 19
    with pytest.raises(ValueError, match="'matterport40' has 40 classes.*RoomsDataset are those of 'rooms', 19"):
        build(label_set="matterport40")
    with pytest.raises(ValueError, match="'labels' has 2 classes"):
        build(label_set="chair,lamp")


def test_a_section_with_a_test_cfg_is_read_too(scenes, tmp_path, model):
    """ScanNet's configs cut scenes into fragments for votes; an open-vocabulary test takes their grid and last transforms."""
    cfg = make_config(scenes, tmp_path / "run")
    plain = TESTERS.build(dict(type="OpenVocabularyTester", repeats=2), cfg=cfg, model=model).test()[0]
    post = [dict(type="NormalizeColor", mode="zero_one"), dict(type="ToTensor"), dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color",))]
    cfg["data"]["test"] = dict(
        type="DefaultDataset", split="val", data_root=str(scenes), test_mode=True, transform=[],
        test_cfg=dict(voxelize=dict(type="GridSample", grid_size=GRID, mode="test", return_grid_coord=True), crop=None, post_transform=post, aug_transform=[[]]),
    )  # fmt: skip
    assert TESTERS.build(dict(type="OpenVocabularyTester", repeats=2), cfg=cfg, model=model).test()[0] == plain


def test_a_run_from_a_weight(scenes, tmp_path, model):
    weight = tmp_path / "weight.pth"
    torch.save(dict(state_dict=model.state_dict()), weight)
    tester = make_tester(scenes, tmp_path, None, dict(weight=str(weight)), repeats=1)
    scores, _ = tester.run()
    assert scores == make_tester(scenes, tmp_path, model, repeats=1).test()[0]
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["metrics"]["3d_mIoU"] == scores["3d_mIoU"] and "; 3d: the distilled features of each point's voxel, 1 view, turned" in written["protocol"]["test"]
    assert "3d: mIoU" in (tmp_path / "run/report.html").read_text()


def test_bad_input_of_a_test(scenes, tmp_path, model):
    def build(**arguments):
        return make_tester(scenes, tmp_path, model, **arguments)

    for arguments, error, words in (
        (dict(feature="4d"), ValueError, "feature must be one of 3d, 2d, 2d3d, all"),
        (dict(rule="best"), ValueError, "rule must be one of max, mean"),
        (dict(repeats=0), ValueError, "repeats must be at least 1"),
        (dict(augment=False), ValueError, "makes 5 equal views"),
        (dict(absent="no"), ValueError, "absent must be"),
        (dict(label_set="scannet21"), ValueError, "did you mean.*'scannet20'"),
        (dict(label_set=""), ValueError, "no label"),
        (dict(label_set="chair,chair"), ValueError, "twice: chair"),
        (dict(split="B15/N4"), KeyError, "'data.names' has no base/novel split"),
        (dict(label_sett="x"), TypeError, "did you mean 'label_set'"),
    ):
        with pytest.raises(error, match=words):
            build(**arguments)
    with pytest.raises(FileNotFoundError, match="no features of teacher 'texts'.*did you mean 'text'"):
        build(feature="2d", teacher="texts").test()
    unseen = build(feature="all", teacher="texts", without_features="unseen", repeats=1).test()[0]
    assert unseen["2d_mIoU"] == 0 and unseen["2d3d_max_mIoU"] == unseen["3d_mIoU"]
    write_fused(scenes, "wide", dim=DIM + 1)
    with pytest.raises(ValueError, match=f"have {DIM + 1} channels, the text encoder gives {DIM}"):
        build(feature="2d", teacher="wide").test()
    with pytest.raises(TypeError, match="a Linear is no distilled model"):
        make_tester(scenes, tmp_path, nn.Linear(2, 2))
    coord = np.load(scenes / "val/scene1/coord.npy")
    np.save(scenes / "val/scene1/coord.npy", coord + np.float32(0.25))
    with pytest.raises(ValueError, match="scene 'scene1'.*coordinates differ"):
        build(feature="2d").test()
    with torch.no_grad():
        model.heads["text"].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="scene scene0: the model's features are not finite"):
        build().test()


# while training


def test_training_is_scored_in_eval_mode_and_picks_the_best(scenes, tmp_path, train):
    from pointcept3m.engines.hooks import HOOKS
    from pointcept3m.utils.hook import HookBase

    seen = []

    @HOOKS.register_module("WatchStatistics", force=True)
    class WatchStatistics(HookBase):
        """Stands around the evaluator: what it leaves behind must be what it found."""

        def after_epoch(self):
            model = self.trainer.bare_model
            seen.append((model.training, model.vocabulary, {key: value.clone() for key, value in model.state_dict().items()}))

    cfg = make_config(scenes, tmp_path / "run")
    cfg["model"]["heads"].pop("other")
    cfg["hooks"][2:3] = [dict(type="WatchStatistics"), dict(type="OpenVocabularyEvaluator"), dict(type="WatchStatistics")]
    trainer = train(cfg)
    assert len(seen) == 4
    for before, after in (seen[:2], seen[2:]):
        assert before[0] and after[0] and after[1] is None
        assert all(torch.equal(value, after[2][key]) for key, value in before[2].items()), "statistics of batch norms stayed"
    # val draws a point of each voxel at random, so the same hook, asked again, is near what a test finds
    model = trainer.bare_model
    hook = OpenVocabularyEvaluator()
    hook.trainer = trainer
    again = hook.evaluate()
    assert again["mIoU"] == pytest.approx(trainer.results["mIoU"], abs=1e-9)
    tested = make_tester(scenes, tmp_path / "test", model, repeats=1, augment=False).test()[0]
    assert tested["3d_mIoU"] == pytest.approx(trainer.results["mIoU"], abs=0.1)
    assert set(trainer.per_class) == set(NAMES) and (tmp_path / "run/model/model_best.pth").is_file()
    assert "said as 'a {label} in a scene' to spelled" in trainer.comm_info["protocol"]["val"]


def test_the_hook_refuses_before_work_is_lost(scenes, tmp_path, train):
    cfg = make_config(scenes, tmp_path / "run")
    cfg["hooks"][2]["label_set"] = "scanet20"
    with pytest.raises(ValueError, match="did you mean 'scannet20'"):
        train(cfg)
    assert not (tmp_path / "run/model/model_last.pth").exists()
    with pytest.raises(ValueError, match="absent must be"):
        OpenVocabularyEvaluator(absent="never")


# prediction


def test_predict_with_labels_of_ones_own(scenes, tmp_path, model):
    from pointcept3m.engines.predict.command import predict_main
    from pointcept3m.engines.predict.predictor import load
    from pointcept3m.utils.config import Config

    weight, cfg = tmp_path / "weight.pth", Config(make_config(scenes, "unused"))
    torch.save(dict(state_dict=model.state_dict(), config=cfg.to_dict() if hasattr(cfg, "to_dict") else dict(cfg)), weight)
    config = tmp_path / "config.py"
    config.write_text("\n".join(f"{key} = {value!r}" for key, value in make_config(scenes, str(tmp_path / "run")).items()))
    scan = scenes / "val/scene0"
    predict_main([str(scan), "--weight", str(weight), "--config", str(config), "--labels", "sofa,lamp", "--out", str(tmp_path / "pred.npz"), "--unit", "m", "--up-axis", "z"])
    with np.load(tmp_path / "pred.npz") as found:
        assert found["names"].tolist() == ["sofa", "lamp"] and set(found["label"].tolist()) <= {0, 1}
        label = found["label"]
    text = SpelledWords()(["a sofa in a scene", "a lamp in a scene"])
    own, _, _ = features_by_loop(model, scan)
    agree = np.mean(similarity(own, text).argmax(1).numpy() == label)  # predict lets the points of a voxel take turns
    assert agree > 0.7
    default = load(weight, config)
    assert default.names == NAMES and "to spelled" in str(default)
    with pytest.raises(ValueError, match="twice: lamp"):
        load(weight, config, labels="lamp,lamp")


def test_labels_are_refused_by_a_model_with_classes(tmp_path, toy):
    from pointcept3m.engines.predict.predictor import load

    cfg = toy.toy_config(tmp_path / "run")
    weight, config = tmp_path / "weight.pth", tmp_path / "config.py"
    torch.save(dict(state_dict=build_model(cfg["model"]).state_dict()), weight)
    config.write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.items()))
    with pytest.raises(ValueError, match="learnt 3 classes and knows no others"):
        load(weight, config, labels="chair,lamp")


# probes


def test_a_probe_is_trained_and_tested_by_the_usual_hooks(scenes, tmp_path, train):
    cfg = make_config(scenes, tmp_path / "distil", hooks=[dict(type="CheckpointSaver")])
    cfg["model"]["heads"] = dict(text=dict(dim=DIM))
    train(cfg)
    weight = tmp_path / "distil/model/model_last.pth"
    settings = {**cfg["model"], "type": "CUA-O3D-Probe", "num_classes": 4, "criteria": [dict(type="CrossEntropyLoss", ignore_index=-1)]}
    val = cfg["data"]["val"]
    labelled = {**val, "transform": [step for step in val["transform"] if step["type"] != "Copy"]}
    labelled["transform"][-1] = dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color",))
    probe = make_config(scenes, tmp_path / "probe", weight=str(weight), model=settings, epoch=120, eval_epoch=1)
    probe["optimizer"]["lr"] = probe["scheduler"]["max_lr"] = 0.3
    probe["data"]["train"] = labelled
    probe["hooks"] = [dict(type="CheckpointLoader"), dict(type="SemSegEvaluator"), dict(type="CheckpointSaver")]
    trainer = train(probe)
    assert trainer.results["mIoU"] > 0.25, "colours follow classes, so a layer on them is far above the 0.14 of chance"
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (weight, tmp_path / "probe/model/model_last.pth"))
    assert all(torch.equal(after[key], value) for key, value in before.items() if key.startswith(("backbone.", "heads.")))


# several processes

SCRIPT = """
import json, sys
sys.path.insert(0, {here!r})
import test_open_vocabulary as here
from pointcept3m.engines.testers import TESTERS
from pointcept3m.utils import comm

comm.init_process_group(deadline=60)
cfg = here.make_config({root!r}, {folder!r}, weight={weight!r})
tester = TESTERS.build(dict(type="OpenVocabularyTester", feature="all", repeats=2), cfg=cfg)
print("SCORES", json.dumps(tester.test()[0]), tester.protocol, flush=True)
comm.destroy_process_group()
"""


@pytest.mark.long
def test_two_processes_are_one(scenes, tmp_path, model):
    write_scenes(scenes, scenes=3)
    write_fused(scenes)
    weight = str(tmp_path / "weight.pth")
    torch.save(dict(state_dict=model.state_dict()), weight)
    tester = make_tester(scenes, tmp_path, None, dict(weight=weight), feature="all", repeats=2)
    scores, _ = tester.test()
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), root=str(scenes), folder=str(tmp_path / "two"), weight=weight))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    store = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes = [subprocess.Popen([sys.executable, str(script)], env={**store, "RANK": str(rank)}, **pipes) for rank in (0, 1)]
    try:
        outputs = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("SCORES")]
    assert lines == [f"SCORES {json.dumps(scores)} {tester.protocol}"] * 2, outputs
    one, two = (json.loads((tmp_path / name / "result/confusion.json").read_text()) for name in ("run", "two"))
    assert one["kinds"] == two["kinds"]
    assert sorted(path.name for path in (tmp_path / "two/result/2d").iterdir()) == [f"scene{number}_pred.npy" for number in range(3)]
