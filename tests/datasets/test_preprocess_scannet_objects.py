"""ScanNet's objects, masks, CAD models, floorplans and referrals: what a room knows comes back, what is broken is named."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.datasets.object_boxes import box_iou, upright_box
from pointcept3m.datasets.preprocess_scannet import Settings as PointSettings
from pointcept3m.datasets.preprocess_scannet import preprocess_scannet
from pointcept3m.datasets.preprocess_scannet_objects import (
    PIECES,
    Settings,
    alignment_angle,
    assign,
    fill_scene,
    jobs_of,
)
from pointcept3m.datasets.preprocess_scenes import ADDED, SceneReport, preprocess, summary
from pointcept3m.datasets.readers.scan2cad import read_scan2cad
from pointcept3m.datasets.readers.scenecad import read_layout
from pointcept3m.datasets.rooms import generate_room, render_frames, write_raw_scannet
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.structures.camera import transform_coord
from pointcept3m.structures.images import image_size
from pointcept3m.structures.scene_objects import read_cad, read_facts, read_floorplan, read_mask, read_objects
from tests.datasets.raw_scannet_objects import (
    SHIFT,
    TURN,
    align,
    shift_object_ids,
    write_instance_zip,
    write_layout,
    write_models,
)

FRAMES, DEPTH_SIZE, COLOR_SIZE = 4, (60, 80), (122, 164)
TRAIN, VAL = "scene0001_00", "scene0005_01"
TEXTS = ["the one next to the window", "the one by the door"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A download: TRAIN with everything, VAL with a scan alone."""
    root = tmp_path_factory.mktemp("raw")
    write_raw_scannet(root, {"train": [1], "val": [5]}, FRAMES, DEPTH_SIZE, COLOR_SIZE, edge=0.12)
    room = generate_room(1, "train")
    align(root / "scans" / TRAIN)
    for name in (TRAIN, VAL):
        shift_object_ids(root / "scans" / name)
    truth = render_frames(room, FRAMES, DEPTH_SIZE, RayCaster(Surface.of(room)))
    finer = render_frames(room, FRAMES, COLOR_SIZE, RayCaster(Surface.of(room)), pose=truth.pose,
                          intrinsic=truth.intrinsic * (np.array([COLOR_SIZE[1] / DEPTH_SIZE[1], COLOR_SIZE[0] / DEPTH_SIZE[0], 1.0]))[:, None])  # fmt: skip
    write_instance_zip(root / "scans" / TRAIN, finer.instance)
    chosen = with_models(room, json.loads((root / "scans" / TRAIN / f"{TRAIN}.aggregation.json").read_text()))
    entry = {"id_scan": TRAIN, **write_models(root / "shapenet", chosen)}
    (root / "full_annotations.json").write_text(json.dumps([entry]))
    write_layout(root / "layouts" / f"{TRAIN}.json", room.outline, room.height)
    thing = chosen[0]
    lines = [{"scan_id": TRAIN, "target_id": str(thing.id + SHIFT), "utterance": text} for text in TEXTS]
    lines.append({"scan_id": TRAIN, "target_id": "250", "utterance": "nothing that is here"})
    (root / "referrals.json").write_text(json.dumps(lines))
    return root


def with_models(room, aggregation):
    seen = {group["id"] for group in aggregation["segGroups"]}
    return [thing for thing in room.objects if thing.id in seen and thing.category in ("bed", "desk", "table", "chair", "couch", "cabinet", "nightstand")][:4]


@pytest.fixture(scope="module")
def points(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("points")
    preprocess_scannet(raw, root, PointSettings(frame_stride=1), workers=0)
    return root


def everything(raw, **changes):
    paths = dict(scan2cad="full_annotations.json", shapenet="shapenet", layouts="layouts", referrals="referrals.json")
    return Settings(**{key: str(raw / path) for key, path in paths.items()} | changes)


def run(raw, data, settings, splits=("train",), **options):
    return preprocess(fill_scene, jobs_of(raw, data, splits, settings), settings, workers=0, pieces=PIECES, **options)


@pytest.fixture(scope="module")
def done(raw, points, tmp_path_factory):
    """(data root, reports, room) of the tool with everything there is."""
    data = tmp_path_factory.mktemp("data") / "scannet"
    shutil.copytree(points, data)
    return data, {report.name: report for report in run(raw, data, everything(raw), ("train", "val"))}, generate_room(1, "train")


@pytest.fixture
def fresh(points, tmp_path):
    """The training scene alone, without objects."""
    shutil.copytree(points / "train", tmp_path / "data" / "train")
    return tmp_path / "data"


def test_boxes_are_scannets_axis_aligned_boxes_turned_back(done, raw):
    data, _, _ = done
    folder = data / "train" / TRAIN
    coord, instance = np.load(folder / "coord.npy"), np.load(folder / "instance.npy")
    objects = read_objects(folder)
    assert len(objects) > 5 and not {"wall", "floor", "ceiling"} & {thing.label for thing in objects}
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]]
    for thing in objects:
        aligned = transform_coord(coord[instance == thing.id], matrix)
        np.testing.assert_allclose(thing.size, np.maximum(np.ptp(aligned, axis=0), 1e-3), atol=1e-5)
        middle = (aligned.min(axis=0) + aligned.max(axis=0)) / 2
        np.testing.assert_allclose(transform_coord(np.array([thing.center]), matrix)[0], middle, atol=1e-5)
        assert np.isclose(thing.heading, -TURN, atol=1e-5)


def test_facts_tell_place_kind_and_first_scan(done):
    data, _, _ = done
    train, val = read_facts(data / "train" / TRAIN), read_facts(data / "val" / VAL)
    assert (train.place, train.category, train.reference, train.dataset) == ("scene0001", "Bedroom / Hotel", None, "scannet")
    assert (val.place, val.category, val.reference) == ("scene0005", "", "scene0005_00")


def test_cad_models_stand_on_their_objects(done):
    data, reports, room = done
    folder = data / "train" / TRAIN
    objects = [thing for thing in read_objects(folder) if thing.cad]
    assert len(objects) >= 2 and reports[TRAIN].notes["objects with a CAD model"] == len(objects)
    for thing in objects:
        assert thing.cad == f"03001627_model{thing.id:02d}"
        surface = read_cad(folder, thing.cad)
        assert surface.shape == (5000, 3) and np.abs(surface).max() <= 0.5 + 1e-6
        placed, mesh = transform_coord(surface, np.array(thing.cad_pose)), room.objects[thing.id].vertices
        np.testing.assert_allclose([placed.min(axis=0), placed.max(axis=0)], [mesh.min(axis=0), mesh.max(axis=0)], atol=0.03)


def test_referrals_reach_the_object_of_their_object_id(done, raw):
    data, reports, room = done
    told = {thing.id: thing.texts for thing in read_objects(data / "train" / TRAIN) if thing.texts}
    meant = with_models(room, json.loads((raw / "scans" / TRAIN / f"{TRAIN}.aggregation.json").read_text()))[0]
    assert told == {meant.id: TEXTS}
    assert reports[TRAIN].notes["referrals to objects that are not in the scene, left out"] == 1


def test_official_masks_are_resized_and_speak_of_ids(done, raw):
    data, reports, room = done
    folder = data / "train" / TRAIN
    listed = {thing.id for thing in read_objects(folder)}
    truth = render_frames(room, FRAMES, DEPTH_SIZE, RayCaster(Surface.of(room)))
    seen = set()
    for k in range(FRAMES):
        mask = read_mask(folder, str(k))
        assert mask.shape == image_size(folder / "color" / f"{k}.jpg") == DEPTH_SIZE
        assert set(np.unique(mask)) <= {*listed, -1}
        want = np.where(np.isin(truth.instance[k], list(listed)), truth.instance[k], -1)
        assert (mask == want).mean() > 0.95
        seen |= set(np.unique(mask))
    assert len(seen) > 4
    assert "scenes whose masks were cast" not in reports[TRAIN].notes and reports[VAL].notes["scenes whose masks were cast"] == 1


def test_cast_masks_agree_with_the_official_ones(done, raw, fresh):
    run(raw, fresh, everything(raw, masks="cast"))
    shared = []
    for k in range(FRAMES):
        ours, theirs = (read_mask(root / "train" / TRAIN, str(k)) for root in (fresh, done[0]))
        known = (ours >= 0) & (theirs >= 0)
        shared += [(ours == theirs)[known].mean(), (ours >= 0)[theirs >= 0].mean()]
    assert np.mean(shared[::2]) > 0.97 and np.mean(shared[1::2]) > 0.75  # the scanned mesh has holes, the true picture none


def test_the_plan_lies_along_the_aligned_axes_and_its_scale_is_right(done):
    data, _, room = done
    plan = read_floorplan(data / "train" / TRAIN)
    assert np.isclose(plan.heading, -TURN, atol=1e-5)
    middles = (room.outline + np.roll(room.outline, -1, axis=0)) / 2
    column, row = np.floor(plan.pixel(middles)).astype(int).T
    assert plan.image[row, column].max() < 100  # on a wall
    column, row = np.floor(plan.pixel(room.outline + 1.3 * (room.outline - room.outline.mean(axis=0)) * 0.1)).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < plan.image.shape[1]) & (row < plan.image.shape[0])
    assert not inside.any() or plan.image[row[inside], column[inside]].min() > 200


def test_without_a_layout_the_plan_has_the_furniture_and_without_both_there_is_none(raw, fresh, done):
    run(raw, fresh, everything(raw, layouts=""))
    assert read_floorplan(fresh / "train" / TRAIN).image.shape != read_floorplan(done[0] / "train" / TRAIN).image.shape
    report = run(raw, fresh, everything(raw, layouts="", scan2cad="", shapenet="", masks="none"))[0]
    folder = fresh / "train" / TRAIN
    assert read_floorplan(folder) is None and not (folder / "cad").exists() and not (folder / "mask").exists()
    assert report.notes["scenes without a floorplan"] == 1 and read_objects(folder)


def test_val_scan_lacks_what_the_annotations_do_not_say(done):
    data, reports, _ = done
    notes = reports[VAL].notes
    assert notes["scenes that Scan2CAD does not have"] == 1 and notes["scenes that SceneCAD does not have"] == 1
    assert read_floorplan(data / "val" / VAL) is None and all(thing.cad is None for thing in read_objects(data / "val" / VAL))


def test_a_second_run_changes_nothing_and_a_killed_one_is_taken_up(raw, fresh, done):
    folder = fresh / "train" / TRAIN
    settings = everything(raw)
    run(raw, fresh, settings)
    before = (folder / "objects.json").stat().st_mtime_ns
    assert run(raw, fresh, settings)[0].notes == done[1][TRAIN].notes and (folder / "objects.json").stat().st_mtime_ns == before
    (folder / ADDED).write_text("{}")  # as a run leaves it that is killed while files are moved in
    (folder / f"{ADDED}.tmp-1").mkdir()
    shutil.rmtree(folder / "mask")
    run(raw, fresh, settings)
    assert len(list((folder / "mask").iterdir())) == FRAMES and not list(folder.glob(f"{ADDED}.tmp*"))


def test_files_of_a_stranger_are_left_alone(raw, fresh):
    (fresh / "train" / TRAIN / "objects.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"objects\.json: is there but was not written by this"):
        run(raw, fresh, everything(raw))


def test_nyu40_labels_and_template_sentences(raw, fresh):
    run(raw, fresh, everything(raw, labels="nyu40", referrals="template", masks="none"))
    objects = read_objects(fresh / "train" / TRAIN)
    assert {"sofa", "night stand", "otherprop", "bed", "table"} & {thing.label for thing in objects} and not {"couch", "nightstand"} & {t.label for t in objects}
    assert sum(bool(thing.texts) for thing in objects) > len(objects) / 3


def copy_raw(raw, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(raw / "scans" / TRAIN, root / "scans" / TRAIN)
    for name in ("full_annotations.json", "referrals.json", "scannetv2-labels.combined.tsv"):
        shutil.copy(raw / name, root / name)
    for name in ("shapenet", "layouts"):
        shutil.copytree(raw / name, root / name)
    return root


def test_ids_that_are_not_the_scans_are_refused(raw, fresh):
    path = fresh / "train" / TRAIN / "instance.npy"
    ids = np.load(path)
    np.save(path, np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.int32) + 1)
    with pytest.raises(ValueError, match=r"instance\.npy: \d+ of \d+ points have another id than .*aggregation\.json gives them"):
        run(raw, fresh, everything(raw))
    report = run(raw, fresh, everything(raw), skip_broken=True)[0]
    assert "another id" in report.error and "skipped train/scene0001_00" in summary([report])


def test_masks_of_another_shape_are_refused(raw, fresh, tmp_path):
    root = copy_raw(raw, tmp_path)
    write_instance_zip(root / "scans" / TRAIN, np.zeros((FRAMES, 100, 100), int))
    with pytest.raises(ValueError, match=r"instance-filt\.zip: 0\.png: 100 x 100 pixels have another shape than the colour picture's 80 x 60"):
        run(root, fresh, everything(root))


def test_a_mesh_without_faces_and_one_that_is_not_there_are_left_out_by_name(raw, fresh, tmp_path):
    root = copy_raw(raw, tmp_path)
    meshes = sorted((root / "shapenet").glob("*/*/models/model_normalized.obj"))
    meshes[0].write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    meshes[1].unlink()
    notes = run(root, fresh, everything(root))[0].notes
    assert any(what.startswith(f"CAD models left out, {meshes[0]}: ") for what in notes)
    assert any(what.startswith(f"CAD models left out, {meshes[1]}: no such mesh") for what in notes)
    shutil.rmtree(root / "shapenet" / "03001627")
    with pytest.raises(FileNotFoundError, match=r"nor any other of the \d models; is .* ShapeNetCore\.v2, unpacked\?"):
        run(root, fresh, everything(root))


def test_annotations_that_are_broken_are_named(raw, tmp_path, fresh):
    root = copy_raw(raw, tmp_path)
    content = json.loads((root / "full_annotations.json").read_text())
    content[0]["aligned_models"][1]["trs"]["rotation"] = [0, 0, 0, 0]
    (root / "bad.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad\.json: scan scene0001_00, model 1: .* a rotation and scales that are not 0"):
        read_scan2cad(root / "bad.json")
    content[0]["aligned_models"][1]["id_cad"] = "../../etc"
    (root / "bad.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model 1: wanted catid_cad and id_cad"):
        read_scan2cad(root / "bad.json")
    (root / "layout.json").write_text(json.dumps({"verts": [[0, 0, 0], [1, 0, 0]], "edges": [[0, 2]], "quads": []}))
    with pytest.raises(ValueError, match=r"layout\.json: edge \[0, 2\] wanted two of 2 corners"):
        read_layout(root / "layout.json")
    with pytest.raises(ValueError, match=r"Scan2CAD's annotation says nothing of the 1 scenes"):
        (root / "other.json").write_text(json.dumps([{**content[0], "id_scan": "scene0700_00", "aligned_models": []}]))
        jobs_of(root, fresh, ["train"], everything(root, scan2cad=str(root / "other.json")))
    with pytest.raises(ValueError, match=r"axisAlignment is no turn about the vertical"):
        alignment_angle({"axisAlignment": " ".join(map(str, np.eye(4)[[0, 2, 1, 3]].reshape(-1)))}, Path("x.txt"))
    with pytest.raises(ValueError, match=r"CAD models need both"):
        Settings(scan2cad="a.json")
    with pytest.raises(ValueError, match=r"masks 'offical' is unknown; .*official"):
        Settings(masks="offical")


def test_layout_without_edges_takes_those_of_its_quads(raw, tmp_path):
    path = tmp_path / "layout.json"
    content = json.loads((raw / "layouts" / f"{TRAIN}.json").read_text())
    path.write_text(json.dumps({**content, "edges": []}))
    ours, theirs = read_layout(path).walls(), read_layout(raw / "layouts" / f"{TRAIN}.json").walls()
    room = generate_room(1, "train")
    assert len(ours) == len(theirs) == len(room.outline)  # floor and ceiling fall together, upright edges are none
    np.testing.assert_allclose(np.sort(theirs[:, 0], axis=0), np.sort(room.outline, axis=0), atol=1e-9)


def test_of_two_models_on_one_object_the_better_stays_whatever_their_order():
    from pointcept3m.structures.scene_objects import SceneObject

    objects = [SceneObject(4, "chair", (0, 0, 0), (1, 1, 1)), SceneObject(7, "desk", (5, 0, 0), (2, 1, 1))]
    exact, rough, far = ((0, 0, 0), (1, 1, 1), 0.0), ((0.4, 0, 0), (1, 1, 1), 0.0), ((9, 9, 0), (1, 1, 1), 0.0)
    for boxes, chosen in (((exact, rough, far), 0), ((rough, far, exact), 2)):
        report = SceneReport("scene", "train")
        assert assign(objects, boxes, 0.0, report) == [chosen, None]
        assert report.notes == {"CAD models that overlap no object": 1, "CAD models whose object has a better one": 1}
    assert assign(objects, [rough], 0.5, SceneReport("scene", "train")) == [None, None]  # overlaps by 0.6 / 1.4


def test_overlap_of_boxes_against_counted_points():
    rng = np.random.default_rng(3)
    for _ in range(5):
        boxes = [(tuple(rng.uniform(-0.4, 0.4, 3)), tuple(rng.uniform(0.6, 1.6, 3)), float(rng.uniform(-3, 3))) for _ in range(2)]
        spots, inside = rng.uniform(-1.6, 1.6, (200_000, 3)), []
        for center, size, heading in boxes:
            cos, sin = np.cos(heading), np.sin(heading)
            local = (spots - center) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
            inside.append((np.abs(local) <= np.array(size) / 2).all(axis=1))
        counted = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
        assert abs(box_iou(*boxes) - counted) < 0.02 and np.isclose(box_iou(*boxes), box_iou(*boxes[::-1]))


def test_real_boxes_of_scene0000_come_out(real_data):
    """The benchmark's 27 axis-aligned boxes, made by others, against boxes of our heading on the scan as it is."""
    scan = np.load(real_data("scannet_scene0000_00") / "scene0000_00.npz")
    matrices = json.loads((real_data("metadata") / "referit3d_scannet" / "scans_axis_alignment_matrices.json").read_text())
    matrix = np.array(matrices["scene0000_00"], np.float64).reshape(4, 4)
    angle = alignment_angle({"axisAlignment": " ".join(map(str, matrix.reshape(-1)))}, Path("scene0000_00.txt"))
    ours = []
    for number in np.unique(scan["instance"][scan["instance"] > 0]):
        center, size, heading = upright_box(scan["coord"][scan["instance"] == number], -angle)
        assert heading == -angle
        ours.append([*transform_coord(np.array([center]), matrix)[0], *size])
    gaps = np.abs(np.array(ours)[:, None] - scan["boxes_aligned"][None, :, :6]).max(axis=2).min(axis=0)
    assert (gaps < 0.01).all(), gaps


def tool(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "tools" / "preprocess" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool_end_to_end(raw, fresh, done, capsys):
    options = ["--raw-root", raw, "--data-root", fresh, "--splits", "train", "--scan2cad", raw / "full_annotations.json", "--shapenet", raw / "shapenet",
               "--layouts", raw / "layouts", "--referrals", raw / "referrals.json", "--workers", 0]  # fmt: skip
    assert tool("scannet_objects").main(list(map(str, options))) == 0
    said = capsys.readouterr().out
    assert "1 scenes (train 1)" in said and "objects with a CAD model" in said
    ours, theirs = (root / "train" / TRAIN for root in (fresh, done[0]))
    for path in sorted(theirs.rglob("*")):
        if path.is_file() and path.name not in (ADDED,):
            assert (ours / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path.name


