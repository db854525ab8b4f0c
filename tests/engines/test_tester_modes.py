"""The voting test against the protocol written down plainly; the fast mode, the comparison, what is said and written."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pointcept3m.datasets import build_dataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.scannet import ScanNetDataset
from pointcept3m.engines import metrics
from pointcept3m.engines.testers import TESTERS, SemSegTester
from pointcept3m.models.builder import build_model

GRID, CLASSES = 0.25, 4
ANGLES = (0, 1 / 2, 1, 3 / 2)


@DATASETS.register_module(force=True)
class LabelledScenes(ScanNetDataset):
    """Scenes of four classes, whose ids in a submission are these."""

    class2id = (1, 7, 39, 40)


def turn(angle: float) -> dict:
    return dict(type="RandomRotateTargetAngle", angle=[angle], axis="z", center=[0, 0, 0], p=1)


def data_section(root: Path, **changes) -> dict:
    """Pointcept's protocol for ScanNet: 13 augmentations, on a coarse grid."""
    scales = [[], [dict(type="RandomScale", scale=[0.95, 0.95])], [dict(type="RandomScale", scale=[1.05, 1.05])]]
    section = dict(
        type="LabelledScenes",
        split="val",
        data_root=str(root),
        transform=[dict(type="CenterShift", apply_z=True), dict(type="NormalizeColor")],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size=GRID, hash_type="fnv", mode="test", return_grid_coord=True),
            crop=None,
            post_transform=[
                dict(type="CenterShift", apply_z=False),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color", "normal")),
            ],
            aug_transform=[[turn(angle), *scale] for scale in scales for angle in ANGLES] + [[dict(type="RandomFlip", p=1)]],
        ),
    )
    return {**section, **changes}


def config(root: Path, save_path: Path, **changes) -> dict:
    backbone = dict(type="SpUNet-v1m1", in_channels=6, num_classes=CLASSES, base_channels=8, channels=(8, 8, 8, 8), layers=(1,) * 4)
    cfg = dict(
        save_path=str(save_path),
        seed=1,
        num_worker=0,
        model=dict(type="DefaultSegmentor", backbone=backbone, criteria=[dict(type="CrossEntropyLoss")]),
        data=dict(num_classes=CLASSES, ignore_index=-1, names=["a", "b", "c", "d"], test=data_section(root)),
    )
    return {**cfg, **changes}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two scenes of some hundred points, one point with a label of none."""
    folder = tmp_path_factory.mktemp("scenes")
    for number, size in enumerate((500, 300)):
        rng = np.random.default_rng(number)
        scene = folder / "val" / f"scene000{number}_00"
        scene.mkdir(parents=True)
        normal = rng.normal(size=(size, 3)).astype(np.float32)
        np.save(scene / "coord.npy", rng.uniform((0, 0, 0), (2.5, 2, 1), (size, 3)).astype(np.float32))
        np.save(scene / "color.npy", rng.integers(0, 256, (size, 3)).astype(np.float32))
        np.save(scene / "normal.npy", normal / np.linalg.norm(normal, axis=1, keepdims=True))
        np.save(scene / "segment20.npy", np.append(rng.integers(0, CLASSES, size - 1), -1).astype(np.int16))
    return folder


@pytest.fixture(scope="module")
def model(root):
    torch.manual_seed(5)
    model = build_model(config(root, Path("x"))["model"]).eval()
    with torch.no_grad():  # statistics that leave the features of a random network apart
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.002, 0.02)
    return model


def plain_votes(folder: Path, model: torch.nn.Module, fast: int = 0) -> np.ndarray:
    """The protocol, one fragment at a time, with nothing of this package but the network: votes [N, K] of a scene.

    fast: the fast mode's instead, with so many fragments at most.
    """
    coord, color, normal = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("coord", "color", "normal"))
    middle = (coord.min(0) + coord.max(0)) / 2
    coord = (coord - [middle[0], middle[1], coord[:, 2].min()]).astype(np.float32).astype(np.float64)
    color = color / 255
    votes = np.zeros((len(coord), CLASSES))
    plan = [(angle, scale, False) for scale in (1, 0.95, 1.05) for angle in ANGLES] + [(0, 1, True)]
    for angle, scale, flip in plan if not fast else [(0, 1, False)]:
        c, s = np.cos(angle * np.pi), np.sin(angle * np.pi)
        matrix = np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]) if flip else np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        turned = ((coord @ matrix.T) * scale).astype(np.float32)
        directions = (normal @ matrix.T).astype(np.float32)
        cells = np.floor(turned.astype(np.float64) / GRID).astype(int)
        cells -= cells.min(0)
        members: dict[tuple, list[int]] = {}
        for row, cell in enumerate(map(tuple, cells)):
            members.setdefault(cell, []).append(row)
        rounds = max(map(len, members.values()))
        for round_ in range(min(rounds, fast) if fast else rounds):
            rows = np.array([points[round_ % len(points)] for _, points in sorted(members.items())])
            feat = np.concatenate([color[rows], directions[rows]], 1)
            batch = dict(
                grid_coord=torch.from_numpy(cells[rows]), feat=torch.from_numpy(feat).float(), offset=torch.tensor([len(rows)])
            )
            with torch.no_grad():
                logits = model.backbone(batch).double().numpy()
            power = np.exp(logits - logits.max(1, keepdims=True))
            for (_, points), row, vote in zip(sorted(members.items()), rows, power / power.sum(1, keepdims=True), strict=True):
                votes[points if fast else row] += vote
    return votes


def make(root: Path, save_path: Path, model, **settings) -> SemSegTester:
    return TESTERS.build(dict(type="SemSegTester", **settings), cfg=config(root, save_path), model=model)


def saved(folder: Path, number: int) -> np.ndarray:
    return np.load(folder / f"result/scene000{number}_00_pred.npy")


def scenes(root: Path) -> list[Path]:
    return sorted((root / "val").iterdir())


@pytest.mark.parametrize("size", [1, 3])
def test_votes_are_those_of_the_protocol(root, model, tmp_path, size):
    """Sums to 1e-4; classes wherever the two best are further apart than that; the mIoU from the confusion by hand."""
    tester = make(root, tmp_path, model, fragment_batch_size=size)
    scores, _ = tester.test()
    pred = [saved(tmp_path, number) for number in (0, 1)]
    confusion = np.zeros((CLASSES, CLASSES), int)
    for folder, ours in zip(scenes(root), pred, strict=True):
        votes = plain_votes(folder, model)
        best = np.sort(votes, 1)
        clear = best[:, -1] - best[:, -2] > 1e-4
        assert clear.mean() > 0.97 and len(set(ours)) >= 3
        assert (ours == votes.argmax(1))[clear].all()
        segment = np.load(folder / "segment20.npy")
        np.add.at(confusion, (segment[segment >= 0], ours[segment >= 0]), 1)
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    assert scores["mIoU"] == pytest.approx(iou.mean(), abs=1e-12) and confusion.sum() == 798
    assert tester.protocol.startswith("vote: 13 augmentations x ") and tester.protocol.endswith("scored on 798 raw points, all 4 classes counted")


def test_parts_are_those_of_the_whole_sample(root):
    """What a tester gets piece by piece is the sample of Pointcept's contract, also where augmentations draw at random."""
    aug = [[dict(type="RandomRotate", angle=[-1, 1], axis="z", p=1)], [dict(type="RandomJitter", sigma=0.01, clip=0.02)]]
    section = data_section(root)
    dataset = build_dataset({**section, "test_cfg": {**section["test_cfg"], "aug_transform": aug}})
    np.random.seed(3)
    whole = dataset[1]
    fragments = []
    for part in range(dataset.num_test_parts):
        np.random.seed(3)
        piece = dataset.get_test_part(1, part)
        assert piece["test_part"] == (part, 2) and ("segment" in piece) == (part == 0) and piece["name"] == whole["name"]
        fragments += piece["fragment_list"]
    assert len(fragments) == len(whole["fragment_list"])
    for ours, theirs in zip(fragments, whole["fragment_list"], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("coord", "grid_coord", "index", "feat"))
    assert not torch.equal(fragments[0]["coord"], fragments[-1]["coord"])


def test_a_dataset_with_a_way_of_its_own_gives_whole_scenes(root, model, tmp_path):
    @DATASETS.register_module(force=True)
    class Own(LabelledScenes):
        def prepare_test_data(self, data):
            sample = super().prepare_test_data(data)
            return {**sample, "fragment_list": sample["fragment_list"][::-1]}

    cfg = config(root, tmp_path)
    cfg["data"]["test"]["type"] = "Own"
    tester = TESTERS.build(dict(type="SemSegTester"), cfg=cfg, model=model)
    assert len(tester.test_loader) == 2
    scores, _ = tester.test()
    assert scores["mIoU"] == pytest.approx(make(root, tmp_path, model).test()[0]["mIoU"], abs=0.01)


@pytest.mark.parametrize("most", [1, 4, 99])
def test_fast_mode_is_a_few_unaugmented_fragments(root, model, tmp_path, most):
    tester = make(root, tmp_path, model, mode="fast", fast_fragments=most)
    tester.test()
    votes = plain_votes(scenes(root)[0], model, fast=most)
    best = np.sort(votes, 1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert clear.mean() > 0.97 and (saved(tmp_path, 0) == votes.argmax(1))[clear].all()
    count = {1: "1 fragment", 4: "4 fragments", 99: r"[\d.]+ fragments"}[most]
    batched = "" if most == 1 else " in 1 forward"
    words = rf"fast: no augmentation x {count} a scene{batched}, softmax added up in each voxel, scored on 798 raw points, all 4 classes counted$"
    assert re.match(words, tester.protocol)


def test_compare_runs_both(root, model, tmp_path, caplog):
    tester = make(root, tmp_path / "both", model, mode="compare")
    logging.getLogger("pointcept3m").propagate = True  # for caplog
    with caplog.at_level(logging.INFO, logger="pointcept3m"):
        scores, per_class = tester.test()
    alone = {mode: make(root, tmp_path / mode, model, mode=mode).test()[0] for mode in ("vote", "fast")}
    assert {name: scores[name] for name in ("mIoU", "mAcc", "allAcc")} == alone["vote"]
    assert {name: scores[f"fast_{name}"] for name in ("mIoU", "mAcc", "allAcc")} == alone["fast"]
    assert np.array_equal(saved(tmp_path / "both", 0), saved(tmp_path / "vote", 0))
    assert not np.array_equal(saved(tmp_path / "both", 0), saved(tmp_path / "fast", 0))
    gain = alone["vote"]["mIoU"] - alone["fast"]["mIoU"]
    assert f"voting changes mIoU by {gain:+.4f} and takes" in caplog.text and set(per_class["a"]) == {"iou", "acc", "fast_iou"}
    assert "fast_: fast: no augmentation" in tester.protocol
    assert re.search(r"peak memory [\d,]+ MiB.* so far with fragment_batch_size 1 \(at most \d+ points in one forward\)", caplog.text)


def test_fast_batches_are_bounded(root, model, tmp_path, monkeypatch):
    """As many fragments as hold the allowed points, at least one; the same result however they are batched."""
    from pointcept3m.engines.testers import semseg

    tester = make(root, tmp_path, model, mode="fast")
    sample = tester.test_loader.dataset.dataset.dataset[0]
    size = len(sample["fragment_list"][0]["index"])
    monkeypatch.setitem(semseg.FAST_POINTS, "cpu", 2 * size)
    sizes = [len(part) for part in tester._batches(sample["fragment_list"], "fast")]
    assert max(sizes) == 2 and sum(sizes) == len(sample["fragment_list"]) and set(sizes[:-1]) == {2}
    two = tester.predict(sample, CLASSES)[0]
    monkeypatch.setitem(semseg.FAST_POINTS, "cpu", 1)
    assert {len(part) for part in tester._batches(sample["fragment_list"], "fast")} == {1}
    assert torch.equal(two, tester.predict(sample, CLASSES)[0])


def test_rulebooks_are_made_once_for_an_augmentation(root, model, tmp_path, monkeypatch):
    from pointcept3m.models.layers import sparse

    made = []
    original = sparse.submanifold_rulebook
    monkeypatch.setattr(sparse, "submanifold_rulebook", lambda *args: made.append(1) or original(*args))
    tester = make(root, tmp_path, model)
    piece = tester.test_loader.dataset.dataset[0]
    assert len(piece["fragment_list"]) > 2
    tester.predict(piece, CLASSES)
    assert len(made) == 4  # the stem, and one for each of the three grids


def test_submission_has_the_ids_of_classes(root, model, tmp_path):
    make(root, tmp_path, model, mode="fast", save_submission=True).test()
    lines = (tmp_path / "result/submit/scene0000_00.txt").read_text().split("\n")
    assert lines[-1] == "" and [int(line) for line in lines[:-1]] == [LabelledScenes.class2id[k] for k in saved(tmp_path, 0)]
    make(root, tmp_path / "none", model, mode="fast", save_submission=False).test()
    assert not (tmp_path / "none/result/submit").exists()
    tester = make(root, tmp_path / "wrong", model, mode="fast", save_submission=True)
    tester.test_loader.dataset.dataset.dataset.class2id = None
    with pytest.raises(ValueError, match="LabelledScenes has no class2id"):
        tester.test()


def test_scenes_without_labels_are_predicted_and_not_scored(root, model, tmp_path, caplog):
    unlabelled = tmp_path / "data"
    shutil.copytree(root, unlabelled)
    for scene in scenes(unlabelled):
        (scene / "segment20.npy").unlink()
    tester = make(unlabelled, tmp_path / "run", model, mode="fast")
    logging.getLogger("pointcept3m").propagate = True
    assert tester.test() == ({}, {}) and len(saved(tmp_path / "run", 1)) == 300
    assert "data.test has no labels, so nothing is scored" in caplog.text


def test_a_scene_of_one_point(model, tmp_path):
    scene = tmp_path / "data/val/scene0000_00"
    scene.mkdir(parents=True)
    for name in ("coord", "color", "normal"):
        np.save(scene / f"{name}.npy", np.ones((1, 3), np.float32))
    np.save(scene / "segment20.npy", np.array([2], np.int16))
    tester = make(tmp_path / "data", tmp_path / "run", model)
    scores, _ = tester.test()
    assert scores["allAcc"] == float(saved(tmp_path / "run", 0)[0] == 2) and "13 augmentations x 1 fragment a scene" in tester.protocol


def test_errors_come_before_work_or_keep_it(root, model, tmp_path, monkeypatch):
    for settings, words in (
        (dict(mode="slow"), "mode must be one of vote, fast, compare"),
        (dict(fragment_batch_size=0), "fragment_batch_size must be at least 1, got 0"),
        (dict(fast_fragments=0), "fast_fragments must be at least 1, got 0"),
        (dict(mode="fast", test_loader=[]), "makes its own loader"),
    ):
        with pytest.raises(ValueError, match=words):
            make(root, tmp_path, model, **settings)
    (tmp_path / "file").write_text("")
    tester = make(root, tmp_path / "file/below", model)
    monkeypatch.setattr(tester, "model", None)  # nothing was forwarded before
    with pytest.raises(OSError, match="nothing can be written to .*file/below/result .*save_path says"):
        tester.test()
    cfg = config(root, tmp_path)
    cfg["data"].update(num_classes=5, names=list("abcde"))
    with pytest.raises(ValueError, match=r"scene scene0000_00: the model gave logits \[\d+, 4\], wanted \[\d+, 5\]"):
        TESTERS.build(dict(type="SemSegTester", save_submission=False), cfg=cfg, model=model).test()


def test_output_that_is_not_finite(root, tmp_path):
    broken = build_model(config(root, tmp_path)["model"])
    with torch.no_grad():
        broken.backbone.final.bias[1] = float("nan")
    with pytest.raises(ValueError, match=r"scene scene0000_00: the model's output is not finite at (\d+) of \1 points"):
        make(root, tmp_path, broken).test()


def test_label_outside_the_classes_names_its_scene(root, model, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    np.save(tmp_path / "data/val/scene0001_00/segment20.npy", np.full(300, 9, np.int16))
    tester = make(tmp_path / "data", tmp_path, model, mode="fast")
    with pytest.raises(ValueError, match="scene0001_00"):
        tester.test()
    assert len(saved(tmp_path, 0)) == 500


def test_full_disk_keeps_finished_scenes(root, model, tmp_path, monkeypatch):
    from pointcept3m.engines.testers import semseg

    real = semseg.atomic_write

    def write(path, function):
        if "scene0001" in str(path):
            raise OSError(28, "No space left on device")
        real(path, function)

    monkeypatch.setattr(semseg, "atomic_write", write)
    with pytest.raises(OSError, match=r"scene scene0001_00: .*No space left.*the 1 scenes before it are whole in .*result"):
        make(root, tmp_path, model, mode="fast").test()
    assert len(saved(tmp_path, 0)) == 500


def test_scores_agree_with_the_saved_predictions(root, model, tmp_path):
    """The record and metrics.json of a run follow from the files that it leaves."""
    cfg = config(root, tmp_path / "run", weight=str(tmp_path / "model.pth"))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "model.pth")
    TESTERS.build(dict(type="SemSegTester", mode="fast"), cfg=cfg).run()
    confusion = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for number, folder in enumerate(scenes(root)):
        target = torch.from_numpy(np.load(folder / "segment20.npy").astype(np.int64))
        confusion += metrics.confusion_matrix(torch.from_numpy(saved(tmp_path / "run", number)), target, CLASSES)
    record = json.loads((tmp_path / "run/result/confusion.json").read_text())
    assert record["confusion"] == confusion.tolist() and record["split"] == "val" and record["names"] == list("abcd")
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["metrics"]["mIoU"] == pytest.approx(metrics.segmentation_scores(confusion)["mIoU"])
    assert written["protocol"]["test"] == record["protocol"]
