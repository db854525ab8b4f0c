"""3RScan to scene folders: points, objects, masks, referrals, frames, what moved; what is broken is named."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_objects import ObjectSettings, read_referrals
from pointcept3m.datasets.preprocess_scan3r import fill_scan, jobs_of, read_scans, read_textured
from pointcept3m.datasets.preprocess_scenes import preprocess, summary
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import read_facts, read_mask, read_objects
from tests.datasets.raw_scans import (
    BOXES,
    HIDDEN,
    REFERENCE,
    RESCAN,
    TO_REFERENCE,
    VIEWS,
    changed_room,
    color_at,
    meta_3rscan,
    moved,
    picture,
    room,
    turn,
    write_3rscan,
    write_3rscan_frames,
    write_3rscan_scan,
    write_json,
)

ALL = ("train", "val", "test")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_3rscan(tmp_path_factory.mktemp("raw") / "3RScan")


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    """(output root, reports) with SceneVerse's referrals."""
    out = tmp_path_factory.mktemp("out")
    texts = [(REFERENCE, 3, "the chair  next to the table"),
             (REFERENCE, 3, "the chair next to the table"), (REFERENCE, 4, "a table"), (REFERENCE, 77, "a sofa"),
             (RESCAN, 3, "the chair near the table"), ("elsewhere", 1, "nothing of ours")]  # fmt: skip
    entries = [{"item_id": str(k), "scan_id": scan, "target_id": str(target), "instance_type": "", "utterance": text}
               for k, (scan, target, text) in enumerate(texts)]  # fmt: skip
    write_json(out / "ssg_ref_rel2_template.json", entries)
    settings = ObjectSettings(frame_stride=1, referrals=str(out / "ssg_ref_rel2_template.json"))
    return out, preprocess(fill_scan, jobs_of(raw, out, ALL, settings), settings, workers=0)


def test_points_have_the_colours_of_the_texture_and_ids_of_objects(done):
    scene = Scene(done[0] / "train" / REFERENCE)
    data = scene.points(("color", "normal", "instance"))
    coord, _, ids = room()
    assert np.allclose(data["coord"], coord, atol=1e-5) and np.array_equal(data["instance"], ids)
    assert np.array_equal(data["color"], color_at(coord))  # not 174 199 232, the palette of labels
    assert np.allclose(np.linalg.norm(data["normal"], axis=1), 1, atol=1e-5)


def test_objects_have_upright_boxes_labels_and_referrals_and_walls_are_none(done):
    objects = {thing.id: thing for thing in read_objects(done[0] / "train" / REFERENCE)}
    assert {k: thing.label for k, thing in objects.items()} == {3: "chair", 4: "table", 6: "trash can"}
    for name, (low, high) in BOXES.items():
        box = objects[name].box
        assert np.allclose(box, [*(np.add(low, high) / 2), *np.subtract(high, low)], atol=1e-4)
    assert objects[3].texts == ["the chair next to the table"] and objects[4].texts == ["a table"] and objects[6].texts == []
    turned = {thing.id: thing for thing in read_objects(done[0] / "train" / RESCAN)}
    # the table stands as before in the room, the scan's axes are turned by 40 degrees: its own sides stay what they were
    assert np.allclose(sorted(turned[4].size), sorted(np.subtract(*BOXES[4][::-1])), atol=1e-3)
    assert np.isclose(np.cos(2 * (turned[4].heading - np.radians(-40))), 1, atol=1e-3)


def test_masks_show_what_the_first_surface_along_a_ray_is(done):
    for scan, boxes in ((REFERENCE, BOXES), (RESCAN, changed_room()[3])):
        folder = done[0] / "train" / scan
        for k, pose in enumerate(VIEWS):
            wanted = picture(pose, boxes=boxes)[2]
            found = read_mask(folder, f"frame-{k:06d}")
            same = (found == wanted) | ((scan == RESCAN) & ((wanted == 6) | (found == 6) | (wanted == 4) | (found == 4)))
            assert same.mean() > 0.995, (scan, k, same.mean())
        seen = {int(i) for k in range(4) for i in np.unique(read_mask(folder, f"frame-{k:06d}"))}
        assert seen == {-1, 3, 4, 6}


def test_frames_are_posed_in_the_scans_own_axes_with_depth_that_meets_the_mesh(done):
    scene = Scene(done[0] / "train" / RESCAN)
    assert scene.frame_names == tuple(f"frame-{k:06d}" for k in range(4))
    for k, pose in enumerate(VIEWS):
        frame = scene.frame(scene.frame_names[k])
        assert np.allclose(np.linalg.inv(frame.extrinsic), np.linalg.inv(TO_REFERENCE) @ pose, atol=1e-6)
        wanted = picture(pose, frame.intrinsic, frame.depth.shape, changed_room()[3])[0]
        assert frame.depth.shape == (24, 32) and np.abs(frame.depth - wanted).max() < 2e-3


def test_pictures_taken_sideways_are_turned_upright(raw, done, tmp_path):
    """Cameras, depth and masks are those of an upright camera; --as-recorded leaves what was recorded, which is as true."""
    write_json(tmp_path / "raw" / "3RScan.json", meta_3rscan())
    shutil.copytree(raw / REFERENCE, tmp_path / "raw" / REFERENCE, ignore=shutil.ignore_patterns("sequence"))
    write_3rscan_frames(tmp_path / "raw" / REFERENCE, np.eye(4), sideways=True)
    reports = {}
    for upright in (True, False):
        settings = ObjectSettings(frame_stride=1, upright=upright)
        reports[upright] = preprocess(fill_scan, jobs_of(tmp_path / "raw", tmp_path / str(upright), ("train",), settings), settings, 0, skip_broken=True)
    turned, upright = Scene(tmp_path / "True" / "train" / REFERENCE), Scene(done[0] / "train" / REFERENCE)
    for name in upright.frame_names:
        one, other = turned.frame(name), upright.frame(name)
        np.testing.assert_allclose(one.intrinsic, other.intrinsic, atol=1e-6)
        np.testing.assert_allclose(one.extrinsic, other.extrinsic, atol=1e-6)
        np.testing.assert_allclose(one.depth, other.depth, atol=2e-3)
        assert np.array_equal(read_mask(turned.root, name), read_mask(upright.root, name))
        assert np.abs(one.rgb - other.rgb).mean() < 3 / 255  # two JPEGs of one picture
    assert "pictures turned clockwise by 90 degrees to stand upright: 4 in 1 scenes" in summary(reports[True])
    kept = Scene(tmp_path / "False" / "train" / REFERENCE).frame(upright.frame_names[0])
    assert kept.rgb.shape[:2] == upright.frame(upright.frame_names[0]).rgb.shape[1::-1] and "turned" not in summary(reports[False])


def test_places_and_what_moved(done):
    first, second = (read_facts(done[0] / "train" / scan) for scan in (REFERENCE, RESCAN))
    assert (first.place, first.reference, first.moved, first.dataset) == (REFERENCE, None, [], "3rscan")
    assert (second.place, second.reference) == (REFERENCE, REFERENCE)
    assert np.allclose(second.to_reference, TO_REFERENCE)
    # the table went 3 cm, which is within what a scan is good for; the trash can was turned by 3 degrees where it stands
    assert second.moved == [3, 6]


def test_a_far_thing_that_was_turned_a_little_is_not_told_to_be_shifted(raw, tmp_path):
    """The release measures the shift at the origin of the axes: there 0.9 degrees are more than 5 cm at 3.4 m."""
    change = turn(0.9, about=(2.8, 2.0, 0.35))
    assert np.linalg.norm(change[:3, 3]) > 0.05
    meta = meta_3rscan()
    to_scan = np.linalg.inv(TO_REFERENCE)
    meta[0]["scans"][0]["rigid"] = [{"instance_reference": 4, "instance_rescan": 4, "symmetry": 0,
                                     "transform": (to_scan @ change).T.ravel().tolist()}]  # fmt: skip
    write_json(tmp_path / "3RScan.json", meta)
    shutil.copytree(raw / RESCAN, tmp_path / RESCAN)
    settings = ObjectSettings(frame_stride=0)
    preprocess(fill_scan, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    assert read_facts(tmp_path / "out" / "train" / RESCAN).moved == []


def test_the_hidden_test_set_has_points_and_frames_alone(done):
    folder = done[0] / "test" / HIDDEN
    scene, facts = Scene(folder), read_facts(folder)
    assert read_objects(folder) is None and not (folder / "mask").exists() and len(scene.frame_names) == 4
    assert (scene.load("instance") == -1).all() and facts.reference == "99999999-test" and facts.to_reference is None


def test_the_report_counts_what_does_not_match(done):
    text = summary(done[1])
    assert "referrals to objects that are not in the scene, left out: 1 in 1 scenes" in text
    assert "scans of the hidden test set, without labels: 1 in 1 scenes" in text
    assert "objects: 6 in 2 scenes" in text and "objects with referrals: 3 in 2 scenes" in text


def test_a_zip_is_read_as_the_folder_is_and_a_second_run_does_nothing(raw, done, tmp_path):
    shutil.copytree(raw / REFERENCE, tmp_path / REFERENCE)
    shutil.copy(raw / "3RScan.json", tmp_path)
    with zipfile.ZipFile(tmp_path / REFERENCE / "sequence.zip", "w") as packed:
        for path in (tmp_path / REFERENCE / "sequence").iterdir():
            packed.write(path, path.name)
    shutil.rmtree(tmp_path / REFERENCE / "sequence")
    settings = ObjectSettings(frame_stride=2)
    jobs = jobs_of(tmp_path, tmp_path / "out", ALL, settings)
    preprocess(fill_scan, jobs, settings, workers=0)
    folder = tmp_path / "out" / "train" / REFERENCE
    assert Scene(folder).frame_names == ("frame-000000", "frame-000002")
    for part in ("mask/frame-000002.png", "depth/frame-000002.png", "pose/frame-000002.txt"):
        assert (folder / part).read_bytes() == (done[0] / "train" / REFERENCE / part).read_bytes()
    before = folder.stat().st_mtime_ns
    preprocess(fill_scan, jobs, settings, workers=0)
    assert folder.stat().st_mtime_ns == before
    (tmp_path / REFERENCE / "sequence.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="sequence.zip: is no readable zip"):
        preprocess(fill_scan, jobs, ObjectSettings(frame_stride=1), workers=0)


def test_template_sentences_are_made_from_the_boxes(raw, tmp_path):
    settings = ObjectSettings(frame_stride=0, referrals="template")
    preprocess(fill_scan, jobs_of(raw, tmp_path, ("train",), settings), settings, workers=0)
    objects = read_objects(tmp_path / "train" / REFERENCE)
    assert all(any(thing.label in text for text in thing.texts) for thing in objects)


def test_bad_poses_missing_depth_and_ids_without_labels_are_counted(raw, tmp_path):
    shutil.copytree(raw / REFERENCE, tmp_path / REFERENCE)
    shutil.copy(raw / "3RScan.json", tmp_path)
    sequence = tmp_path / REFERENCE / "sequence"
    (sequence / "frame-000000.pose.txt").write_text("-inf -inf -inf -inf\n" * 4)
    (sequence / "frame-000001.pose.txt").unlink()
    (sequence / "frame-000002.depth.pgm").unlink()
    path = tmp_path / REFERENCE / "semseg.v2.json"
    content = json.loads(path.read_text())
    content["segGroups"] = [g for g in content["segGroups"] if g["objectId"] != 6] + [{"objectId": 50, "label": "ghost"}]
    path.write_text(json.dumps(content))
    settings = ObjectSettings(frame_stride=1)
    (report,) = preprocess(fill_scan, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    assert report.num_frames == 1 and report.notes["pictures without a pose, or with one that is none, left out"] == 2
    assert report.notes["pictures without depth, left out"] == 1
    assert report.notes["objects in the annotation without a point, left out"] == 1
    assert report.notes["ids of points that the annotation has no label for, left out"] == 1
    folder = tmp_path / "out" / "train" / REFERENCE
    assert [thing.id for thing in read_objects(folder)] == [3, 4] and 6 not in read_mask(folder, "frame-000003")


def test_labels_of_3dssg_serve_where_the_scan_has_none_of_its_own(raw, tmp_path):
    shutil.copytree(raw / REFERENCE, tmp_path / REFERENCE)
    shutil.copy(raw / "3RScan.json", tmp_path)
    write_json(tmp_path / "objects.json", {"scans": [{"scan": REFERENCE, "objects": [{"id": "3", "global_id": "85", "label": "armchair"}]}]})
    settings = ObjectSettings(frame_stride=0)
    for out, wanted in (("own", "chair"), ("3dssg", "armchair")):
        preprocess(fill_scan, jobs_of(tmp_path, tmp_path / out, ALL, settings), settings, workers=0)
        assert read_objects(tmp_path / out / "train" / REFERENCE)[0].label == wanted
        (tmp_path / REFERENCE / "semseg.v2.json").unlink(missing_ok=True)


BREAKS = {
    "no 3RScan.json": (lambda root: (root / "3RScan.json").unlink(), FileNotFoundError, r"3RScan\.json: no such file"),
    "no JSON": (lambda root: (root / "3RScan.json").write_text("[{"), ValueError, r"3RScan\.json: is no valid JSON"),
    "no labels": (lambda root: (root / REFERENCE / "semseg.v2.json").unlink(), FileNotFoundError, r"semseg\.v2\.json: no such file"),
    "no mesh": (lambda root: (root / REFERENCE / "mesh.refined.v2.obj").unlink(), FileNotFoundError, "colours come from it"),
    "no texture": (lambda root: (root / REFERENCE / "mesh.refined_0.png").unlink(), FileNotFoundError, r"mesh\.refined_0\.png: no such picture"),
    "another mesh": (lambda root: _shift_obj(root / REFERENCE / "mesh.refined.v2.obj"), ValueError, "have none within 0.05 m here"),
    "no sequence": (lambda root: shutil.rmtree(root / REFERENCE / "sequence"), FileNotFoundError, "sequence: no such folder, nor sequence.zip"),
    "no cameras": (lambda root: (root / REFERENCE / "sequence" / "_info.txt").write_text("m_colorWidth = 64\n"), ValueError,
                   r"_info\.txt: wanted m_calibrationColor"),
    "not rigid": (lambda root: _edit_meta(root, lambda m: m[0]["scans"][0].update(transform=(2 * np.eye(4)).ravel().tolist())), ValueError,
                  f"{RESCAN}.*rotation and shift"),
    "millimetres": (lambda root: _edit_meta(root, lambda m: m[0]["scans"][0].update(transform=turn(0, (1500, 0, 0)).T.ravel().tolist())), ValueError,
                    "seem to be millimetres"),
    "no type": (lambda root: _edit_meta(root, lambda m: m[0].pop("type")), ValueError, "wanted places with reference, type"),
}  # fmt: skip


def _shift_obj(path):
    path.write_text("\n".join(line if not line.startswith("v ") else "v 9 9 9" for line in path.read_text().splitlines()))


def _edit_meta(root, change):
    meta = json.loads((root / "3RScan.json").read_text())
    change(meta)
    write_json(root / "3RScan.json", meta)


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_named(raw, tmp_path, what):
    breaks, kind, sentence = BREAKS[what]
    shutil.copytree(raw / REFERENCE, tmp_path / REFERENCE)
    shutil.copy(raw / "3RScan.json", tmp_path)
    breaks(tmp_path)
    settings = ObjectSettings(frame_stride=1)
    with pytest.raises(kind, match=sentence):
        preprocess(fill_scan, jobs_of(tmp_path, tmp_path / "out", ALL, settings), settings, workers=0)
    assert not list((tmp_path / "out").glob("*/*"))


def test_lists_take_the_place_of_the_splits_and_unknown_scans_are_named(raw, tmp_path):
    (tmp_path / "val_scans.txt").write_text(f"{RESCAN}\n")
    settings = ObjectSettings()
    jobs = jobs_of(raw, tmp_path, ALL, settings, {"val": tmp_path / "val_scans.txt"})
    assert [str(job.target.relative_to(tmp_path)) for job in jobs] == [f"val/{RESCAN}"]
    (tmp_path / "val_scans.txt").write_text(f"{RESCAN}x\n")
    with pytest.raises(ValueError, match=f"knows no scan '{RESCAN}x', which a list names; did you mean"):
        jobs_of(raw, tmp_path, ALL, settings, {"val": tmp_path / "val_scans.txt"})


def test_colours_at_vertices_are_taken_and_corners_of_several_texels_are_averaged(tmp_path):
    path = tmp_path / "mesh.obj"
    path.write_text("v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 0.5\nf 1 2 3\n")
    vertices, faces, color = read_textured(path)
    assert faces.tolist() == [[0, 1, 2]] and color.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 128]]
    from PIL import Image

    Image.fromarray(np.array([[[200, 0, 0], [0, 100, 0]]], np.uint8)).save(tmp_path / "mesh.refined_0.png")
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nvt 0.1 0.5\nvt 0.9 0.5\nf 1/1 2/1 3/1\nf 2/2 4/2 3/2\n")
    assert read_textured(path)[2].tolist() == [[200, 0, 0], [100, 50, 0], [100, 50, 0], [0, 100, 0]]
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/2\n")
    with pytest.raises(ValueError, match=r"texels up to \[3, 2\], there are \[3, 1\]"):
        read_textured(path)


@pytest.mark.long
def test_processes_of_torchrun_share_the_scans(raw, tmp_path):
    tool = Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "scan3r.py"
    words = ["--raw-root", str(raw), "--frame-stride", "3", "--workers", "0", "--output-root"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = subprocess.run([sys.executable, str(tool), *words, str(tmp_path / "one")], capture_output=True, text=True, env=environment, timeout=120)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    shared = subprocess.run([*torchrun, str(tool), *words, str(tmp_path / "two")], capture_output=True, text=True, env=environment, timeout=120)
    assert alone.returncode == 0 and shared.returncode == 0, alone.stderr + shared.stderr
    assert shared.stdout == alone.stdout and "3 scenes" in alone.stdout  # the summary of all, told once
    files = {str(path.relative_to(tmp_path / "one")): path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert files == {str(path.relative_to(tmp_path / "two")): path.read_bytes() for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert shared.stderr.count("/2] ") == 2 and shared.stderr.count("/1] ") == 1  # progress of each process: its own share


def test_the_tool_skips_a_broken_scan_and_says_so(raw, tmp_path, capsys):
    for scan in (REFERENCE, RESCAN):
        shutil.copytree(raw / scan, tmp_path / "raw" / "scans" / scan)
    (tmp_path / "raw" / "files").mkdir()
    shutil.copy(raw / "3RScan.json", tmp_path / "raw" / "files")
    (tmp_path / "raw" / "scans" / REFERENCE / "labels.instances.annotated.v2.ply").write_text("no ply")
    script = Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "scan3r.py"
    spec = importlib.util.spec_from_file_location("preprocess_scan3r_tool", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    command = ["--raw-root", str(tmp_path / "raw"), "--output-root", str(tmp_path / "out"), "--workers", "0", "--frame-stride", "3"]
    assert run_for_user(tool.main, command) != 0
    said = capsys.readouterr().err
    assert "labels.instances.annotated.v2.ply: is no PLY file" in said and "Traceback" not in said
    assert tool.main([*command, "--skip-broken"]) == 1
    out = capsys.readouterr().out
    assert f"skipped train/{REFERENCE}: ValueError" in out and "1 scenes (train 1)" in out
    with pytest.raises(ValueError, match="wanted SPLIT=FILE, got 'val'"):
        tool.main([*command, "--lists", "val"])


def test_referrals_that_are_none_are_named(tmp_path):
    write_json(tmp_path / "referrals.json", [{"scan_id": "a", "target_id": 1, "utterance": "it"}, {"scan_id": "a", "target_id": "x", "utterance": "it"}])
    with pytest.raises(ValueError, match="referrals.json: entry 1: wanted scan_id, target_id and utterance"):
        read_referrals(tmp_path / "referrals.json")


# real data


def test_a_real_scan_gets_its_objects(real_data, tmp_path):
    """The vertices of one 3RScan scan, its faces and texture made up: objects, labels of 3DSSG's mapping, walls left out."""
    import csv

    table = np.load(real_data("3rscan_a") / "data.npy")
    with open(real_data("metadata") / "3dssg" / "3RScan.v2 Semantic Classes - Mapping.csv", newline="") as stream:
        names = {int(row[0]): row[1] for row in csv.reader(stream) if row and row[0].isdigit()}
    coord = np.stack([table[k] for k in "xyz"], axis=1).astype(np.float64)
    ids = table["objectId"].astype(np.int64)
    labels = {int(k): names[int(table["globalId"][ids == k][0])] for k in np.unique(ids) if k > 0}
    faces = np.arange(len(coord) // 3 * 3).reshape(-1, 3)
    root = tmp_path / "3RScan"
    write_3rscan_scan(root / REFERENCE, coord, faces, ids, np.eye(4))
    write_json(root / REFERENCE / "semseg.v2.json", {"segGroups": [{"objectId": k, "label": label} for k, label in labels.items()]})
    write_json(root / "3RScan.json", meta_3rscan())
    settings = ObjectSettings(frame_stride=0, referrals="template")
    (report,) = preprocess(fill_scan, jobs_of(root, tmp_path / "out", ALL, settings), settings, workers=0)
    folder = tmp_path / "out" / "train" / REFERENCE
    objects = {thing.id: thing for thing in read_objects(folder)}
    shell = {k for k, label in labels.items() if label in ("wall", "floor", "ceiling")}
    assert set(objects) == set(labels) - shell and len(shell) == 10
    assert {k: thing.label for k, thing in objects.items()} == {k: labels[k] for k in objects}
    for k, thing in objects.items():
        mine = coord[ids == k]
        x, y = moved(mine - np.asarray(thing.center), turn(-np.degrees(thing.heading)))[:, :2].T
        assert np.abs(x).max() <= thing.size[0] / 2 + 1e-3 and np.abs(y).max() <= thing.size[1] / 2 + 1e-3
        plain = np.prod(mine[:, :2].max(axis=0) - mine[:, :2].min(axis=0))
        assert thing.size[0] * thing.size[1] <= max(plain, 1e-3) + 1e-4  # no larger than the box along the axes
    assert report.num_points == len(coord)
    assert (Scene(folder).load("instance") == np.where(ids > 0, ids, -1)).all()


def test_the_official_lists_name_references(real_data, tmp_path):
    """The lists of 3RScan's repository name references alone; the tool takes them where 3RScan.json knows the scans."""
    folder = real_data("metadata") / "3rscan" / "splits"
    names = {split: (folder / f"{split}.txt").read_text().split() for split in ALL}
    write_json(tmp_path / "3RScan.json", [{"reference": name, "type": split, "scans": []} for split in ALL for name in names[split]])
    scans = read_scans(tmp_path / "3RScan.json")
    assert {split: sum(scan.split == split for scan in scans.values()) for split in ALL} == {"train": 385, "val": 47, "test": 46}
    (tmp_path / names["val"][0]).mkdir()
    jobs = jobs_of(tmp_path, tmp_path / "out", ALL, ObjectSettings(), {"val": folder / "val.txt"})
    assert [job.target.parent.name for job in jobs] == ["val"]


def test_real_referring_statements_reach_their_objects(real_data, tmp_path):
    """Objects of a real scan from a table of boxes, and published statements about them: each reaches its object."""
    import csv

    name = "02b33e01-be2b-2d54-93fb-4145a709cec5"
    folder = real_data("scene_graph_text") / "3RScan" / name
    with open(folder / f"{name}_object_result.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    coord, ids, labels = [], [], {}
    for row in rows:
        center, size = ([float(row[f"object_bbox_{key}"]) for key in keys] for keys in (("cx", "cy", "cz"), ("xlength", "ylength", "zlength")))
        corners = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3), -1).reshape(-1, 3) * size
        coord.append(moved(corners, turn(np.degrees(float(row["object_bbox_heading"])))) + center)
        labels[int(row["object_id"]) + 1] = row["raw_label"]
        ids.append(np.full(8, int(row["object_id"]) + 1))
    said = json.loads((folder / f"{name}_referential_statements.json").read_text())["regions"]
    entries = [{"scan_id": REFERENCE, "target_id": int(one["target_index"]) + 1, "utterance": text, "instance_type": one["target_class"]}
               for statements in said.values() for text, found in statements.items() for one in found]  # fmt: skip
    write_json(tmp_path / "referrals.json", entries)
    coord, ids = np.concatenate(coord), np.concatenate(ids)
    write_3rscan_scan(tmp_path / "raw" / REFERENCE, coord, np.arange(len(coord) // 3 * 3).reshape(-1, 3), ids, np.eye(4))
    write_json(tmp_path / "raw" / REFERENCE / "semseg.v2.json", {"segGroups": [{"objectId": k, "label": label} for k, label in labels.items()]})
    write_json(tmp_path / "raw" / "3RScan.json", meta_3rscan())
    settings = ObjectSettings(frame_stride=0, referrals=str(tmp_path / "referrals.json"))
    (report,) = preprocess(fill_scan, jobs_of(tmp_path / "raw", tmp_path / "out", ALL, settings), settings, workers=0)
    objects = {thing.id: thing for thing in read_objects(tmp_path / "out" / "train" / REFERENCE)}
    of_shell = {(e["target_id"], e["utterance"]) for e in entries if e["target_id"] not in objects}
    assert report.notes.get("referrals to objects that are not in the scene, left out", 0) == len(of_shell)
    assert sum(len(thing.texts) for thing in objects.values()) == len({(e["target_id"], e["utterance"]) for e in entries}) - len(of_shell) > 300
    for row in rows:
        thing = objects.get(int(row["object_id"]) + 1)
        if thing is not None:  # the box that is computed from the corners is the table's
            assert np.allclose(thing.center, [float(row[f"object_bbox_{key}"]) for key in ("cx", "cy", "cz")], atol=1e-3)
            assert np.allclose(sorted(thing.size), sorted(float(row[f"object_bbox_{key}"]) for key in ("xlength", "ylength", "zlength")), atol=2e-3)
