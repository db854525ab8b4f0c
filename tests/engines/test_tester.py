"""Tests by voting: every point gets its fragments' votes, nothing old is reused, and the scores are a run's own."""

import json
import re

import numpy as np
import pytest
import torch

from pointcept3m.engines.protocol import points_scored
from pointcept3m.engines.testers import TESTERS, SemSegTester


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
    assert written["protocol"] == {"test": "vote: 3 fragments a scene, softmax added up at each point, scored on 48 raw points"}
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


def test_every_score_of_a_training_says_its_protocol(toy, train, tmp_path):
    hooks = [*toy.toy_config(tmp_path)["hooks"], dict(type="PreciseEvaluator"), dict(type="MetricsWriter")]
    train(toy.toy_config(tmp_path / "run", hooks=hooks))
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["protocol"] == {
        "val": "one forward a scene, no votes, scored on 48 raw points",
        "test": "vote: 3 fragments a scene, softmax added up at each point, scored on 48 raw points",
    }
    assert {"mIoU", "test_mIoU"} <= set(written["metrics"])
    log = (tmp_path / "run/train.log").read_text()
    assert re.search(r"validation: .*\(one forward a scene, no votes, scored on 48 raw points\)", log)
    assert len(re.findall(r"epoch \d/2 done, .*; peak memory [\d,]+ MiB.* so far with batch_size 2", log)) == 2


def test_what_the_scored_points_are():
    """Raw points, those a grid keeps, or all of them through their voxel: three different numbers on the same data."""
    grid = dict(type="GridSample", grid_size=0.02, mode="train")
    assert points_scored({}, 1234, False) == "1,234 raw points"
    assert points_scored(dict(transform=[dict(type="CenterShift"), grid]), 1234, False) == "1,234 points that GridSample of 0.02 m keeps"
    assert points_scored(dict(transform=[grid]), 1234, True) == "1,234 raw points, each with the prediction of its voxel"
