"""From a data set to tables: embeddings, the tester's files, the validation's best checkpoint, rows of other methods, stages."""

import json
import os

import numpy as np
import pytest
import torch

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.engines import TRAINERS
from pointcept3m.engines.hooks import HOOKS
from pointcept3m.engines.loader import EvaluationSampler, build_loader
from pointcept3m.engines.retrieval import tables
from pointcept3m.engines.retrieval.embed import (
    concatenate,
    embed_dataset,
    embed_frames,
    gathered,
    mean_of_objects,
    select,
)
from pointcept3m.engines.retrieval.evaluation import evaluate
from pointcept3m.engines.retrieval.rows import read_row
from pointcept3m.engines.testers import TESTERS
from pointcept3m.structures.scene_embeddings import read_embeddings, write_embeddings
from pointcept3m.utils import comm
from tests.datasets.crossover_scenes import features, write_scene, write_set
from tests.engines.embeddings import random_embeddings
from tests.engines.toy_crossover import ToyCrossOver


def loader_of(root, batch_size=2, split="val", rank=0, world=1, **settings):
    data = build_dataset(dict(type="CrossOverDataset", data_root=str(root), split=split, points=False, fixed=True, **settings))
    return build_loader(data, EvaluationSampler(len(data), batch_size, rank, world), collate_fn, 0)


def config(root, folder, **changes):
    data = dict(type="CrossOverDataset", data_root=str(root), points=False)
    return {
        **dict(
            model=dict(type="ToyCrossOver"),
            data=dict(train=dict(**data, split="train"), val=dict(**data, split="val", fixed=True), test=dict(**data, split="val", fixed=True)),
            optimizer=dict(type="AdamW", lr=0.01), scheduler=dict(type="CosineAnnealingLR"), save_path=str(folder), num_worker=0, batch_size=4, seed=1,
            epoch=40, eval_epoch=2, batch_size_test=2,
            hooks=[dict(type="CheckpointLoader"), dict(type="InformationWriter"), dict(type="RetrievalEvaluator", metric="instance_top1"),
                   dict(type="CheckpointSaver"), dict(type="PreciseEvaluator")],
            test=dict(type="RetrievalTester"),
        ),
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("crossover"), train=8, val=5)


# embeddings


def test_embeddings_say_what_the_data_set_says(rooms):
    model = ToyCrossOver()
    made = embed_dataset(model, loader_of(rooms))
    assert made.names == [f"val0{i}" for i in range(5)] and made.places[-1] == "val00" and made.references[-1] == "val00"
    assert made.categories[:2] == ["kitchen", "office"] and set(made.datasets) == {"made-up"} and set(made.splits) == {"val"}
    first = features("val00", "val")
    assert made.object_id[made.rows_of(4)].tolist() == first.object_id.tolist() and made.labels[:5] == first.labels
    assert made.moved[made.rows_of(4)].tolist() == [True, True, False, False, False] and not made.moved[made.rows_of(0)].any()
    assert made.object_known["cad"][made.rows_of(0)].tolist() == first.known["cad"].tolist()
    single = embed_dataset(model, loader_of(rooms, batch_size=1))
    assert single.model == made.model and np.allclose(single.scenes["image"], made.scenes["image"], atol=1e-6)
    assert embed_dataset(ToyCrossOver(), loader_of(rooms)).model != made.model  # other weights, another space
    assert model.training


def test_processes_share_a_data_set_and_keep_its_order(rooms, monkeypatch):
    model = ToyCrossOver()
    whole, shares = embed_dataset(model, loader_of(rooms)), [embed_dataset(model, loader_of(rooms, rank=rank, world=3)) for rank in range(3)]
    monkeypatch.setattr(comm, "all_gather", lambda value: shares)
    joined = gathered(shares[0])
    assert joined.names == whole.names and joined.object_id.tolist() == whole.object_id.tolist()
    assert all(np.allclose(joined.objects[name], whole.objects[name], atol=1e-6) for name in whole.objects)
    monkeypatch.setattr(comm, "all_gather", lambda value: [*shares, None])  # more processes than scenes
    assert len(gathered(shares[0])) == 5


def test_select_and_concatenate_are_inverse():
    made = random_embeddings(2)
    order = np.random.default_rng(0).permutation(len(made))
    parts = [select(made, [row]) for row in order]
    back = select(concatenate(parts), np.argsort(order))
    assert back.names == made.names and back.labels == made.labels and np.array_equal(back.object_offset, made.object_offset)
    assert all(np.array_equal(back.objects[name], made.objects[name]) for name in made.objects)
    assert evaluate(back) == evaluate(made)


def test_frames_are_scenes_of_their_own(rooms):
    model = ToyCrossOver().eval()
    batch = collate_fn([loader_of(rooms).dataset.dataset[i] for i in range(3)])
    vectors, scene = embed_frames(model, batch)
    assert vectors.shape == (12, 8) and scene.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with torch.no_grad():
        mean = model.heads["image"](batch["image_token"][:, :24])[4:8]
    assert np.allclose(vectors[4:8], torch.nn.functional.normalize(mean, dim=1).numpy(), atol=1e-6)
    empty = collate_fn([loader_of(rooms, chunks=dict(image=["val01"])).dataset.dataset[0]])
    assert len(embed_frames(model, empty)[0]) == 0


def test_a_model_that_diverged_is_named_with_the_scene(rooms):
    with pytest.raises(ValueError, match="scene val00: .*objects' image is not finite"):
        embed_dataset(ToyCrossOver(bad=True), loader_of(rooms))
    with pytest.raises(TypeError, match="Linear has no embed_objects"):
        embed_dataset(torch.nn.Linear(1, 1), loader_of(rooms))


# training and test


def test_a_run_from_training_to_tables(rooms, tmp_path):
    cfg = config(rooms, tmp_path / "run")
    TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg).train()
    content = json.loads((tmp_path / "run/metrics.json").read_text())
    scores = content["metrics"]
    assert scores["test_instance_top1"] > 2 * scores["test_instance_chance_top1"] > 0.3
    assert "5 scenes with 25 objects" in content["protocol"]["val"] and "5 image, 5 floorplan, 5 text" in content["protocol"]["test"]
    assert (tmp_path / "run/model/model_best.pth").is_file()

    test = {**cfg, "weight": str(tmp_path / "run/model/model_best.pth"), "save_path": str(tmp_path / "test")}
    rows = {"the run's": str(tmp_path / "run/embeddings/val.safetensors")}
    again, _ = TESTERS.build(dict(type="RetrievalTester", frames=True, rows=rows), cfg=test).run()
    assert again["instance_top1"] == pytest.approx(scores["test_instance_top1"])
    written = read_embeddings(tmp_path / "test/embeddings/val.safetensors")
    assert written.names == [f"val0{i}" for i in range(5)] and written.details["encoders"]["image"] == "made-up image"
    record = json.loads((tmp_path / "test/result/retrieval.json").read_text())
    both = record["datasets"]["made-up"]
    assert record["methods"] == ["the run's", "ours"] and both["ours"]["instance"] == both["the run's"]["instance"]
    assert both["ours"]["localisation"]["image->text"]["queries"] == 20 and both["ours"]["scene"]["image->text"]["chance_top1"] == 1 / 5
    text, page = (tmp_path / "test/result/retrieval.txt").read_text(), (tmp_path / "test/result/retrieval.md").read_text()
    value = f"{100 * both['ours']['instance']['point->cad']['top1']:.2f}"
    assert any(line.startswith("P->M") and value in line for line in text.splitlines()) and f"| P->M | ours | {value} |" in page


def test_data_sets_are_scored_apart(rooms, tmp_path):
    other = tmp_path / "other"
    for number in range(3):
        write_scene(other, features(f"val1{number}", "val"), points=0)
        made = features(f"val1{number}", "val")
        made.dataset = "second"
        write_scene(other, made, points=0)
    cfg = config([str(rooms), str(other)], tmp_path / "run")
    cfg["data"]["test"]["data_root"] = [str(rooms), str(other)]
    scores, _ = TESTERS.build(dict(type="RetrievalTester", metrics=("scene", "instance")), cfg=cfg, model=ToyCrossOver()).test()
    assert scores["made-up_scene_chance_top1"] == pytest.approx(1 / 5) and scores["second_scene_chance_top1"] == pytest.approx(1 / 3)


def test_mistakes_in_settings_show_before_work(rooms, tmp_path):
    cfg = config(rooms, tmp_path / "run")
    with pytest.raises(KeyError, match="did you mean 'scene'"):
        TESTERS.build(dict(type="RetrievalTester", metrics=("scenes",)), cfg=cfg, model=ToyCrossOver())
    with pytest.raises(FileNotFoundError, match="ULIP"):
        TESTERS.build(dict(type="RetrievalTester", rows=dict(ULIP="none.npz")), cfg=cfg, model=ToyCrossOver())
    with pytest.raises(KeyError, match="metric 'top1'"):
        HOOKS.build(dict(type="RetrievalEvaluator", metric="top1"))


# rows of other methods


def test_rows_of_other_methods(tmp_path):
    base = random_embeddings(0)
    vectors = {}
    for scene in range(len(base)):
        for row in range(base.rows_of(scene).start, base.rows_of(scene).stop):
            for name in ("image", "text"):
                if base.object_known[name][row]:
                    vectors[f"{name}/{base.names[scene]}/{base.object_id[row]}"] = 3 * base.objects[name][row]
    plan = base.scenes["floorplan"][base.scene_known["floorplan"]]
    names = [name for name, known in zip(base.names, base.scene_known["floorplan"], strict=True) if known]
    vectors |= {f"floorplan/{name}": row for name, row in zip(names, plan, strict=True)}
    np.savez(tmp_path / "other.npz", **vectors)
    row = read_row(tmp_path / "other.npz", base)
    for name in ("image", "text"):
        assert np.allclose(row.objects[name], base.objects[name], atol=1e-6) and np.array_equal(row.object_known[name], base.object_known[name])
    assert set(row.scenes) == {"image", "text", "floorplan"} and np.allclose(row.scenes["floorplan"], base.scenes["floorplan"], atol=1e-6)
    means, known = mean_of_objects(base)
    scene = int(np.flatnonzero(known["text"])[0])
    mine = base.objects["text"][base.rows_of(scene)][base.object_known["text"][base.rows_of(scene)]].mean(axis=0)
    assert np.allclose(row.scenes["text"][scene], mine / np.linalg.norm(mine), atol=1e-6) and np.array_equal(known["text"], row.scene_known["text"])
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in base.names:
        np.savez(folder / f"{name}.npz", **{key.replace(f"/{name}", ""): value for key, value in vectors.items() if key.split("/")[1] == name})
    again = read_row(folder, base)
    assert all(np.array_equal(again.objects[name], row.objects[name]) for name in row.objects)
    results = {"other": evaluate(row), "ours": evaluate(base)}
    header, rows = tables.table("instance", results)
    assert header[:3] == ["pair", "method", "top-1"] and [line[1] for line in rows if line[0] == "I->R" or line[0] == ""][:3] == ["other", "ours", "chance"]


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("image/s99/1", np.ones(3), KeyError, "no scene 's99'"),
        ("mesh/s1/1", np.ones(3), KeyError, "'mesh' is no modality of objects"),
        ("cad/s1", np.ones(3), KeyError, "'cad' is no modality of scenes"),
        ("image/s1/999", np.ones(3), KeyError, "no object 999"),
        ("image", np.ones(3), ValueError, "wanted <modality>/<scene>/<object id>"),
        ("image/s1", np.zeros(3), ValueError, "not all 0"),
    ],
)
def test_bad_rows_are_named(tmp_path, key, value, error, words):
    np.savez(tmp_path / "bad.npz", **{key: value})
    with pytest.raises(error, match=words):
        read_row(tmp_path / "bad.npz", random_embeddings(0))


# stages


def staged(rooms, folder, **changes):
    first, second = (config(rooms, "none") for _ in range(2))
    for stage in (first, second):
        stage.pop("save_path")
    second["epoch"] = second["eval_epoch"] = 1
    train = dict(type="StagedTrainer", stages=[dict(name="one", **first), dict(name="two", start="one", **second)], rows=["one"])
    return {**config(rooms, folder), "epoch": 1, "eval_epoch": 1, "train": train, **changes}


@pytest.fixture
def no_reports(monkeypatch):
    """Drawing them takes longer than the trainings."""
    from pointcept3m.engines import report
    from pointcept3m.engines.hooks import report as hook

    for module in (report, hook):
        monkeypatch.setattr(module, "write_report", lambda folder: folder)


def test_stages_hand_on_their_weights_and_are_resumed(rooms, tmp_path, no_reports):
    cfg = staged(rooms, tmp_path / "run")
    TRAINERS.build(dict(cfg["train"]), cfg=cfg).train()
    run = tmp_path / "run"
    assert f"loaded from {run}/one/model/model_best.pth" in (run / "two/train.log").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["metrics"]["instance_top1"] == json.loads((run / "two/metrics.json").read_text())["metrics"]["test_instance_top1"]
    assert json.loads((run / "result/retrieval.json").read_text())["methods"] == ["one", "ours"]

    stamp = os.stat(run / "one/metrics.json").st_mtime_ns
    (run / "two/metrics.json").unlink()  # as if the second stage had been stopped
    again = {**cfg, "resume": True}
    TRAINERS.build(dict(cfg["train"]), cfg=again).train()
    assert os.stat(run / "one/metrics.json").st_mtime_ns == stamp and "are done already" in (run / "two/train.log").read_text()
    assert json.loads((run / "metrics.json").read_text())["metrics"] == metrics["metrics"]
    TRAINERS.build(dict(cfg["train"]), cfg=cfg).train()
    assert (run / "previous-1/one/metrics.json").is_file() and (run / "one/metrics.json").is_file()


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        ([dict(name="a"), dict(name="a")], ValueError, "a name of its own"),
        ([dict(name="a", start="b"), dict(name="b")], KeyError, "starts from 'b'"),
        ([dict(name="a", epochs=3)], KeyError, "did you mean 'epoch'"),
    ],
)
def test_bad_stages_are_named(rooms, tmp_path, stages, error, words):
    cfg = config(rooms, tmp_path)
    with pytest.raises(error, match=words):
        TRAINERS.build(dict(type="StagedTrainer", stages=stages), cfg=cfg)


def test_a_row_is_of_the_same_scenes_and_objects(tmp_path):
    base = random_embeddings(0)
    write_embeddings(tmp_path / "same.safetensors", base)
    assert read_row(tmp_path / "same.safetensors", base).names == base.names
    write_embeddings(tmp_path / "fewer.safetensors", select(base, range(5)))
    with pytest.raises(ValueError, match=r"fewer.safetensors: embeddings of other scenes or objects \(5 scenes"):
        read_row(tmp_path / "fewer.safetensors", base)
