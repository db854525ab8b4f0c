"""Objects of one scene in another: assignment, alignment by hand-made motions, objects that belong to no scene."""

import itertools
import json

import numpy as np
import pytest

from pointcept3m.engines.retrieval.command import localize_main
from pointcept3m.engines.retrieval.localize import align, assign, candidates, localize
from pointcept3m.engines.retrieval.single_objects import object_kind
from tests.engines.embeddings import unit


def moved_by(degrees, shift, points):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return points @ turn.T + shift


def scene(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(count, 16))), rng.uniform([0, 0, 0], [6, 5, 1.5], (count, 3))


def test_assignment_is_the_best_of_all():
    similarity = np.random.default_rng(3).normal(size=(4, 6))
    every = max(itertools.permutations(range(6), 4), key=lambda order: sum(similarity[row, column] for row, column in enumerate(order)))
    assert [column for _, column in sorted(assign(similarity))] == list(every)


def test_a_motion_is_found_though_objects_moved_and_came():
    vectors, centers = scene()
    target, there = np.concatenate([vectors, scene(3, 7)[0]]), np.concatenate([moved_by(130, [2, -1, 0.1], centers), scene(3, 8)[1]])
    there[:2] += [[2.5, 0, 0], [0, 3, 0]]  # two stand elsewhere now
    found = localize(vectors, target, centers, there)
    assert sorted((match.query, match.target) for match in found.matches) == [(i, i) for i in range(8)]
    assert {match.query for match in found.matches if not match.inlier} == {0, 1} and found.inliers == 6
    wanted = moved_by(130, [2, -1, 0.1], np.eye(3))
    np.testing.assert_allclose(np.eye(3) @ found.motion[:3, :3].T + found.motion[:3, 3], wanted, atol=1e-6)


def test_things_that_look_the_same_go_by_place():
    """Four equal chairs round a table: similarity cannot tell which is which, the motion can."""
    vectors, centers = scene(6, seed=2)
    chair = unit(np.random.default_rng(9).normal(size=(1, 16)))
    noise = 0.02 * np.random.default_rng(1).normal(size=(8, 16))
    chairs = np.array([[1, 1, 0.4], [3, 1, 0.4], [3, 3, 0.4], [1, 3, 0.4]])
    query, here = np.concatenate([vectors, unit(chair + noise[:4])]), np.concatenate([centers, chairs])
    target, there = np.concatenate([vectors, unit(chair + noise[4:])]), moved_by(40, [1, 1, 0], here)
    alone = [column for _, column in sorted(assign(query @ target.T))]
    assert alone != list(range(10))  # else this shows nothing
    assert sorted((match.query, match.target) for match in localize(query, target, here, there).matches) == [(i, i) for i in range(10)]


def test_no_motion_where_none_is():
    vectors, centers = scene(5)
    assert localize(vectors, vectors, None, centers).motion is None
    line = np.stack([np.arange(5) ** 2 * 2.0, np.zeros(5), np.zeros(5)], axis=1)
    assert align(line, -line[::-1] * [[3, 1, 1]], np.eye(5)) is None  # no three distances agree
    assert align(centers[:1], centers[:1], np.eye(1)) is None
    two = align(centers[:2], moved_by(10, [1, 0, 0], centers[:2]), np.eye(2))
    np.testing.assert_allclose(centers[:2] @ two[:3, :3].T + two[:3, 3], moved_by(10, [1, 0, 0], centers[:2]), atol=1e-6)
    with pytest.raises(ValueError, match="0 objects in the query"):
        localize(vectors[:0], vectors, None, centers)
    with pytest.raises(ValueError, match="--tolerance"):
        localize(vectors, vectors, centers, centers, 0)


def test_what_an_object_may_be():
    similarity = np.array([[0.9, 0.85, 0.5, 0.81, 0.82, 0.83, 0.84], [0.1, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2]])
    assert candidates(similarity).tolist() == [[True, True, False, False, False, True, True], [False, True, False, False, False, False, False]]


def test_things_that_all_look_the_same_do_not_multiply():
    """A lecture hall with one model of a chair: each may be four of them, and not all."""
    assert candidates(np.ones((30, 30))).sum(axis=1).tolist() == [4] * 30
    rng = np.random.default_rng(0)
    centers, alike = rng.uniform(0, 20, (200, 3)), np.ones((200, 1), np.float32)
    found = localize(alike, alike, centers, centers)
    assert len(found.matches) == 200


# the command


def test_a_scene_in_itself(made, tmp_path, capsys):
    scene, out = str(made.scenes / "room0"), tmp_path / "found.json"
    argv = ["--query", scene, "--scene", scene, "--from", "cad", "--to", "cad", "--weight", made.weight, "--out", str(out), "--out", str(tmp_path / "found.png")]
    assert localize_main(argv) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    assert {(row["query_id"], row["id"]) for row in found["objects"]} == {(2, 2), (5, 5)} and "desk 2" in printed
    assert all(row["score"] == pytest.approx(1, abs=1e-4) for row in found["objects"]) and found["source"] == "cad"
    box = next(row for row in found["objects"] if row["id"] == 2)
    assert box["center"] == [1, 0, 0] and box["size"] == [2, 1, 1]
    np.testing.assert_allclose(found["motion"], np.eye(4), atol=1e-6)
    from pointcept3m.structures.images import read_color

    picture = read_color(tmp_path / "found.png")
    assert (picture == [20, 130, 60]).all(axis=2).sum() > 200  # green frames
    with pytest.raises(FileExistsError, match="--overwrite"):
        localize_main(argv)


def test_objects_of_no_scene(made, tmp_path, capsys):
    trimesh = pytest.importorskip("trimesh", reason="reads meshes: pip install trimesh")
    from PIL import Image

    trimesh.creation.box((0.5, 0.5, 1)).export(tmp_path / "cabinet.obj")
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[5:20, 10:30] = [200, 20, 20, 255]
    Image.fromarray(picture).save(tmp_path / "red.png")
    given = [str(tmp_path / "cabinet.obj"), str(tmp_path / "red.png"), "the large desk"]
    assert localize_main([*(word for each in given for word in ("--query", each)), "--scene", str(made.scenes / "room0"), "--to", "image", "--weight", made.weight]) == 0
    printed = capsys.readouterr().out
    assert "given alone have no place" in printed and printed.count("  -  ") == 2  # three objects, and two of the scene have pictures
    assert [object_kind(each) for each in given] == ["cad", "image", "text"]


@pytest.mark.parametrize(
    ("query", "more", "message"),
    [
        ("nofaces.obj", [], "without faces"),
        ("gone.obj", [], "no such file"),
        ("ROOM", ["--from", "cda"], "did you mean 'cad'"),
        ("ROOM", ["--from", "image", "--scene", "LAST"], None),
        ("LAST", ["--from", "image"], "none of its 3 objects is known by image"),
        ("EMPTY", [], "no objects.json"),
        ("  ", [], "empty text"),
    ],
)
def test_what_is_wrong_is_said(made, tmp_path, query, more, message):
    (tmp_path / "nofaces.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    (tmp_path / "empty").mkdir()
    words = {"ROOM": made.scenes / "room0", "LAST": made.scenes / "room2", "EMPTY": tmp_path / "empty", "nofaces.obj": tmp_path / "nofaces.obj", "gone.obj": tmp_path / "gone.obj"}
    argv = ["--query", str(words.get(query, query)), "--scene", str(words["ROOM"]), "--weight", made.weight, *(str(words.get(word, word)) for word in more)]
    if message is None:
        assert localize_main(argv) == 0
        return
    if query == "nofaces.obj":
        pytest.importorskip("trimesh", reason="reads meshes: pip install trimesh")
    with pytest.raises((ValueError, KeyError, FileNotFoundError), match=message):
        localize_main(argv)
