"""Tests by voting: every point gets its fragments' votes, nothing old is reused, and the scores are a run's own."""

import json
import re

import numpy as np
import pytest
import torch

from pointcept3m.engines.metrics import segmentation_scores
from pointcept3m.engines.protocol import Through, classes_counted, points_scored
from pointcept3m.engines.testers import TESTERS, SemSegTester
from pointcept3m.models.builder import build_model


@pytest.fixture
def run(tmp_path, toy, train):
    train(toy.toy_config(tmp_path / "run", epoch=10))
    return tmp_path / "run"


def make_tester(toy, run, **changes) -> SemSegTester:
    cfg = {**toy.toy_config(run, weight=str(run / "model/model_best.pth")), **changes}
    return TESTERS.build(dict(type="SemSegTester"), cfg=cfg)


def scene_of(tester) -> dict:
    """The first sample of its data set, whole."""
    return tester.test_loader.dataset.dataset.dataset[0]


def test_a_test_run_leaves_its_files_and_spares_the_trainings(toy, run):
    before = (run / "metrics.json").read_text()
    scores, per_class = make_tester(toy, run).run()
    written = json.loads((run / "test/metrics.json").read_text())
    assert written["metrics"] == scores and written["per_class"] == per_class and written["split"] == "test"
    assert (run / "metrics.json").read_text() == before and (run / "test/config.py").is_file()
    assert np.load(run / "test/result/test0_pred.npy").shape == (16,)
    assert written["protocol"] == {"test": "vote: 3 fragments a scene, softmax added up at each point, scored on 48 raw points, all 3 classes counted"}
    confusion = np.array(json.loads((run / "test/result/confusion.json").read_text())["confusion"])
    assert confusion.sum() == 48 and scores["allAcc"] == pytest.approx(np.trace(confusion) / 48)
    facts = json.loads((run / "test/run.json").read_text())
    assert facts["seed"] == 3 and facts["num_parameters"] > 0 and facts["seconds"] > 0 and "pytest" in facts["command"]
    page = (run / "test/report.html").read_text()
    assert "mIoU" in page and "scored on 48 raw points" in page and "Not in this run folder" not in page


def test_old_predictions_are_not_reused(toy, run, tmp_path):
    """Pointcept reads result/<name>_pred.npy back if it is there, whoever wrote it: then all weights score the same."""
    honest, _ = make_tester(toy, run, save_path=str(tmp_path / "a")).run()
    folder = tmp_path / "b" / "result"
    folder.mkdir(parents=True)
    for i in range(3):
        np.save(folder / f"test{i}_pred.npy", np.full(16, 2, dtype=np.int32))
    again, _ = make_tester(toy, run, save_path=str(tmp_path / "b")).run()
    assert again == honest and len(set(np.load(folder / "test0_pred.npy"))) > 1


def test_votes_are_sums_of_softmax(toy, run):
    """A fragment votes on its rows; the toy's fragments are the even rows, the odd rows, and all of them."""
    part = make_tester(toy, run)
    sample = scene_of(part)
    pred, target = part.predict(sample, 3)
    votes = torch.zeros(16, 3)
    with torch.no_grad():
        for fragment in sample["fragment_list"]:
            votes[fragment["index"]] += part.model.eval()(fragment)["seg_logits"].softmax(-1)
    assert torch.equal(pred, votes.argmax(1)) and torch.equal(target, sample["segment"])


def test_fragments_in_one_batch_change_nothing(toy, run, tmp_path):
    cfg = toy.toy_config(tmp_path / "x", weight=str(run / "model/model_best.pth"))
    scores = [TESTERS.build(dict(type="SemSegTester", fragment_batch_size=n), cfg=cfg).test()[0] for n in (1, 2, 3)]
    assert scores[0] == scores[1] == scores[2]


def test_point_without_fragment(toy, run):
    part = make_tester(toy, run)
    sample = scene_of(part)
    sample["fragment_list"] = sample["fragment_list"][:1]
    with pytest.raises(ValueError, match="scene test0: 8 of 16 points are in no fragment"):
        part.predict(sample, 3)


def test_predictions_of_raw_points_through_inverse(toy, run):
    part = make_tester(toy, run)
    sample = scene_of(part)
    plain, _ = part.predict(sample, 3)
    inverse, labels = torch.tensor([3, 3, 0]), torch.tensor([0, 1, 2])
    pred, target = part.predict({**sample, "inverse": inverse, "origin_segment": labels}, 3)
    assert torch.equal(pred, plain[inverse]) and torch.equal(target, labels)


def test_errors(toy, run, tmp_path):
    with pytest.raises(ValueError, match="weight is not set"):
        TESTERS.build(dict(type="SemSegTester"), cfg=toy.toy_config(tmp_path / "x"))
    with pytest.raises(FileNotFoundError, match="near it: .*model_best.pth"):
        TESTERS.build(dict(type="SemSegTester"), cfg=toy.toy_config(tmp_path / "x", weight=str(run / "model/model_bst.pth")))
    data = dict(num_classes=3, test=dict(type="ToyScenes"))
    with pytest.raises(KeyError, match="no 'fragment_list'; data.test needs test_mode=True"):
        make_tester(toy, run, data=data).test()
    with pytest.raises(KeyError, match="data.num_classes is missing"):
        make_tester(toy, run, data=dict(test=dict(type="ToyScenes", fragments=True))).test()


def test_weights_that_cannot_be_tested_get_no_advice_for_trainings(toy, tmp_path):
    """A pretraining has no class head, another data set another one; letting tensors pass would test random numbers."""
    model = dict(type="DefaultSegmentorV2", num_classes=3, backbone_out_channels=8, backbone=dict(type="ToyBackbone", out_channels=8))
    model["criteria"] = [dict(type="CrossEntropyLoss")]
    whole = build_model(model).state_dict()
    backbone = {key: value for key, value in whole.items() if key.startswith("backbone.")}
    files = {
        "pretrained": {**backbone, "decoder.weight": torch.zeros(2, 2)},
        "other": {**backbone, "seg_head.weight": torch.zeros(5, 8), "seg_head.bias": torch.zeros(5)},
        "damaged": {key: value for key, value in whole.items() if key != "backbone.last.bias"},
        "good": whole,
    }

    def build(name):
        path = tmp_path / f"{name}.pth"
        torch.save({"state_dict": files[name]}, path)
        return TESTERS.build(dict(type="SemSegTester"), cfg=toy.toy_config(tmp_path / "x", model=model, weight=str(path)))

    for name, words in (
        ("pretrained", "has no class head, which a DefaultSegmentorV2 is tested by.*Fine-tune .*pointcept3m train .*weight=.*pretrained.pth"),
        ("other", "is of another number of classes: seg_head has 5 classes in the file and 3 in this config; test with the config"),
        ("damaged", "(?s)1 missing .*backbone.last.bias.*a test takes every tensor or none"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            build(name)
        assert str(caught.value).startswith("test: ") and "allow_partial" not in str(caught.value)
    assert torch.equal(build("good").model.seg_head.weight, whole["seg_head.weight"])


def test_every_score_of_a_training_says_its_protocol(toy, train, tmp_path):
    hooks = [*toy.toy_config(tmp_path)["hooks"], dict(type="PreciseEvaluator"), dict(type="MetricsWriter")]
    train(toy.toy_config(tmp_path / "run", hooks=hooks))
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["protocol"] == {
        "val": "one forward a scene, no votes, scored on 48 raw points, all 3 classes counted",
        "test": "vote: 3 fragments a scene, softmax added up at each point, scored on 48 raw points, all 3 classes counted",
    }
    assert {"mIoU", "test_mIoU"} <= set(written["metrics"])
    log = (tmp_path / "run/train.log").read_text()
    assert re.search(r"validation: .*\(one forward a scene, no votes, scored on 48 raw points, all 3 classes counted\)", log)
    assert len(re.findall(r"epoch \d/2 done, .*; peak memory [\d,]+ MiB.* so far with batch_size 2", log)) == 2


def test_what_the_scored_points_are():
    """Raw points, those a grid keeps, or all of them through their voxel: three different numbers on the same data."""
    grid = dict(type="GridSample", grid_size=0.02, mode="train")
    assert points_scored({}, 1234, Through.NOTHING) == "1,234 raw points"
    kept = points_scored(dict(transform=[dict(type="CenterShift"), grid]), 1234, Through.NOTHING)
    assert kept == "1,234 points that GridSample of 0.02 m keeps"
    assert points_scored(dict(transform=[grid]), 1234, Through.VOXEL) == "1,234 raw points, each with the prediction of its voxel"
    nearest = "each with the prediction of the nearest point that the grid keeps"
    assert points_scored(dict(transform=[grid]), 1234, Through.NEAREST) == f"1,234 raw points, {nearest}"
    every = "all 1,234 raw points (those without a label too)"
    assert points_scored({}, 1234, Through.NEAREST, instances=True) == f"{every}, {nearest}"


@pytest.mark.parametrize(
    ("confusion", "skip", "zero"),
    [
        ([[3, 1], [0, 2]], "all 2 classes counted", "all 2 classes counted"),
        ([[3, 0, 0], [0, 2, 0], [0, 0, 0]], "classes without a point left out: 1 of 3", "counted 0, as Pointcept does: 1 of 3"),
        ([[3, 0, 1], [0, 2, 0], [0, 0, 0]], "classes without a point left out: 0 of 3, of mAcc 1", "does: 0 of 3, of mAcc 1"),
    ],
)
def test_what_became_of_absent_classes(confusion, skip, zero):
    """The words count what the means leave out: a class that is nowhere, and in mAcc one that is only predicted."""
    confusion = torch.tensor(confusion)
    assert classes_counted(confusion, "skip") == skip and classes_counted(confusion, "zero").endswith(zero)
    scores = segmentation_scores(confusion)
    nowhere, untrue = (int(np.isnan(scores[name]).sum()) for name in ("iou", "acc"))
    assert skip == "all 2 classes counted" or f": {nowhere} of 3" in skip and (f"of mAcc {untrue}" in skip or untrue == nowhere)


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_means_by_pointcepts_rule_stand_beside_ours(toy, run, tmp_path, monkeypatch, absent):
    """Where no point is of class z and none is taken for it, Pointcept's mIoU is 2/3 of the mean over x and y."""
    real = toy.ToyScenes.__getitem__

    def without_z(self, index):
        sample = real(self, index)
        return {**sample, "segment": torch.where(sample["segment"] == 2, -1, sample["segment"])}

    monkeypatch.setattr(toy.ToyScenes, "__getitem__", without_z)
    cfg = toy.toy_config(tmp_path / "x", weight=str(run / "model/model_best.pth"))
    tester = TESTERS.build(dict(type="SemSegTester", absent=absent), cfg=cfg)
    tester.model.backbone.last.bias.data[2] = -100.0
    scores, per_class = tester.test()
    for mean, column in (("mIoU", "iou"), ("mAcc", "acc")):
        known = [per_class[name][column] for name in "xy"]
        assert scores[mean if absent == "zero" else f"{mean}_absent_zero"] == pytest.approx(sum(known) / 3) and sum(known) > 0
        if absent == "skip":
            assert scores[mean] == pytest.approx(sum(known) / 2) and np.isnan(per_class["z"][column])
    words = {"skip": "left out", "zero": "counted 0, as Pointcept does"}[absent]
    assert tester.protocol.endswith(f"raw points, classes without a point {words}: 1 of 3") and "allAcc_absent_zero" not in scores
