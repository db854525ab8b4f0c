"""MultiScan to scene folders: faces' objects, ARKit's camera axes, pictures of a video, scans of one place; what is broken is named."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.datasets.preprocess_multiscan import Settings, fill_scan, jobs_of
from pointcept3m.datasets.preprocess_scenes import preprocess
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import read_facts, read_mask, read_objects
from tests.datasets.raw_scans import BOXES, JUNK, SCANS, VIEWS, picture, room, write_json, write_multiscan

ALL = ("train", "val", "test")
FIRST = SCANS[0]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_multiscan(tmp_path_factory.mktemp("raw") / "MultiScan")


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    texts = {4: "the cabinet on the wall", 1: "a wall"}
    write_json(out / "ssg.json", [{"scan_id": FIRST, "target_id": target, "utterance": text} for target, text in texts.items()])
    settings = Settings(frame_stride=1, referrals=str(out / "ssg.json"))
    return out, preprocess(fill_scan, jobs_of(raw, out, ALL, settings), settings, workers=0)


def test_objects_come_from_faces_and_what_is_to_be_removed_is_gone(done):
    folder = done[0] / "train" / FIRST
    data = Scene(folder).points(("color", "instance"))
    coord, _, ids = room()
    assert np.allclose(data["coord"], coord, atol=1e-6) and data["coord"].max() < JUNK[0][0]
    assert np.array_equal(data["instance"], ids)
    objects = {thing.id: thing for thing in read_objects(folder)}
    assert {k: thing.label for k, thing in objects.items()} == {3: "chair", 4: "wall cabinet", 6: "trash can"}
    for name, (low, high) in BOXES.items():
        assert np.allclose(objects[name].box, [*(np.add(low, high) / 2), *np.subtract(high, low)], atol=1e-4)
    assert objects[4].texts == ["the cabinet on the wall"]
    report = next(r for r in done[1] if r.name == FIRST)
    assert report.notes["referrals to objects that are not in the scene, left out"] == 1


def test_cameras_are_turned_to_the_meshs_axes(done):
    folder = done[0] / "train" / FIRST
    scene = Scene(folder)
    assert scene.frame_names == ("000000", "000010", "000020", "000030") and not scene.has_depth
    for k, pose in enumerate(VIEWS):
        frame = scene.frame(scene.frame_names[k])
        assert np.allclose(np.linalg.inv(frame.extrinsic), pose, atol=1e-6)
        _, color, ids = picture(pose, frame.intrinsic, frame.rgb.shape[:2])
        assert np.abs(frame.rgb * 255 - color).mean() < 4
        assert (read_mask(folder, scene.frame_names[k]) == ids).mean() > 0.998


def test_scans_of_a_place_share_two_parts_of_their_name(done):
    """The release splits names at the first underscore, so that all of MultiScan is one place called scene."""
    facts = [read_facts(done[0] / split / scan) for split, scan in zip(("train", "train", "val"), SCANS, strict=True)]
    assert [fact.place for fact in facts] == ["scene_00000", "scene_00000", "scene_00002"]
    assert [fact.reference for fact in facts] == [None, FIRST, None] and facts[0].category == "kitchen"


def _line(root, number, change):
    path = root / FIRST / f"{FIRST}.jsonl"
    lines = path.read_text().splitlines()
    entry = json.loads(lines[number])
    change(entry)
    lines[number] = json.dumps(entry)
    path.write_text("\n".join(lines))


def _annotation(root, change):
    path = root / FIRST / f"{FIRST}.annotations.json"
    content = json.loads(path.read_text())
    change(content["objects"])
    path.write_text(json.dumps(content))


def _one(raw, tmp_path):
    shutil.copytree(raw / FIRST, tmp_path / FIRST)
    shutil.copy(raw / "scans_split.csv", tmp_path)


def test_a_bad_pose_and_a_face_of_no_object_are_counted(raw, tmp_path):
    _one(raw, tmp_path)
    _line(tmp_path, 10, lambda entry: entry.update(transform=[0.0] * 16))
    _annotation(tmp_path, lambda objects: objects.pop(6))  # the trash can
    settings = Settings(frame_stride=1)
    (report,) = preprocess(fill_scan, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    assert report.num_frames == 3 and report.notes["pictures with a pose that is none, left out"] == 1
    assert report.notes["faces whose object the annotation does not have"] == 6 * 2 * 36


BREAKS = {
    "no table": (lambda root: (root / "scans_split.csv").unlink(), FileNotFoundError, "scans_split.csv: no such file"),
    "only a video": (lambda root: shutil.rmtree(root / FIRST / "sequence"), FileNotFoundError, r"this takes them out: mkdir .*ffmpeg -i .*scene_00000_00.mp4"),
    "numbers of frames": (lambda root: [p.rename(p.with_name(f"x{10 * int(p.stem):06d}.jpg")) for p in (root / FIRST / "sequence").iterdir()], ValueError,
                          "frames 0 to 300, and the video has 40 cameras; --sequence-stride 10"),
    "no cameras": (lambda root: (root / FIRST / f"{FIRST}.jsonl").unlink(), FileNotFoundError, ".jsonl: no such file, the cameras"),
    "no camera": (lambda root: _line(root, 20, lambda e: e.pop("intrinsics")), ValueError, "jsonl, line 21: wanted a camera"),
    "short matrix": (lambda root: _line(root, 0, lambda e: e.update(transform=[1, 2])), ValueError, "line 1: transform: wanted 16 numbers"),
    "no alignment": (lambda root: (root / FIRST / f"{FIRST}.align.json").unlink(), FileNotFoundError, "align.json: no such file"),
    "not rigid": (lambda root: write_json(root / FIRST / f"{FIRST}.align.json", {"coordinate_transform": np.diag([2.0, 2, 2, 1]).ravel().tolist()}), ValueError,
                  "align.json: coordinate_transform: wanted a camera->world rotation"),
    "id twice": (lambda root: _annotation(root, lambda o: o[1].update(objectId=1)), ValueError, "object 1: wanted an objectId from 1, each once"),
    "no size": (lambda root: write_json(root / FIRST / f"{FIRST}.json", {"scene": {}, "streams": []}), ValueError, "wanted a stream of type color_camera"),
    "points only": (lambda root: _without_ids(root / FIRST / f"{FIRST}.ply"), ValueError, "its faces have no objectId"),
}  # fmt: skip


def _without_ids(path):
    path.write_bytes(path.read_bytes().replace(b"property int objectId", b"property int somethin"))


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_named(raw, tmp_path, what):
    breaks, kind, sentence = BREAKS[what]
    _one(raw, tmp_path)
    breaks(tmp_path)
    settings = Settings(frame_stride=1)
    with pytest.raises(kind, match=sentence):
        preprocess(fill_scan, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)


def test_pictures_counted_anew_without_a_stride_are_noticed(raw, tmp_path):
    _one(raw, tmp_path)
    folder = tmp_path / FIRST / "sequence"
    for k in range(4, 12):
        shutil.copy(folder / "000000.jpg", folder / f"{k:06d}.jpg")
    settings = Settings(frame_stride=1, sequence_stride=1)
    with pytest.raises(ValueError, match="12 pictures are frames 0 to 11, and the video has 40 cameras; if every n-th frame was taken"):
        preprocess(fill_scan, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    with pytest.raises(ValueError, match="sequence_stride must be at least 1, got 0"):
        Settings(sequence_stride=0)


def test_the_tool(raw, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("multiscan_tool", Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "multiscan.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["--raw-root", str(raw), "--output-root", str(tmp_path), "--splits", "val", "--referrals", "template", "--num-frames", "2"]
    assert tool.main([*arguments, "--workers", "0", "--no-masks"]) == 0
    folder = tmp_path / "val" / SCANS[2]
    assert Scene(folder).frame_names == ("000000", "000030") and not (folder / "mask").exists()
    assert all(thing.texts for thing in read_objects(folder))
    assert "1 scenes (val 1)" in capsys.readouterr().out
