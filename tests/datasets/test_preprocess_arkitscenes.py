"""ARKitScenes to scene folders: objects by boxes, world->camera trajectories, visits as places; what is broken is named."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.datasets.preprocess_arkitscenes import fill_video, jobs_of, read_visits
from pointcept3m.datasets.preprocess_objects import ObjectSettings
from pointcept3m.datasets.preprocess_scenes import preprocess
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import read_facts, read_mask, read_objects
from tests.datasets.raw_scans import BOXES, PILLOW, VIEWS, picture, turn, write_arkitscenes, write_json

ALL = ("train", "val")
FIRST, SECOND, VAL = "41048190", "41048191", "41069021"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_arkitscenes(tmp_path_factory.mktemp("raw") / "ARKitScenes")


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    texts = {2: "the table with a pillow", 9: "what is not there"}
    write_json(out / "ssg.json", [{"scan_id": FIRST, "target_id": target, "utterance": text} for target, text in texts.items()])
    settings = ObjectSettings(frame_stride=1, referrals=str(out / "ssg.json"))
    return out, preprocess(fill_video, jobs_of(raw, out, ALL, settings), settings, workers=0)


def test_objects_are_the_annotated_boxes_and_points_in_two_boxes_go_to_the_smaller(done):
    folder = done[0] / "train" / FIRST
    objects = read_objects(folder)
    assert [(thing.id, thing.label) for thing in objects] == [(1, "pillow"), (2, "table"), (3, "tv monitor"), (4, "stool")]
    low, high = BOXES[4]
    assert np.allclose(sorted(objects[1].size), sorted(np.subtract(high, low) + 0.02))
    assert np.isclose(np.cos(2 * (objects[1].heading - np.radians(25))) ** 2, 1)
    assert objects[1].texts == ["the table with a pillow"]
    scene = Scene(folder)
    instance = scene.load("instance")
    inside = Scene(folder).load("coord") @ turn(25)[:3, :3]  # back to the room's axes
    in_pillow = ((inside > np.array(PILLOW[0]) - 0.005) & (inside < np.array(PILLOW[1]) + 0.005)).all(axis=1)
    assert in_pillow.sum() > 200 and (instance[in_pillow] == 1).all()
    in_table = ((inside > np.array(low) - 0.005) & (inside < np.array(high) + 0.005)).all(axis=1) & ~in_pillow
    assert (instance[in_table] == 2).all() and (instance == -1).any()
    report = next(r for r in done[1] if r.name == FIRST)
    assert report.notes["objects without a point of their own"] == 1  # the stool hangs in the air
    assert report.notes["referrals to objects that are not in the scene, left out"] == 1


def test_trajectories_are_world_to_camera_and_masks_meet_the_pictures(done):
    boxes = {**BOXES, 5: PILLOW}
    names = {3: 3, 4: 2, 5: 1, 6: -1, -1: -1}  # of the room -> of the annotation, which has no trash can
    folder = done[0] / "train" / FIRST
    scene = Scene(folder)
    assert len(scene.frame_names) == 4
    for k, pose in enumerate(VIEWS):
        name = scene.frame_names[k]
        assert name == f"{6845.706 + 0.1 * k:.3f}"
        assert np.allclose(scene.pose(name), turn(25) @ pose, atol=1e-5)
        frame = scene.frame(name)
        assert frame.intrinsic[0, 0] == 60 + k  # each picture has its own camera
        depth, _, ids = picture(pose, frame.intrinsic, boxes=boxes)
        assert np.abs(frame.depth - depth).max() < 2e-3
        wanted = np.vectorize(names.get)(ids)
        found = read_mask(folder, name)
        # boxes stand 1 cm out of what they hold, so the floor beside a thing belongs to it, and of the table what is
        # beside the pillow to the pillow
        assert (found == wanted).mean() > 0.95
        for names_of in ((3,), (1, 2)):
            seen = np.isin(wanted, names_of)
            assert not seen.any() or np.isin(found[seen], names_of).mean() > 0.98


def test_videos_of_a_visit_are_one_place_whatever_type_their_numbers_have(done):
    first, second, other = (read_facts(done[0] / split / video) for split, video in (("train", FIRST), ("train", SECOND), ("val", VAL)))
    assert (first.place, first.reference) == ("381531", None) and (second.place, second.reference) == ("381531", FIRST)
    assert (other.place, other.reference, other.to_reference, other.dataset) == ("421002", None, None, "arkitscenes")


def test_the_official_table_has_its_visits(real_data):
    visits = read_visits(real_data("metadata") / "arkitscenes" / "threedod" / "3dod_train_val_splits.csv")
    assert len(visits) == 5047 and sum(visit.split == "val" for visit in visits.values()) == 549
    assert sum(visit.place == video for video, visit in visits.items()) == 8  # visit NA is no place that eight share
    splits = {}
    for visit in visits.values():
        splits.setdefault(visit.place, set()).add(visit.split)
    assert len(splits) == 1661 + 8 and sum(len(found) == 2 for found in splits.values()) == 1


def test_a_visit_in_both_folds_has_a_reference_in_each(raw, tmp_path):
    """As one visit of the official table: a scan of the validation split must not refer to one of the training split."""
    shutil.copytree(raw / "3dod", tmp_path / "3dod")
    (tmp_path / "3dod_train_val_splits.csv").write_text(f"video_id,visit_id,fold\n{FIRST},7,Training\n{VAL},7,Validation\n{SECOND},7,Training\n")
    settings = ObjectSettings(frame_stride=0)
    preprocess(fill_video, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    facts = [read_facts(tmp_path / "out" / split / video) for split, video in (("train", FIRST), ("train", SECOND), ("val", VAL))]
    assert [fact.place for fact in facts] == ["7"] * 3 and [fact.reference for fact in facts] == [None, FIRST, None]


def test_pictures_without_pose_or_depth_are_counted(raw, tmp_path):
    shutil.copytree(raw / "3dod" / "Training" / FIRST, tmp_path / "scans" / FIRST)
    shutil.copy(raw / "3dod_train_val_splits.csv", tmp_path)
    frames = tmp_path / "scans" / FIRST / f"{FIRST}_frames"
    lines = (frames / "lowres_wide.traj").read_text().splitlines()
    (frames / "lowres_wide.traj").write_text("\n".join(lines[1:]) + "\n")
    sorted((frames / "lowres_depth").iterdir())[1].unlink()
    settings = ObjectSettings(frame_stride=1)
    (report,) = preprocess(fill_video, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    assert report.num_frames == 2 and report.notes["pictures without pose, left out"] == 1 and report.notes["pictures without depth, left out"] == 1


def _edit(root, change):
    path = root / "Training" / FIRST / f"{FIRST}_3dod_annotation.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


FRAMES = Path("Training") / FIRST / f"{FIRST}_frames"
BREAKS = {
    "no table": (lambda root: (root / "3dod_train_val_splits.csv").unlink(), FileNotFoundError, "the table of videos, visits and folds"),
    "another fold": (lambda root: (root / "3dod_train_val_splits.csv").write_text(f"video_id,visit_id,fold\n{FIRST},1,Test\n"), ValueError,
                     "line 2: wanted video_id"),
    "no mesh": (lambda root: (root / "Training" / FIRST / f"{FIRST}_3dod_mesh.ply").unlink(), FileNotFoundError, "_3dod_mesh.ply: no such PLY"),
    "no box": (lambda root: _edit(root, lambda c: c["data"][1]["segments"].pop("obbAligned")), ValueError, r"box 1 \(table\): wanted a box with centroid"),
    "no rotation": (lambda root: _edit(root, lambda c: c["data"][0]["segments"]["obbAligned"].update(normalizedAxes=[1.0] * 9)), ValueError,
                    r"box 0 \(pillow\).*right angles"),
    "no label": (lambda root: _edit(root, lambda c: c["data"][2].pop("label")), ValueError, "box 2: wanted label and segments"),
    "empty traj": (lambda root: (root / FRAMES / "lowres_wide.traj").write_text("\n"), ValueError, "lowres_wide.traj: the trajectory is empty"),
    "short traj": (lambda root: (root / FRAMES / "lowres_wide.traj").write_text("1 2 3\n"), ValueError, "lowres_wide.traj: wanted 7 numbers"),
    "no traj": (lambda root: (root / FRAMES / "lowres_wide.traj").unlink(), FileNotFoundError, "lowres_wide.traj: no such trajectory"),
    "far cameras": (lambda root: _far(root / FRAMES / "lowres_wide.traj"), ValueError, "none of its 4 pictures shows an object"),
    "pincam": (lambda root: _camera(root, "64 48 60"), ValueError, "pincam: wanted width, height"),
    "pincam of others": (lambda root: _camera(root, "64 64 60 60 32 32"), ValueError, "calibrated for 64 x 64"),
    "no pictures": (lambda root: shutil.rmtree(root / FRAMES / "lowres_wide"), FileNotFoundError, "lowres_wide: wanted pictures"),
}  # fmt: skip


def _camera(root, text):
    next((root / FRAMES / "lowres_wide_intrinsics").glob("*706.pincam")).write_text(text)


def _far(path):
    """Cameras far outside the room."""
    rows = [line.split() for line in path.read_text().splitlines()]
    path.write_text("\n".join(" ".join([*row[:4], "500", "500", "500"]) for row in rows))


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_named(raw, tmp_path, what):
    breaks, kind, sentence = BREAKS[what]
    shutil.copytree(raw / "3dod" / "Training" / FIRST, tmp_path / "Training" / FIRST)
    shutil.copy(raw / "3dod_train_val_splits.csv", tmp_path)
    breaks(tmp_path)
    settings = ObjectSettings(frame_stride=1)
    with pytest.raises(kind, match=sentence):
        preprocess(fill_video, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)


def test_a_video_without_objects_is_a_scene_without_objects(raw, tmp_path):
    shutil.copytree(raw / "3dod" / "Training" / FIRST, tmp_path / "Training" / FIRST)
    shutil.copy(raw / "3dod_train_val_splits.csv", tmp_path)
    _edit(tmp_path, lambda content: content.update(data=[]))
    settings = ObjectSettings(frame_stride=2)
    (report,) = preprocess(fill_video, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    folder = tmp_path / "out" / "train" / FIRST
    assert read_objects(folder) == [] and not (folder / "mask").exists() and report.num_frames == 2


def test_the_tool_writes_lists_of_the_users_own(raw, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("arkit_tool", Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "arkitscenes.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (tmp_path / "val.txt").write_text(f"{SECOND}\n")
    arguments = ["--raw-root", str(raw), "--output-root", str(tmp_path / "out"), "--lists", f"val={tmp_path / 'val.txt'}"]
    assert tool.main([*arguments, "--frame-stride", "0", "--workers", "0"]) == 0
    assert [path.name for path in (tmp_path / "out").glob("*/*")] == [SECOND] and (tmp_path / "out" / "val" / SECOND / "objects.json").is_file()
    assert "1 scenes (val 1)" in capsys.readouterr().out
