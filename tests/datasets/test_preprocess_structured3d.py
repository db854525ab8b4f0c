"""Structured3D to scene folders: a room that is known comes back, what is broken is named."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointcept3m.datasets.preprocess_scenes import SceneReport, preprocess, summary
from pointcept3m.datasets.preprocess_structured3d import (
    CLASS_IDS,
    Settings,
    fill_room,
    jobs_of,
    split_of,
    vote,
    within,
)
from pointcept3m.datasets.readers.structured3d import read_boxes, read_camera, read_structure
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.categories import object_labels
from pointcept3m.structures.camera import unproject
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import SceneObject, read_facts, read_floorplan, read_mask, read_objects
from tests.datasets.raw_structured3d import DOOR, FIRST_ID, PLACE, SIZE, WINDOW, write_house, write_image

HOUSE, ROOM = "scene_00012", 485142
NAME = f"{HOUSE}_{ROOM}"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """(root, room, frames)."""
    root = tmp_path_factory.mktemp("raw") / "Structured3D"
    return root, *write_house(root, HOUSE, 3, ROOM)


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    """(scene folder, report, room)."""
    out = tmp_path_factory.mktemp("out")
    settings = Settings(referrals="template")
    reports = preprocess(fill_room, jobs_of(raw[0].parent, out, ["train"], settings), settings, workers=0)
    return out / "train" / NAME, reports[0], raw[1]


@pytest.fixture
def copy(raw, tmp_path):
    shutil.copytree(raw[0], tmp_path / "raw")
    return tmp_path / "raw"


def run(root, out, settings=None, **options):
    settings = settings or Settings()
    return preprocess(fill_room, jobs_of(root, out, ["train"], settings), settings, workers=0, **options)[0]


def surface_distance(room, points):
    """Metres from points to the plane of the nearest triangle, found by rays along six directions."""
    caster, best = RayCaster(Surface.of(room)), np.full(len(points), np.inf)
    for axis in range(3):
        for sign in (-1, 1):
            ray = np.zeros_like(points, dtype=np.float32)
            ray[:, axis] = sign
            start = (points - ray * 0.15).astype(np.float32)
            face, distance = caster.hit(start, ray)
            best = np.minimum(best, np.where(face >= 0, np.abs(distance - 0.15), np.inf))
    return best


def test_points_lie_on_the_rooms_surfaces_with_their_classes_and_objects(done):
    folder, report, room = done
    data = Scene(folder).points(("color", "normal", "segment", "instance"))
    own = data["coord"] - PLACE
    distance = surface_distance(room, own)
    assert len(own) > 20_000 and np.median(distance) < 0.005 and np.percentile(distance, 95) < 0.03
    low, high = room.outline.min(axis=0), room.outline.max(axis=0)
    assert (own[:, :2] > low - 0.25).all() and (own[:, :2] < high + 0.25).all()  # not mirrored, not moved
    nyu40 = object_labels(room)["nyu40"]
    labelled = data["instance"] >= 0
    assert labelled.mean() > 0.1
    want = np.array([CLASS_IDS.index(k) if k in CLASS_IDS else -1 for k in nyu40[data["instance"][labelled] - FIRST_ID]])
    assert (data["segment"][labelled] == want).mean() > 0.99
    for thing in read_objects(folder)[:6]:
        mine, (low, high) = own[data["instance"] == thing.id], room.objects[thing.id - FIRST_ID].box
        assert ((mine > low - 0.06) & (mine < high + 0.06)).all(axis=1).mean() > 0.97


def test_objects_have_boxes_of_the_annotation_and_names_of_their_class(done):
    folder, _, room = done
    objects = read_objects(folder)
    nyu40 = object_labels(room)["nyu40"]
    assert len(objects) > 5
    for thing in objects:
        low, high = room.objects[thing.id - FIRST_ID].box
        np.testing.assert_allclose(thing.box, [*((low + high) / 2 + PLACE), *(high - low)], atol=1e-3)
        assert thing.label not in ("wall", "floor", "ceiling")
    assert {nyu40[t.id - FIRST_ID] for t in objects if t.label == "bed"} <= {4} and any(thing.texts for thing in objects)


def test_frames_project_onto_the_room_and_masks_fit_them(done, raw):
    folder, report, room = done
    scene, truth = Scene(folder), raw[2]
    names = scene.frame_names
    assert len(names) == report.num_frames == 5 + 8
    listed = {thing.id for thing in read_objects(folder)}
    for name in names:
        depth, intrinsic, _ = scene.depth(name)
        points = unproject(depth, intrinsic, scene.pose(name))[depth > 0][::7] - PLACE
        assert np.median(surface_distance(room, points)) < (0.005 if not name.startswith("panorama") else 0.02), name
        assert set(np.unique(read_mask(folder, name))) <= {*listed, -1}
    for k in range(5):
        np.testing.assert_allclose(scene.pose(str(k))[:3, :3], truth.pose[k][:3, :3], atol=1e-5)
        np.testing.assert_allclose(scene.intrinsic("depth", str(k)), truth.intrinsic, rtol=1e-4)
        want = np.where(truth.instance[k] >= 0, truth.instance[k] + FIRST_ID, -1)
        assert np.array_equal(read_mask(folder, str(k)), np.where(np.isin(want, list(listed)), want, -1))


def test_facts_and_the_plan_with_its_door_and_window(done):
    folder, _, room = done
    facts, plan = read_facts(folder), read_floorplan(folder)
    assert (facts.place, facts.category, facts.reference, facts.dataset) == (NAME, "bedroom", None, "structured3d")

    def shade(wall, t):
        a, b = room.outline[wall], room.outline[(wall + 1) % len(room.outline)]
        column, row = np.floor(plan.pixel((a + (b - a) * t + PLACE[:2])[None])).astype(int)[0]
        return plan.image[row, column].astype(int)

    assert shade(0, 0.1).max() < 100 and shade(0, 0.85).max() < 100  # wall
    assert shade(0, np.mean(DOOR)).min() > 130  # an opening
    blue = shade(1, np.mean(WINDOW))
    assert blue[2] > blue[0] + 20 and shade(1, 0.05).max() < 100


def test_walls_are_sides_of_the_floor_and_holes_are_no_walls(raw):
    root, room, _ = raw
    walls, doors, windows = read_structure(root / HOUSE / "annotation_3d.json").plan(ROOM)
    outline = room.outline + PLACE[:2]
    sides = np.stack([outline, np.roll(outline, -1, axis=0)], axis=1)
    np.testing.assert_allclose(np.sort(walls.mean(axis=1), axis=0), np.sort(sides.mean(axis=1), axis=0), atol=1e-6)
    for found, wall, span in ((doors, 0, DOOR), (windows, 1, WINDOW)):
        a, b = sides[wall]
        want = np.array([a + (b - a) * t for t in span])
        assert len(found) == 1 and (np.allclose(found[0], want, atol=1e-6) or np.allclose(found[0][::-1], want, atol=1e-6))


def test_a_panorama_alone_makes_a_scene(copy, tmp_path):
    shutil.rmtree(copy / HOUSE / "2D_rendering" / str(ROOM) / "perspective")
    report = run(copy, tmp_path / "out", Settings(panorama_views=3))
    assert report.num_frames == 3 and report.num_points > 10_000 and read_objects(tmp_path / "out" / "train" / NAME)


def test_what_is_missing_is_noted(copy, tmp_path):
    room = copy / HOUSE / "2D_rendering" / str(ROOM)
    (copy / HOUSE / "annotation_3d.json").unlink()
    (copy / HOUSE / "bbox_3d.json").unlink()
    (room / "panorama" / "full" / "instance.png").unlink()
    (room / "perspective" / "full" / "2" / "depth.png").unlink()
    report = run(copy, tmp_path / "out")
    folder = tmp_path / "out" / "train" / NAME
    assert report.notes["rooms without a structure (annotation_3d.json), and so without a kind and walls"] == 1
    assert report.notes["rooms without bbox_3d.json, with boxes around points"] == 1
    assert report.notes["pictures without instance.png, and so without a mask"] == 1
    assert report.notes["pictures without depth.png, left out"] == 1 and report.num_frames == 4 + 8
    assert sorted(p.stem for p in (folder / "mask").iterdir()) == ["0", "1", "3", "4"]
    assert read_facts(folder).category == "" and read_floorplan(folder) is not None  # of the furniture


def test_pictures_that_do_not_fit_and_rooms_without_any_are_named(copy, tmp_path):
    room = copy / HOUSE / "2D_rendering" / str(ROOM)
    write_image(room / "perspective" / "full" / "1" / "instance.png", np.zeros((9, 9), np.uint16))
    with pytest.raises(ValueError, match=rf"full/1: instance has 9 x 9 pixels, depth {SIZE[1]} x {SIZE[0]}"):
        run(copy, tmp_path / "out")
    report = run(copy, tmp_path / "out", skip_broken=True)
    assert "skipped train/scene_00012_485142" in summary([report]) and not (tmp_path / "out" / "train" / NAME).exists()
    shutil.rmtree(room / "perspective")
    shutil.rmtree(room / "panorama")
    with pytest.raises(ValueError, match=r"485142: has neither perspectives .* nor a panorama with rgb_rawlight\.png"):
        run(copy, tmp_path / "out")


def test_broken_files_are_named(copy, tmp_path):
    camera = copy / HOUSE / "2D_rendering" / str(ROOM) / "perspective" / "full" / "0" / "camera_pose.txt"
    good = camera.read_text()
    for text, said in ((good.replace("1.000000\n", "\n").rsplit(" ", 3)[0], "12|numbers"), ("nan " + good.split(" ", 1)[1], "finite"), ("a b", "wanted eye")):
        camera.write_text(text)
        with pytest.raises(ValueError, match=rf"camera_pose\.txt: .*({said})"):
            read_camera(camera, SIZE)
    words = good.split()
    camera.write_text(" ".join([*words[:6], *words[3:6], *words[9:]]))  # up along the view
    with pytest.raises(ValueError, match="wanted a view direction, another one up"):
        read_camera(camera, SIZE)
    path = copy / HOUSE / "bbox_3d.json"
    boxes = json.loads(path.read_text())
    path.write_text(json.dumps([boxes[0], boxes[0]]))
    with pytest.raises(ValueError, match=rf"bbox_3d\.json: box 1: ID {FIRST_ID} stands there twice"):
        read_boxes(path)
    path.write_text(json.dumps([{**boxes[0], "basis": [[1, 0, 0], [1, 0, 0], [0, 0, 1]]}]))
    with pytest.raises(ValueError, match=r"box 0: .*axes at right angles"):
        read_boxes(path)
    path = copy / HOUSE / "annotation_3d.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "semantics": [{"ID": 1, "type": "study", "planeID": [99]}]}))
    with pytest.raises(ValueError, match=r"annotation_3d\.json: semantic 1 names plane 99, there are"):
        read_structure(path)
    path.write_text(json.dumps({**content, "planeLineMatrix": [[1]]}))
    with pytest.raises(ValueError, match=r"annotation_3d\.json: wanted junctions, lines, planes"):
        read_structure(path)


def test_sceneverse_referrals_need_crossovers_map(copy, tmp_path, done):
    thing = read_objects(done[0])[0]
    lines = [{"scan_id": NAME, "target_id": target, "utterance": text} for target, text in ((7, "the one by the door"), (8, "nothing of this room"))]
    (tmp_path / "rel2.json").write_text(json.dumps(lines))
    settings = Settings(referrals=str(tmp_path / "rel2.json"), panorama_views=0)
    report = run(copy, tmp_path / "without", settings)
    assert report.notes["referrals of rooms without obj2tgid.json, which says what objects they mean, left out"] == 2
    (copy / HOUSE / "2D_rendering" / str(ROOM) / "obj2tgid.json").write_text(json.dumps({str(thing.id): 7}))
    report = run(copy, tmp_path / "with", settings)
    told = {found.id: found.texts for found in read_objects(tmp_path / "with" / "train" / NAME) if found.texts}
    assert told == {thing.id: ["the one by the door"]} and report.notes["referrals to objects that are not in the scene, left out"] == 1


def test_splits_lists_and_rooms_that_are_not_there(copy, tmp_path):
    assert [split_of(f"scene_{n:05d}") for n in (0, 2999, 3000, 3249, 3250)] == ["train", "train", "val", "val", "test"]
    with pytest.raises(ValueError, match="none of its 1 rooms is of the splits val"):
        jobs_of(copy, tmp_path, ["val"], Settings())
    (tmp_path / "val.txt").write_text(NAME + "\n")
    assert jobs_of(copy, tmp_path, ["val"], Settings(), {"val": tmp_path / "val.txt"})[0].target == tmp_path / "val" / NAME
    (tmp_path / "val.txt").write_text("scene_00012_485143\n")
    with pytest.raises(ValueError, match=r"has no room 'scene_00012_485143', .*scene_00012_485142"):
        jobs_of(copy, tmp_path, ["val"], Settings(), {"val": tmp_path / "val.txt"})
    (copy / HOUSE).rename(copy / "scene_01155")
    with pytest.raises(ValueError, match="none of its 1 rooms"):
        jobs_of(copy, tmp_path, ["train"], Settings())
    shutil.rmtree(copy / "scene_01155")
    (copy / "Structured3D_panorama_00.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"Structured3D_panorama_00\.zip is still packed"):
        jobs_of(copy, tmp_path, ["train"], Settings())


def test_vote_by_hand():
    coord = np.array([[0.01, 0.01, 0.01], [0.03, 0.01, 0.01], [0.5, 0.5, 0.5]], np.float32)
    first = (np.array([[0.01, 0.0, 0.0], [0.015, 0.0, 0.0], [0.03, 0.0, 0.0]]), np.array([5, 5, 9]))
    second = (np.array([[0.005, 0.01, 0.0], [0.031, 0.0, 0.0]]), np.array([7, 8]))
    assert vote(coord, [first, second], 0.02).tolist() == [5, 8, -1]  # 5 twice of three; 8 and 9 once each, the smaller


def test_objects_of_the_next_room_are_left_out():
    walls = np.array([[[0, 0], [4, 0]], [[4, 0], [4, 3]], [[4, 3], [0, 3]], [[0, 3], [0, 0]]], float)
    objects = [SceneObject(1, "bed", (2, 2, 0.3), (1, 1, 1)), SceneObject(2, "sofa", (6, 2, 0.3), (1, 1, 1)), SceneObject(3, "curtain", (4.1, 1, 1), (1, 1, 1))]
    report = SceneReport("room", "train")
    assert [thing.id for thing in within(objects, walls, report)] == [1, 3]
    assert report.notes == {"objects of other rooms, seen through doors, left out": 1}


def test_the_tool_end_to_end(raw, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("structured3d", Path(__file__).parents[2] / "tools" / "preprocess" / "structured3d.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--raw-root", str(raw[0]), "--output-root", str(tmp_path), "--workers", "0", "--image-width", "64", "--panorama-views", "2"]
    assert module.main(options) == 0
    assert "1 scenes (train 1)" in capsys.readouterr().out
    folder = tmp_path / "train" / NAME
    with Image.open(folder / "color" / "0.jpg") as picture:
        assert picture.size == (64, 36)
    stamp = (folder / "coord.npy").stat().st_mtime_ns
    assert module.main(options) == 0 and (folder / "coord.npy").stat().st_mtime_ns == stamp
