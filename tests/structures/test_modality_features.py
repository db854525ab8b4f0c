"""Modality files and embeddings: masks survive, and what does not fit is refused by name."""

import dataclasses

import numpy as np
import pytest

from pointcept3m.structures.modality_features import (
    ModalityFeatures,
    check_encoders,
    modality_path,
    read_modalities,
    write_modalities,
)
from pointcept3m.structures.scene_embeddings import SceneEmbeddings, read_embeddings, write_embeddings


def features(**changes):
    rng = np.random.default_rng(0)
    known = {"image": np.array([True, False, True]), "cad": np.array([False, False, True])}
    rows = {name: (rng.normal(size=(3, 4)) * mask[:, None]).astype(np.float32) for name, mask in known.items()}
    entry = dict(
        scene="scan1", split="val", object_id=[0, 4, 9], labels=["bed", "chair", "chair"],
        object_box=rng.random((3, 6)).astype(np.float32), objects=rows, known=known,
        tokens={"image": rng.normal(size=(5, 8)).astype(np.float32), "text": rng.normal(size=(2, 3)).astype(np.float32)},
        encoders={"image": "a-1", "text": "b-2", "cad": "c-3"}, frames=[str(i) for i in range(5)], texts=["one", "two"],
        place="p", category="bedroom", reference="scan0", moved=[4], same_ids=True, dataset="rooms", details={"views": 10},
    )  # fmt: skip
    return ModalityFeatures(**{**entry, **changes})


def test_features_come_back(tmp_path):
    path = modality_path(tmp_path / "val" / "scan1", "pocket")
    assert path == tmp_path / "val/scan1/modalities/pocket.safetensors"
    assert modality_path("data/val/scan1", "pocket", "feat").as_posix() == "feat/pocket/val/scan1.safetensors"
    written = features()
    write_modalities(path, written)
    found = read_modalities(path)
    for item in dataclasses.fields(written):
        one, other = getattr(written, item.name), getattr(found, item.name)
        if isinstance(one, dict) and one and isinstance(next(iter(one.values())), np.ndarray):
            assert one.keys() == other.keys()
            for name in one:
                assert np.allclose(one[name], other[name], rtol=1e-3) and one[name].dtype == other[name].dtype
        else:
            assert np.array_equal(one, other), item.name
    assert found.widths == {"object_image": 4, "object_cad": 4, "image_token": 8, "text_token": 3}


def test_a_scene_without_anything_is_a_file_too(tmp_path):
    none = features(object_id=[], labels=[], object_box=np.zeros((0, 6), np.float32), objects={}, known={}, tokens={}, moved=[])
    write_modalities(tmp_path / "a.safetensors", none)
    assert len(read_modalities(tmp_path / "a.safetensors")) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(object_id=[0, 4, 4]), "must ascend"),
        (dict(labels=["bed"]), "1 labels for 3 objects"),
        (dict(object_box=np.zeros((2, 6), np.float32)), r"object_box: wanted floats \[3, 6\]"),
        (dict(objects={}), "vectors of .*masks of"),
        (dict(objects={"sound": np.zeros((3, 2), np.float32)}, known={"sound": np.zeros(3, bool)}), "'sound' is none of the modalities"),
        (dict(objects={"text": np.ones((3, 2), np.float32)}, known={"text": np.array([True, True, False])}), "not known in text have vectors"),
        (dict(objects={"text": np.full((3, 2), np.inf, np.float32)}, known={"text": np.ones(3, bool)}), "finite"),
        (dict(tokens={"image": np.zeros((0, 4), np.float32)}), "0 tokens of image; leave out"),
        (dict(tokens={"floorplan": np.ones((2, 4), np.float32)}), "2 tokens of floorplan"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=f"scene 'scan1'.*{message}"):
        features(**changes)


def test_values_beyond_float16_are_refused(tmp_path):
    large = {"image": np.full((3, 4), 1e5, np.float32)}
    with pytest.raises(ValueError, match="beyond float16"):
        write_modalities(tmp_path / "a.safetensors", features(objects=large, known={"image": np.ones(3, bool)}))
    assert not (tmp_path / "a.safetensors").exists()


def test_files_of_different_encoders_do_not_go_together():
    check_encoders({"a": {"image": "x", "text": "y"}, "b": {"image": "x"}})
    with pytest.raises(ValueError, match="features of image do not go together: 'x' in a, 'z' in b"):
        check_encoders({"a": {"image": "x"}, "b": {"image": "z"}})


def test_recipe_names_are_file_names():
    for name in ("", "../x", ".x", "a/b"):
        with pytest.raises(ValueError, match="a recipe's name becomes a file's"):
            modality_path("scan", name)


def embeddings(**changes):
    rng = np.random.default_rng(0)

    def unit(rows, known):
        values = rng.normal(size=(rows, 5)) * known[:, None]
        return (values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)).astype(np.float32)

    scene_known = {"image": np.array([True, True, False]), "scene": np.ones(3, bool)}
    object_known = {"point": np.array([True, False, True, True])}
    entry = dict(
        model="m", names=["a", "b", "c"], splits=["val"] * 3, datasets=["rooms"] * 3, places=["a", "a", "c"], categories=["", "k", "k"],
        references=[None, "a", None], same_ids=[False, True, False], scenes={name: unit(3, known) for name, known in scene_known.items()}, scene_known=scene_known,
        object_offset=np.array([2, 2, 4]), object_id=np.array([0, 7, 1, 2]), labels=["x"] * 4, object_box=np.zeros((4, 6), np.float32),
        moved=np.zeros(4, bool), objects={name: unit(4, known) for name, known in object_known.items()}, object_known=object_known,
    )  # fmt: skip
    return SceneEmbeddings(**{**entry, **changes})


def test_embeddings_come_back(tmp_path):
    written = embeddings()
    write_embeddings(tmp_path / "e.safetensors", written)
    found = read_embeddings(tmp_path / "e.safetensors")
    assert found.names == written.names and found.references == [None, "a", None] and len(found) == 3
    assert np.array_equal(found.scenes["image"], written.scenes["image"]) and np.array_equal(found.object_id, written.object_id)
    assert [found.rows_of(i) for i in range(3)] == [slice(0, 2), slice(2, 2), slice(2, 4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(places=["a"]), "1 places for 3 scenes"),
        (dict(object_offset=np.array([2, 1, 4])), "object_offset must ascend"),
        (dict(labels=[]), "0 labels for 4 objects"),
        (dict(scene_known={"image": np.ones(3, bool)}), "vectors of .* masks of"),
        (dict(scenes={"cad": np.zeros((3, 5), np.float32)}, scene_known={"cad": np.zeros(3, bool)}), "none of the modalities"),
        (dict(scenes={"image": np.zeros((3, 5), np.float32)}, scene_known={"image": np.ones(3, bool)}), "row 0 has length 0, known True"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        embeddings(**changes)
