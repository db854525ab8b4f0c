"""embed and retrieve from the command line: every kind of query, guesses that are said, answers as JSON and pictures, bad input."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pointcept3m.cli import run_for_user
from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.modalities.extract import ModalitySettings, extract_scene
from pointcept3m.engines.retrieval import command
from pointcept3m.engines.retrieval import scenes as embed_scenes
from pointcept3m.engines.retrieval.command import embed_main, retrieve_main
from pointcept3m.engines.retrieval.gallery import Gallery
from pointcept3m.engines.retrieval.inputs import guess_kind, open_retrieval_model
from pointcept3m.engines.retrieval.rerank import rerank
from pointcept3m.engines.retrieval.scenes import scene_features
from pointcept3m.models.crossover.rerank import PlanReranker
from pointcept3m.structures.images import read_color
from pointcept3m.structures.modality_features import modality_path, write_modalities
from pointcept3m.structures.scene_objects import read_floorplan
from pointcept3m.utils.config import Config
from tests.engines.modalities.scenes import RECIPE
from tests.engines.retrieval.made import write_model, write_scenes


def ask(made, tmp_path, *argv):
    """The hits of a query, best first."""
    out = tmp_path / "hits.json"
    assert retrieve_main([*map(str, argv), "--gallery", str(made.gallery), "--weight", made.weight, "--out", str(out), "--overwrite"]) == 0
    return json.loads(out.read_text())["hits"]


def test_a_gallery_of_scene_folders(made):
    gallery = Gallery(made.gallery)
    e = gallery.embeddings
    assert e.names == ["room0", "room1", "room2"] and e.splits == ["val"] * 3 and e.categories == ["office"] * 3 and e.datasets == ["made"] * 3
    assert {name: known.tolist() for name, known in e.scene_known.items()} == {
        "image": [True, True, False], "floorplan": [True, True, False], "point": [True] * 3, "text": [True] * 3, "scene": [True] * 3,
    }  # fmt: skip
    assert e.object_id.tolist() == [2, 5, 9] * 3 and e.labels[:3] == ["desk", "chair", "lamp"]
    assert all(gallery.picture(number) is not None for number in range(3))  # the last from above, since it has nothing else


@pytest.mark.parametrize("kind", ["floorplan", "image", "point"])
def test_files_alone_give_the_vectors_of_the_gallery(made, tmp_path, kind):
    e = Gallery(made.gallery).embeddings
    given = []
    for number in (0, 1):
        room = made.scenes / f"room{number}"
        given.append({"floorplan": room / "floorplan.png", "image": room / "color", "point": tmp_path / f"{number}.npz"}[kind])
        np.savez(tmp_path / f"{number}.npz", coord=np.load(room / "coord.npy"), color=np.load(room / "color.npy"))
    out = tmp_path / "vectors.npy"
    assert embed_main([*map(str, given), "--as", kind, "--unit", "m", "--up-axis", "z", "--weight", made.weight, "--out", str(out)]) == 0
    tolerance = 1e-4 if kind == "point" else 2e-3  # features lie in float16
    np.testing.assert_allclose(np.load(out), e.scenes[kind][:2], atol=tolerance)
    assert np.abs(e.scenes[kind][0] - e.scenes[kind][1]).max() > 5 * tolerance  # rooms that were swapped would not pass


def test_a_text_finds_who_has_its_words(made, tmp_path):
    texts = ["the toilet right of the bathtub", "the large toilet", "the bathtub left of the toilet"]
    (tmp_path / "words.txt").write_text("\n".join(texts))
    hits = ask(made, tmp_path, "--query", tmp_path / "words.txt", "--target", "text")
    assert hits[0]["scene"] == "room1" and hits[0]["score"] == pytest.approx(1, abs=1e-3) and hits[1]["score"] < 0.99
    long = "the bathtub left of the toilet, " * 20  # longer than a name of a file may be
    assert ask(made, tmp_path, "--query", long, "--target", "text")[0]["scene"] == "room1"
    stove = ask(made, tmp_path, "--query", "the large fridge", "--query", "the stove left of the fridge", "--target", "text")
    assert stove[0]["scene"] == "room2"


def test_modalities_of_a_scene_folder(made, tmp_path):
    room = made.scenes / "room1"
    assert ask(made, tmp_path, "--query", room, "--as", "scene", "--target", "scene")[0]["scene"] == "room1"
    with pytest.raises(ValueError, match="is a whole scene; --as .*scene says which"):
        ask(made, tmp_path, "--query", room)
    with pytest.raises(ValueError, match="has no floorplan"):
        ask(made, tmp_path, "--query", made.scenes / "room2", "--as", "floorplan")


def test_several_queries_are_averaged(made, tmp_path):
    plan, frames = made.scenes / "room0" / "floorplan.png", made.scenes / "room0" / "color"
    for name, given in (("a", [(plan, "floorplan")]), ("b", [(frames, "image")])):
        argv = [*(str(path) for path, _ in given), "--as", given[0][1], "--weight", made.weight, "--out", str(tmp_path / f"{name}.npy")]
        assert embed_main(argv) == 0
    mean = np.load(tmp_path / "a.npy")[0] + np.load(tmp_path / "b.npy")[0]
    wanted = Gallery(made.gallery).search((mean / np.linalg.norm(mean)).astype(np.float32), ["point"], 3)
    hits = ask(made, tmp_path, "--query", plan, "--as", "floorplan", "--query", frames, "--as", "image", "--target", "point")
    assert [hit["scene"] for hit in hits] == [hit.name for hit in wanted]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit.score for hit in wanted], atol=1e-5)


def test_a_sheet_of_pictures(made, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert retrieve_main(["--query", "a chair", "--gallery", str(made.gallery), "--weight", made.weight, "--out", str(out), "--out", str(out.with_suffix(".json"))]) == 0
    printed = capsys.readouterr().out
    assert "a chair: taken for a text (--as" in printed and printed.count("val/room") == 3
    sheet = read_color(out)
    gallery, order = Gallery(made.gallery), json.loads(out.with_suffix(".json").read_text())["hits"]
    cells = [column for column in np.split(sheet, range(sheet.shape[1] // 4, sheet.shape[1], sheet.shape[1] // 4), axis=1) if column.shape[1] > 200]
    assert len(cells) == 4  # the query, then the scenes in the order of the ranking, each with its own picture
    colors = [set(map(tuple, cell.reshape(-1, 3)[:: 7].tolist())) for cell in cells[1:]]
    for hit, color in zip(order, colors, strict=True):
        own = {other["scene"]: len(color & set(map(tuple, gallery.picture(other["number"]).reshape(-1, 3).tolist()))) for other in order}
        assert max(own, key=own.get) == hit["scene"]


def test_guesses(tmp_path, made):
    rng = np.random.default_rng(0)
    plan = np.full((60, 80, 3), 255, np.uint8)
    plan[10:12, 10:70] = plan[50:52, 10:70] = 0
    smooth = np.tile((127 + 100 * np.sin(np.linspace(0, 2 * np.pi, 200)))[None, :, None], (100, 1, 3)).astype(np.uint8)
    for name, picture in (("plan", plan), ("photo", rng.integers(0, 200, (60, 80, 3))), ("turn", smooth), ("wide", rng.integers(0, 40, (50, 100, 3)) + np.linspace(0, 180, 100)[None, :, None])):
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"{name}.png")
    wide = np.full((50, 100, 3), 250, np.uint8)
    wide[10:12, 10:90] = wide[40:42, 10:90] = 0
    Image.fromarray(wide).save(tmp_path / "flat.png")  # a plan twice as wide as high is no panorama
    lines = np.zeros((60, 80, 4), np.uint8)
    lines[10:12, 10:70, 3] = 255
    Image.fromarray(lines).save(tmp_path / "clear.png")  # black lines on nothing
    Image.fromarray(plan[..., 0] > 0).save(tmp_path / "bits.png")
    for name in ("flat", "clear", "bits"):
        assert guess_kind(tmp_path / f"{name}.png") == "floorplan", name
    (tmp_path / "points.txt").write_text("0 0 0 255 0 0\n1 2 3 0 0 0\n")
    (tmp_path / "words.txt").write_text("2 chairs and 3 tables\n")
    found = {name: guess_kind(tmp_path / name) for name in ("plan.png", "photo.png", "turn.png", "wide.png", "points.txt", "words.txt")}
    assert found == {"plan.png": "floorplan", "photo.png": "image", "turn.png": "panorama", "wide.png": "image", "points.txt": "point", "words.txt": "text"}
    assert guess_kind(made.scenes / "room0") == "scene" and guess_kind(made.scenes / "room0" / "color") == "image"
    (tmp_path / "frames").mkdir()
    for name in ("0.color.png", "0.depth.png"):
        shutil.copy(tmp_path / "plan.png", tmp_path / "frames" / name)
    assert guess_kind(tmp_path / "frames") == "point"
    assert guess_kind("a desk / table near the window") == guess_kind("words " * 100) == guess_kind("one\ntwo") == "text"


def test_a_panorama_is_cut_into_views(made, tmp_path, capsys):
    Image.fromarray(np.tile((127 + 100 * np.sin(np.linspace(0, 2 * np.pi, 200)))[None, :, None], (100, 1, 3)).astype(np.uint8)).save(tmp_path / "p.png")
    assert len(ask(made, tmp_path, "--query", tmp_path / "p.png")) == 3
    printed = capsys.readouterr().out
    assert "taken for a panorama" in printed and "8 views cut out of the panorama" in printed


def test_a_run_of_all_stages_is_opened_at_its_last(made, tmp_path):
    """`sh tools/train.sh -c configs/crossover/rooms.py` leaves a folder of folders, one a stage."""
    model = tmp_path / "run" / "unified" / "model"
    model.mkdir(parents=True)
    shutil.copy(made.weight, model / "model_best.safetensors")
    assert retrieve_main(["--query", "a chair", "--gallery", str(made.gallery), "--weight", str(tmp_path / "run")]) == 0


def refused(capsys, command, *argv):
    assert run_for_user(command, list(map(str, argv))) == 1
    return capsys.readouterr().err


def test_bad_queries(made, tmp_path, capsys):
    rest = ["--gallery", made.gallery, "--weight", made.weight]
    (tmp_path / "no.png").write_bytes(b"this is no picture")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "what.xyzw").write_text("?")
    (tmp_path / "none.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("x")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "mesh.obj").write_text("v 0 0 0\n")
    (tmp_path / "latin.txt").write_bytes("une chaise à côté".encode("latin-1"))
    with open(tmp_path / "none.ply", "ab") as stream:
        stream.write(b"\xc5\xff")
    for query, more, message in (
        (tmp_path / "no.png", [], "no.png: not a readable"),
        (tmp_path / "empty.txt", [], "empty text"),
        ("  ", [], "empty text"),
        (tmp_path / "what.xyzw", [], "nor a text file"),
        ("scan.e57", [], "no such file"),
        (tmp_path / "mesh.obj", [], "trimesh"),
        (tmp_path / "latin.txt", [], "latin.txt: no text in UTF-8"),
        (tmp_path / "none.ply", ["--as", "text"], "none.ply"),
        (tmp_path / "nothing", [], "an empty folder"),
        ("a chair", ["--without", "romo0"], "nothing to leave out; did you mean 'room0'"),
        (tmp_path / "none.ply", [], "none.ply"),
        (tmp_path / "gone.png", [], "no such file"),
        (tmp_path / "folder", ["--as", "image"], "no picture in this folder"),
        ("a chair", ["--as", "txt"], "did you mean 'text'"),
        ("a chair", ["--split", "vla"], "did you mean 'val'"),
        ("a chair", ["--category", "kitchen"], "no scene has category 'kitchen'"),
        ("a chair", ["--target", "cad"], "holds no 'cad'"),
        ("a chair", ["--without", "room0", "--without", "room1", "--without", "room2"], "the filters leave no scene"),
        ("a chair", ["--top", "0"], "--top"),
        ("a chair", ["--out", tmp_path / "x.txt"], ".json, .png"),
        ("a chair", ["--as", "text", "--as", "text"], "2 times --as for 1 queries"),
    ):
        assert message in refused(capsys, retrieve_main, "--query", query, *rest, *more), query
    assert "no gallery" in refused(capsys, retrieve_main, "--query", "a chair", "--gallery", tmp_path, "--weight", made.weight)


def test_a_recipe_of_ones_own_is_named(made, tmp_path, capsys):
    """The config says the name of the recipe; a file says what it is, and weights of encoders come as in the preprocessing."""
    parts = {key: value for key, value in RECIPE.items() if key != "name"}
    (tmp_path / "mine.py").write_text("".join(f"{key} = {value!r}\n" for key, value in parts.items()))
    weight = write_model(tmp_path / "run" / "model_best.safetensors", recipe={**parts, "name": "mine"})
    argv = ["--gallery", tmp_path / "db", "--weight", weight]
    assert "--recipe FILE.py says what it is" in refused(capsys, embed_main, made.scenes, *argv)
    assert "trained with the recipe 'mine', and --recipe is 'pocket'" in refused(capsys, embed_main, made.scenes, *argv, "--recipe", "pocket")
    assert embed_main(list(map(str, [made.scenes, *argv, "--recipe", tmp_path / "mine.py"]))) == 0
    one, other = Gallery(tmp_path / "db").embeddings, Gallery(made.gallery).embeddings
    np.testing.assert_allclose(one.scenes["image"], other.scenes["image"], atol=1e-5)  # the same encoders by another name
    assert "wanted PART=PATH" in refused(capsys, embed_main, made.scenes, *argv, "--resume", "--recipe", tmp_path / "mine.py", "--encoder-weight", "image")
    asked = ["--query", "a chair", "--gallery", str(tmp_path / "db"), "--weight", str(weight), "--recipe", str(tmp_path / "mine.py")]
    assert retrieve_main(asked) == 0
    assert embed_main([str(made.scenes), "--gallery", str(tmp_path / "few"), *asked[4:], "--leave-out", "image", "text"]) == 0
    known = Gallery(tmp_path / "few").embeddings.scene_known
    assert known["point"].all() and not known["image"].any() and not known["text"].any()


def test_a_run_folder_stands_for_the_weights_of_its_tables(made, tmp_path):
    """Rooms test their last weights; the best ones were chosen by the scans that are scored."""
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    write_model(run / "model" / "model_best.safetensors", seed=1)
    last = write_model(run / "model" / "model_last.safetensors", seed=2)
    assert open_retrieval_model(str(run), say=str).weight.endswith("model_best.safetensors")
    write_model(last, seed=2, hooks=[dict(type="PreciseEvaluator", test_last=True)])
    assert open_retrieval_model(str(run), say=str).weight == str(last)


def test_features_of_other_files_are_made_anew_and_told(made, tmp_path, capsys):
    scenes = write_scenes(tmp_path, 1)
    model = open_retrieval_model(made.weight, say=str)
    path = modality_path(scenes / "room0", "tiny", None)
    written = extract_scene(scenes / "room0", model.recipe, ModalitySettings(num_texts=1))
    path.parent.mkdir()
    write_modalities(path, written)
    said = []
    assert len(scene_features(scenes / "room0", model, say=said.append).texts) == 1 and not said
    ids = np.load(scenes / "room0" / "instance.npy")
    np.save(scenes / "room0" / "instance.npy", np.where(ids == 5, 2, ids))  # of the same size
    again = scene_features(scenes / "room0", model, say=said.append)
    assert "was made of other files" in said[0] and len(again.texts) == 1  # with the settings of the file
    assert not np.array_equal(again.objects["point"], written.objects["point"])


def test_another_model(made, tmp_path, capsys):
    other = write_model(tmp_path / "other.safetensors", seed=1)
    error = refused(capsys, retrieve_main, "--query", "a chair", "--gallery", made.gallery, "--weight", other)
    assert Gallery(made.gallery).embeddings.model in error and "different spaces" in error
    error = refused(capsys, embed_main, made.scenes, "--gallery", made.gallery, "--weight", other, "--add")
    assert "different spaces" in error


def test_scenes_are_added(made, tmp_path, capsys):
    first, second = write_scenes(tmp_path / "one", 2), write_scenes(tmp_path / "two", 3)
    where = ["--gallery", str(tmp_path / "db"), "--weight", made.weight]
    assert embed_main([str(first), *where]) == 0
    assert "--add puts scenes into it" in refused(capsys, embed_main, second, *where)
    assert embed_main([str(second / "room2"), *where, "--add"]) == 0
    gallery = Gallery(tmp_path / "db")
    assert gallery.embeddings.names == ["room0", "room1", "room2"]
    assert gallery.embeddings.details["folders"] == [str(path.resolve()) for path in (first / "room0", first / "room1", second / "room2")]
    (tmp_path / "nothing").mkdir()
    assert "no scene in it" in refused(capsys, embed_main, tmp_path / "nothing", *where, "--add")


def test_a_gallery_that_was_stopped_goes_on(made, tmp_path, capsys, monkeypatch):
    """What was embedded before the stop is not embedded again, and the whole equals a gallery made in one go."""
    scenes, db = write_scenes(tmp_path, 3), tmp_path / "db"
    whole, broken = scenes / "room1" / "objects.json", (scenes / "room1" / "objects.json").read_text()
    whole.write_text("{")
    monkeypatch.setattr(command, "WRITE_EVERY", 0.0)
    real = embed_scenes.embed_scenes
    monkeypatch.setattr(embed_scenes, "embed_scenes", lambda *given, **options: real(*given, **options, batch=1))
    argv = [str(scenes), "--gallery", str(db), "--weight", made.weight]
    assert "objects.json" in refused(capsys, embed_main, *argv)
    assert Gallery(db).embeddings.names == ["room0"]  # written before the scene that ended it
    assert embed_main([*argv, "--resume", "--skip-broken"]) == 1
    said = capsys.readouterr().out
    assert "1 of 3 scenes are in" in said and "2 of 2 scenes" in said and "left out, since they could not be read: room1" in said
    whole.write_text(broken)
    assert embed_main([*argv, "--resume"]) == 0 and "2 of 3 scenes are in" in capsys.readouterr().out
    resumed, once = Gallery(db).embeddings, Gallery(made.gallery).embeddings
    order = [resumed.names.index(name) for name in once.names]
    for modality, rows in once.scenes.items():
        np.testing.assert_allclose(resumed.scenes[modality][order], rows, atol=1e-5)
    assert all(Gallery(db).picture(number) is not None for number in range(3))
    assert embed_main([*argv, "--resume"]) == 0 and "3 of 3 scenes are in" in capsys.readouterr().out
    assert "holds a gallery already" in refused(capsys, embed_main, *argv)


def test_a_scene_whose_picture_is_broken_shifts_no_other(made, tmp_path, capsys):
    """Its features were extracted before, so that it is the picture for the gallery alone that cannot be read."""
    scenes, model = write_scenes(tmp_path, 3), open_retrieval_model(made.weight, say=str)
    path = modality_path(scenes / "room0", "tiny", None)
    path.parent.mkdir()
    write_modalities(path, extract_scene(scenes / "room0", model.recipe))
    frames = sorted((scenes / "room0" / "color").iterdir())
    frames[len(frames) // 2].write_bytes(b"no picture")
    assert embed_main([str(scenes), "--gallery", str(tmp_path / "db"), "--weight", made.weight, "--skip-broken"]) == 1
    assert "left out, since they could not be read: room0" in capsys.readouterr().out
    found, whole = Gallery(tmp_path / "db").embeddings, Gallery(made.gallery).embeddings
    assert found.names == ["room1", "room2"] and [path.rsplit("/", 1)[1] for path in found.details["folders"]] == found.names
    np.testing.assert_allclose(found.scenes["text"], whole.scenes["text"][1:], atol=1e-5)
    assert np.array_equal(Gallery(tmp_path / "db").picture(1), Gallery(made.gallery).picture(2))


def test_scans_pictures_and_plans_become_scenes_of_a_gallery(made, tmp_path, capsys):
    """No layout is needed: each file is a scene in the modality that it is."""
    room = made.scenes / "room0"
    scan = tmp_path / "hall.npz"
    np.savez(scan, coord=np.load(room / "coord.npy") * 1000, color=np.load(room / "color.npy"))
    shutil.copy(room / "floorplan.png", tmp_path / "plan.png")
    shutil.copytree(room / "color", tmp_path / "views")
    shutil.copytree(made.scenes / "room2", tmp_path / "room2")
    argv = [tmp_path / name for name in ("hall.npz", "views", "room2")]
    where = ["--gallery", str(tmp_path / "db"), "--weight", made.weight]
    assert embed_main([*map(str, argv), *where, "--unit", "mm", "--up-axis", "z"]) == 0
    e, whole = Gallery(tmp_path / "db").embeddings, Gallery(made.gallery).embeddings
    assert e.names == ["hall", "views", "room2"] and [known.tolist() for known in (e.scene_known["point"], e.scene_known["image"])] == [[True, False, True], [False, True, False]]
    np.testing.assert_allclose(e.scenes["point"][0], whole.scenes["point"][0], atol=1e-4)  # millimetres, as the flag says
    np.testing.assert_allclose(e.scenes["image"][1], whole.scenes["image"][0], atol=2e-3)
    assert all(Gallery(tmp_path / "db").picture(number) is not None for number in range(3))
    capsys.readouterr()
    assert retrieve_main(["--query", str(room / "color"), *where, "--target", "image"]) == 0
    assert " views" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [300.0, 0.0])
def test_scenes_of_one_name_are_told_apart_or_named(made, tmp_path, capsys, monkeypatch, seconds):
    """Also where the gallery was written between the two."""
    monkeypatch.setattr(command, "WRITE_EVERY", seconds)
    real = embed_scenes.embed_scenes
    monkeypatch.setattr(embed_scenes, "embed_scenes", lambda *given, **options: real(*given, **options, batch=1))
    for name in ("a", "b"):
        shutil.copytree(made.scenes / "room0", tmp_path / name / "val" / "office")
    where = ["--gallery", tmp_path / "db", "--weight", made.weight]
    error = refused(capsys, embed_main, tmp_path / "a", tmp_path / "b", *where)
    assert "both are scene 'office' of split 'val'" in error and "scene.json" in error
    where[1] = tmp_path / "other"
    assert embed_main([str(tmp_path / "a"), *map(str, where)]) == 0
    assert embed_main([str(tmp_path / "b"), *map(str, where), "--add"]) == 0
    assert f"{tmp_path / 'b' / 'val' / 'office'}: takes the place of {tmp_path / 'a' / 'val' / 'office'}" in capsys.readouterr().out


def test_depth_of_a_scene_without_points_is_fused(made, tmp_path, real_data):
    source = real_data("rgbd_scannet_scene0014_00")
    assert embed_main([str(source), "--gallery", str(tmp_path / "db"), "--weight", made.weight, "--voxel", "0.1"]) == 0
    known = Gallery(tmp_path / "db").embeddings.scene_known
    assert known["image"].tolist() == known["point"].tolist() == [True]


def test_the_index_of_a_gallery(made, tmp_path, capsys):
    pytest.importorskip("faiss", reason="the index of large galleries: pip install faiss-cpu")
    argv = [str(made.scenes), "--weight", made.weight, "--gallery", str(tmp_path / "db"), "--index", "faiss"]
    assert embed_main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.count("index built in") == 5 and "of the ten nearest it finds 100.00%" in printed
    hits = retrieve_main(["--query", "a chair", "--gallery", str(tmp_path / "db"), "--weight", made.weight])
    assert hits == 0 and capsys.readouterr().out.count("val/room") == 3
    assert embed_main([*argv[:-2], "--add"]) == 0 and "faiss index was of the scenes before" in capsys.readouterr().out


def test_a_floorplan_is_reranked_by_the_walls_of_the_scans(made, tmp_path, capsys):
    """The re-ranker's own order, whatever the vectors said; a scene whose points show no wall stands behind."""
    import torch

    torch.manual_seed(1)
    model = PlanReranker(size=32, cell=0.3, dim=8)
    with torch.no_grad():  # as made, its scores differ in the last digits alone
        model.score.weight.mul_(100)
    weight = tmp_path / "reranker.safetensors"
    save_weights(model, weight, {"config": Config(dict(model=dict(type="CrossOver-rerank-v1m1", size=32, cell=0.3, dim=8))).pretty_text})
    scenes, db = write_scenes(tmp_path, 4), tmp_path / "db"
    np.save(scenes / "room1" / "coord.npy", np.load(scenes / "room1" / "coord.npy") * [1, 1, 0.01])
    assert embed_main([str(scenes), "--weight", made.weight, "--gallery", str(db)]) == 0
    given = ["--gallery", str(db), "--weight", made.weight, "--rerank", str(weight), "--target", "point"]
    plan, out = scenes / "room0" / "floorplan.png", tmp_path / "hits.json"

    assert retrieve_main(["--query", str(plan), *given, "--as", "floorplan", "--out", str(out)]) == 0
    said, hits = capsys.readouterr().out, json.loads(out.read_text())["hits"]
    named = {f"room{k}": rerank(read_floorplan(scenes / "room0"), [scenes / f"room{k}"], model.eval())[0] for k in (0, 2, 3)}
    assert [hit["scene"] for hit in hits] == [*sorted(named, key=named.get, reverse=True), "room1"]
    assert [hit["geometry"] for hit in hits[:3]] == pytest.approx(sorted(named.values(), reverse=True), abs=1e-5) and "geometry" not in hits[3]
    assert "1 of 4 candidates could not be compared" in said and "room1" in said

    lone = tmp_path / "plan.png"
    shutil.copy(plan, lone)
    assert retrieve_main(["--query", str(lone), *given, "--as", "floorplan", "--metres-per-pixel", "0.02", "--out", str(out), "--overwrite"]) == 0
    assert json.loads(out.read_text())["hits"] == hits
    with pytest.raises(ValueError, match="say --metres-per-pixel"):
        retrieve_main(["--query", str(lone), *given, "--as", "floorplan"])
    with pytest.raises(ValueError, match="is read as image"):
        retrieve_main(["--query", str(plan), *given, "--as", "image"])
    with pytest.raises(ValueError, match="one floorplan with scans, got 2 queries"):
        retrieve_main(["--query", str(plan), "--query", str(plan), *given])
    with pytest.raises(ValueError, match="wanted a CrossOver-rerank-v1m1"):
        retrieve_main(["--query", str(plan), *given[:-4], "--rerank", made.weight])
