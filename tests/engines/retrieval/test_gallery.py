"""A gallery on disk: numbers under gaps in masks, filters, scenes that are added, indices, damage."""

import numpy as np
import pytest

from pointcept3m.engines.retrieval.gallery import Filter, Gallery, write_gallery
from tests.engines.embeddings import embeddings, random_embeddings


def no_picture(number):
    return None


@pytest.fixture
def made_up():
    return random_embeddings(seed=5, scenes=30, width=6)


def test_names_are_right_under_gaps_in_the_mask(tmp_path, made_up):
    """The released demo read names from the list with gaps at numbers from the list without."""
    gallery = write_gallery(tmp_path / "db", made_up, no_picture)
    assert not all(known.all() for known in made_up.scene_known.values())
    for modality, rows in made_up.scenes.items():
        for row in np.flatnonzero(made_up.scene_known[modality]):
            hit = gallery.search(rows[row], [modality], 1)[0]
            assert (hit.name, hit.number, hit.modality) == (made_up.names[row], row, modality) and hit.score == pytest.approx(1, abs=1e-5)
        found = {hit.number for hit in gallery.search(rows[np.argmax(made_up.scene_known[modality])], [modality], 99)}
        assert found == set(np.flatnonzero(made_up.scene_known[modality]).tolist())


def test_a_scene_counts_by_its_best_modality(tmp_path):
    gallery = write_gallery(tmp_path / "db", embeddings({"image": [(1, 0), (0.6, 0.8), None], "text": [(0, 1), (1, 0.1), (0.9, 0.1)]}), no_picture)
    hits = gallery.search(np.array([1, 0], np.float32), ["image", "text"], 3)
    assert [(hit.name, hit.modality) for hit in hits] == [("s0", "image"), ("s1", "text"), ("s2", "text")]
    assert [hit.score for hit in hits] == pytest.approx([1, 1 / np.hypot(1, 0.1), 0.9 / np.hypot(0.9, 0.1)], abs=1e-5)


def test_filters(tmp_path, made_up):
    made_up.splits[::2] = ["train"] * 15
    gallery = write_gallery(tmp_path / "db", made_up, no_picture)
    query = made_up.scenes["image"][np.argmax(made_up.scene_known["image"])]

    def found(**chosen):
        return {hit.number for hit in gallery.search(query, ["image"], 99, Filter(**chosen))}

    def wanted(test):
        return {i for i in range(30) if made_up.scene_known["image"][i] and test(i)}

    assert found(split="train") == wanted(lambda i: i % 2 == 0)
    assert found(category="office") == wanted(lambda i: made_up.categories[i] == "office")
    assert found(category="office", split="val") == wanted(lambda i: made_up.categories[i] == "office" and i % 2)
    assert found(without=("s3", "s5")) == wanted(lambda i: i not in (3, 5))
    place = made_up.places[4]
    assert found(without_place=(place,)) == wanted(lambda i: made_up.places[i] != place) != wanted(lambda i: True)
    with pytest.raises(KeyError, match="no scene has category 'ofice'; did you mean 'office'"):
        found(category="ofice")
    with pytest.raises(ValueError, match="the filters leave no scene with image"):
        found(without=tuple(made_up.names))
    with pytest.raises(ValueError, match="leave no scene"):
        gallery.targets(Filter(without=tuple(made_up.names)))


def test_words_that_are_wrong(tmp_path):
    made = embeddings({"image": [(1, 0), (0, 1)], "point": [(1, 0), (0, 1)]})
    made.scenes["point"][:], made.scene_known["point"][:] = 0, False
    gallery = write_gallery(tmp_path / "db", made, no_picture)
    query = np.array([1, 0], np.float32)
    assert gallery.modalities == gallery.targets() == ["image"]
    with pytest.raises(ValueError, match="none of its 2 scenes has point; it has image"):
        gallery.search(query, ["point"])
    with pytest.raises(KeyError, match="holds no 'imge'; did you mean 'image'"):
        gallery.search(query, ["imge"])
    with pytest.raises(ValueError, match="at least 1"):
        gallery.search(query, ["image"], 0)
    for chosen, what in ((Filter(without=(f"{made.names[0]}x",)), "name"), (Filter(without_place=("nowhere",)), "place")):
        with pytest.raises(KeyError, match=f"no scene has {what} .* nothing to leave out; did you mean|no scene has {what} .* nothing to leave out"):
            gallery.allowed("image", chosen)
    with pytest.raises(ValueError, match="its vectors have 2 numbers"):
        gallery.search(np.ones(3, np.float32), ["image"])


def test_scenes_are_added_and_replaced(tmp_path):
    first = embeddings({"image": [(1, 0, 0), (0, 1, 0)]}, [[(4, "chair", {"image": (1, 0)})], []], names=["a", "b"], places=["a", "b"])
    first.details["folders"] = ["/one/a", "/one/b"]
    second = embeddings({"image": [(0, 0, 1), (1, 1, 1)]}, [[(7, "desk", {"image": (0, 1)})], []], names=["b", "c"], places=["b", "c"])
    second.details["folders"] = ["/two/b", "/two/c"]
    shades = iter((40, 90))
    write_gallery(tmp_path / "db", first, lambda number: np.full((8, 8, 3), next(shades), np.uint8))
    with pytest.raises(FileExistsError, match="--add"):
        write_gallery(tmp_path / "db", second, no_picture)
    gallery = write_gallery(tmp_path / "db", second, lambda number: None if number == 0 else np.full((8, 8, 3), 200, np.uint8), add=True)
    e = gallery.embeddings
    assert e.names == ["a", "b", "c"] and e.details["folders"] == ["/one/a", "/two/b", "/two/c"] and e.labels == ["chair", "desk"]
    np.testing.assert_allclose(e.scenes["image"][1], [0, 0, 1])
    assert abs(int(gallery.picture(0).mean()) - 40) < 3 and gallery.picture(1) is None and abs(int(gallery.picture(2).mean()) - 200) < 3


def test_another_model_is_refused_with_both_names(tmp_path):
    gallery = write_gallery(tmp_path / "db", embeddings({"image": [(1, 0)]}), no_picture)
    with pytest.raises(ValueError, match="by the model hand-made, w.pth is abc123.*different spaces"):
        gallery.check_model("abc123", "w.pth")
    with pytest.raises(ValueError, match="hand-made.*is other"):
        write_gallery(tmp_path / "db", embeddings({"image": [(1, 0)]}, model="other"), no_picture, add=True)
    assert Gallery(tmp_path / "db").embeddings.model == "hand-made"


def test_what_is_no_gallery_and_what_is_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="no gallery.*pointcept3m embed --gallery makes one"):
        Gallery(tmp_path)
    write_gallery(tmp_path / "db", random_embeddings(), no_picture)
    path = tmp_path / "db" / "embeddings.safetensors"
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged.*embed the scenes again"):
        Gallery(tmp_path / "db")


def test_an_index_is_used_and_goes_with_its_vectors(tmp_path):
    pytest.importorskip("faiss", reason="the index of large galleries: pip install faiss-cpu")
    first = random_embeddings(seed=1, scenes=40, width=8)
    gallery = write_gallery(tmp_path / "db", first, no_picture)
    report = gallery.build_index("image")
    file = tmp_path / "db" / "index" / "image.safetensors"
    assert report.recall >= 0.995 and report.trials > 20 and file.is_file()
    again = Gallery(tmp_path / "db")
    assert type(again.index("image")).__name__ == "FaissIndex" and type(again.index("point")).__name__ == "ExactIndex"
    for row in np.flatnonzero(first.scene_known["image"])[:8]:
        assert again.search(first.scenes["image"][row], ["image"], 1)[0].number == row
    kept = file.read_bytes()
    changed = write_gallery(tmp_path / "db", random_embeddings(seed=2, scenes=40, width=8), no_picture, add=True)
    assert not file.exists() and type(changed.index("image")).__name__ == "ExactIndex"
    file.write_bytes(kept)  # somebody copies the old one back
    with pytest.raises(ValueError, match="gallery was changed since"):
        Gallery(tmp_path / "db").index("image")


def test_features_of_a_scene_that_has_changed_are_made_anew(tmp_path, monkeypatch):
    """A file is believed where the model's encoders, all of them, made it of what the folder holds."""
    from types import SimpleNamespace

    from pointcept3m.engines.modalities.extract import inputs_digest
    from pointcept3m.engines.retrieval import scenes
    from pointcept3m.structures.modality_features import modality_path, write_modalities
    from pointcept3m.structures.scene_objects import SceneFacts, write_facts
    from tests.datasets.crossover_scenes import features

    folder = tmp_path / "val" / "room"
    folder.mkdir(parents=True)
    write_facts(folder, SceneFacts("here"))
    made = features("room", "val", details={"inputs": inputs_digest(folder)})
    write_modalities(modality_path(folder, "pocket"), made)
    monkeypatch.setattr(scenes, "extract_scene", lambda *arguments: "anew")
    model = SimpleNamespace(recipe=SimpleNamespace(name="pocket", encoders=made.encoders))
    assert scenes.scene_features(folder, model).scene == "room"
    model.recipe.encoders = {**made.encoders, "sound": "another"}
    assert scenes.scene_features(folder, model) == "anew"
    model.recipe.encoders = made.encoders
    write_facts(folder, SceneFacts("there"))
    assert scenes.scene_features(folder, model) == "anew"
