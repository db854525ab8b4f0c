"""Recognition in the common space: probes across modalities, class names, baselines; the tester on made-up scenes."""

import json

import numpy as np
import pytest
import torch

from pointcept3m.engines.retrieval import recognition
from pointcept3m.engines.testers import TESTERS
from tests.datasets.crossover_scenes import LABELS, WIDTHS, write_set
from tests.engines.embeddings import embeddings
from tests.engines.toy_crossover import ToyCrossOver


def space(count, seed, noise=0.05, labels=("chair", "lamp", "sofa"), shift=0.0):
    """Objects near their class's centre, in two modalities that share the space."""
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[: len(labels)]

    def vector(k, offset=0.0):
        return centres[k] + noise * rng.normal(size=8) + offset

    objects = [[(i, labels[i % len(labels)], {"image": vector(i % len(labels)), "point": vector(i % len(labels), shift)}) for i in range(count)]]
    return embeddings({"image": [rng.normal(size=8)]}, objects)


def test_a_probe_carries_over_where_the_space_is_one():
    train, test = space(60, 0), space(30, 1)
    results = recognition.probe_objects(train, test, recognition.class_names(train))
    assert set(results) == {"image->image", "image->point", "point->image", "point->point"}
    assert all(scores["accuracy"] == 1 for scores in results.values())
    assert results["image->point"]["majority_accuracy"] == pytest.approx(1 / 3) and results["image->point"]["queries"] == 30


def test_a_probe_does_not_carry_over_where_it_is_not():
    """Points lie in another place, here with the classes turned around: within a modality all is right, across nothing."""
    train, test = space(60, 0), space(30, 1)
    for each in (train, test):
        each.objects["point"] = np.roll(each.objects["point"], 1, axis=1)[:, :8]
    results = recognition.probe_objects(train, test, ["chair", "lamp", "sofa"])
    assert results["point->point"]["accuracy"] == 1 and results["image->point"]["accuracy"] < 0.7


def test_scores_by_hand():
    truth, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    scores = recognition.score_classes(predicted, truth, train_truth=np.array([1, 1, 0]), count=4)
    assert scores["accuracy"] == 0.75 and scores["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["majority_accuracy"] == 0.25 and scores["majority_mean_accuracy"] == 0.5 and scores["chance_accuracy"] == 0.25


def test_rare_labels_are_no_classes_and_unknown_objects_no_queries():
    train, test = space(61, 0), space(9, 1, labels=("chair", "lamp", "vase"))
    names = recognition.class_names(train, 5)
    assert names == ["chair", "lamp", "sofa"]
    test.object_known["point"][:2] = False
    test.objects["point"][:2] = 0
    assert len(recognition.labelled(test, "point", names)[1]) == 4  # of 6 chairs and lamps the first two are not known
    with pytest.raises(ValueError, match="two labels with at least 100"):
        recognition.class_names(train, 100)
    with pytest.raises(KeyError, match="'cad'"):
        recognition.probe_objects(train, test, names, ["cad"])
    test.model = "another"
    with pytest.raises(ValueError, match="different models"):
        recognition.probe_objects(train, test, names)


def test_class_names_find_their_objects():
    train, test = space(60, 0), space(30, 1)
    vectors = np.eye(8, dtype=np.float32)[:3]
    right = recognition.zero_shot(train, test, ["chair", "lamp", "sofa"], vectors)
    assert right["name->point"]["accuracy"] == 1
    assert recognition.zero_shot(train, test, ["chair", "lamp", "sofa"], vectors[[1, 2, 0]])["name->point"]["accuracy"] == 0
    with pytest.raises(ValueError, match="2 vectors for 3 class names"):
        recognition.zero_shot(train, test, ["chair", "lamp", "sofa"], vectors[:2])


def toy_batch():
    batch = {f"object_{name}": torch.zeros(2, width) for name, width in WIDTHS.items()}
    return batch | dict(object_known=torch.ones(2, 4, dtype=torch.bool), object_offset=torch.tensor([2]), object_box=torch.zeros(2, 6), name=["s"])


def test_names_go_through_the_text_head():
    model, table = ToyCrossOver(), torch.randn(4, WIDTHS["text"])

    def encode(texts):
        return torch.stack([table[LABELS.index(text.split()[-1])] for text in texts])

    vectors = recognition.name_vectors(model, toy_batch(), encode, LABELS, prompts=["the {label}"])
    wanted = torch.nn.functional.normalize(model.heads["text"](table), dim=1).detach().numpy()
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    with pytest.raises(ValueError, match="label"):
        recognition.name_vectors(model, toy_batch(), encode, LABELS, prompts=["a thing"])
    with pytest.raises(ValueError, match="another encoder"):
        recognition.name_vectors(model, toy_batch(), lambda texts: torch.zeros(len(texts), 3), LABELS)


def test_the_tester_writes_what_it_found(tmp_path):
    root = write_set(tmp_path / "data", train=6, val=3)
    data = dict(type="CrossOverDataset", data_root=str(root), points=False, split="val", fixed=True)
    cfg = dict(model=dict(type="ToyCrossOver"), data=dict(test=data), save_path=str(tmp_path / "run"), num_worker=0, seed=1, weight=None)
    tester = TESTERS.build(dict(type="RecognitionTester", at_least=3, text_encoder=False, steps=20), cfg=cfg, model=ToyCrossOver(width=8))
    scores, _ = tester.test()
    assert 0 <= scores["probe_image_point_accuracy"] <= 1 and "probe_cad_text_mean_accuracy" in scores
    written = json.loads((tmp_path / "run" / "result" / "recognition.json").read_text())
    assert written["classes"] == list(LABELS) and len(written["scores"]) == 16
    assert "majority" in (tmp_path / "run" / "result" / "recognition.txt").read_text()
    with pytest.raises(ValueError, match="made-up text"):
        TESTERS.build(dict(type="RecognitionTester"), cfg=cfg, model=ToyCrossOver(width=8)).test()
