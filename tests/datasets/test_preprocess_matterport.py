"""A Matterport3D download written byte for byte, of rooms whose geometry is known: what went in comes back, bad input is named."""

import csv
import importlib.util
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.datasets.matterport import MatterportDataset
from pointcept3m.datasets.preprocess_matterport import (
    Settings,
    choose_cameras,
    fill_region,
    find_regions,
    jobs_of,
    read_cameras,
    read_categories,
    vote,
)
from pointcept3m.datasets.preprocess_scenes import preprocess
from pointcept3m.structures.camera import invert_pose, unproject
from pointcept3m.structures.label_sets import label_set
from pointcept3m.structures.scene import Scene
from tests.datasets.raw_matterport import INTRINSICS, TEST, TRAIN, VAL, walls, write_matterport
from tests.datasets.synthetic import HIGH, LOW, look


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_matterport(tmp_path_factory.mktemp("matterport"))


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    reports = preprocess(fill_region, jobs_of(raw, root), Settings(image_width=0, nearest=4), workers=0)
    return root, {report.name: report for report in reports}


def test_points_and_labels(done):
    root, reports = done
    coord, faces, wall = walls()
    scene = Scene(root / "train" / f"{TRAIN}_region0")
    assert set(scene.assets) == {"coord", "color", "normal", "segment21", "segment40", "segment80", "segment160", "instance"}
    np.testing.assert_array_equal(scene.load("coord"), coord)
    np.testing.assert_array_equal(scene.load("color"), np.arange(3 * len(coord)).reshape(-1, 3) % 251)
    # each wall has vertices of its own, so a vertex has its wall's label; 40 classes end before "toilet brush"
    own = np.repeat(np.arange(6), len(coord) // 6)
    for asset, want in (
        ("segment21", [0, 7, 20, -1, -1, -1]),
        ("segment40", [0, 1, 2, -1, -1, -1]),
        ("segment160", [0, 1, 2, label_set("matterport160").names.index("toilet brush"), -1, -1]),
        ("instance", [-1, 10, 20, 30, 40, 50]),
    ):
        np.testing.assert_array_equal(scene.load(asset), np.array(want)[own], asset)
    np.testing.assert_allclose(np.abs(scene.load("normal")), np.eye(3)[own % 3], atol=1e-6)
    assert reports[f"{TRAIN}_region0"].num_points == len(coord)


def test_frames_back_project_onto_the_walls(done):
    """At full size a pixel's point lies on a wall to the rounding of depth; a row counted from the wrong side is 4 cm off."""
    root, reports = done
    scene = Scene(root / "val" / f"{VAL}_region0")
    scene.check_frames(scene.frame_names)
    assert len(scene.frame_names) == reports[f"{VAL}_region0"].num_frames == 12
    for name in scene.frame_names:
        frame = scene.frame(name)
        camera = int(name[-3])
        np.testing.assert_allclose(frame.intrinsic, INTRINSICS[camera], atol=1e-5)
        coord = unproject(frame.depth, frame.intrinsic, invert_pose(frame.extrinsic)).reshape(-1, 3)
        assert np.minimum(np.abs(coord - LOW), np.abs(coord - HIGH)).min(axis=1).max() < 2e-3
        wanted = (coord - LOW) / (HIGH - LOW)  # colour is by position
        assert np.abs(frame.rgb.reshape(-1, 3) - wanted).mean() < 0.01


def test_smaller_pictures_show_the_same(raw, done, tmp_path):
    preprocess(fill_region, jobs_of(raw, tmp_path, ["val"]), Settings(image_width=80), workers=0)
    small, full = (Scene(root / "val" / f"{VAL}_region0") for root in (tmp_path, done[0]))
    name = small.frame_names[3]
    assert small.frame_size(name) == (64, 80)
    here, there = small.frame(name), full.frame(name, (64, 80))
    np.testing.assert_allclose(here.intrinsic, there.intrinsic, atol=1e-5)
    np.testing.assert_array_equal(here.depth, there.depth)
    assert np.abs(here.rgb - there.rgb).mean() < 0.02


def test_regions_without_a_picture(done):
    root, reports = done
    assert reports[f"{TRAIN}_region1"].notes == {"scenes without a picture taken inside them": 1}
    with pytest.raises(FileNotFoundError, match="has no frames"):
        _ = Scene(root / "train" / f"{TRAIN}_region1").frame_names
    report = reports[f"{TEST}_region2"]
    assert report.num_frames == 4 and list(report.notes) == ["scenes without a picture taken inside them, which have the nearest ones"]
    assert all(name.startswith("0a1f") for name in Scene(root / "test" / f"{TEST}_region2").frame_names)  # the nearer pano


def test_cameras_of_a_region(raw):
    cameras = read_cameras(raw / "scans" / VAL / "undistorted_camera_parameters" / f"{VAL}.conf")
    assert len(cameras) == 12 and (cameras[7].color, cameras[7].depth) == ("9e10_i0_1.jpg", "9e10_d0_1.png")
    np.testing.assert_allclose(cameras[0].pose, look(0.4, -0.5), atol=1e-6)
    box = np.array([[0.5, 0.5, 0.5], [1.5, 2, 2]])
    chosen, inside = choose_cameras(cameras, box, 3)
    assert inside and [camera.color[:4] for camera in chosen] == ["9e10"] * 6
    chosen, inside = choose_cameras(cameras, box + [5, 0, 0], 3)
    assert not inside and [camera.color for camera in chosen] == ["0a1f_i0_0.jpg", "0a1f_i0_1.jpg", "0a1f_i1_0.jpg"]
    assert choose_cameras([], box, 3) == ([], False)


def test_votes_against_counting():
    rng = np.random.default_rng(0)
    faces, label = rng.integers(0, 60, (200, 3)), rng.integers(-1, 5, 200)
    faces[faces == 17] = 18  # a vertex without faces
    counts = [Counter(label[np.flatnonzero((faces == n).any(axis=1))].tolist()) for n in range(60)]
    # a face that names a vertex twice votes twice, as in OpenScene
    for row in faces[[len(set(face)) < 3 for face in faces.tolist()]]:
        for n, times in Counter(row.tolist()).items():
            counts[n][label[(faces == row).all(axis=1)][0]] += times - 1
    want = [min((value for value, c in votes.items() if c == max(votes.values())), default=-1) for votes in counts]
    np.testing.assert_array_equal(vote(faces, label, 60), want)
    np.testing.assert_array_equal(vote(np.zeros((0, 3), int), np.zeros(0, int), 3), [-1] * 3)


def test_categories_of_the_data_set(real_data):
    """The numbering that OpenScene makes by running through the file: each new name of nyuClass gets the next class."""
    path = real_data("metadata/matterport/metadata/category_mapping.tsv")
    tables = read_categories(path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for count in (40, 80, 160):
        names = [name for name in dict.fromkeys(row["nyuClass"] for row in rows) if name not in ("", "void", "unknown")][:count]
        want = [names.index(row["nyuClass"]) if row["nyuClass"] in names else -1 for row in rows]
        np.testing.assert_array_equal(tables[count], [-1, *want])
    ids = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "14", "16", "24", "28", "33", "34", "36", "39", "22"]
    np.testing.assert_array_equal(tables[21], [-1, *(ids.index(row["nyu40id"]) if row["nyu40id"] in ids else -1 for row in rows)])
    folder = real_data("metadata/matterport/benchmark")
    from pointcept3m.datasets import preprocess_matterport as module

    for split, names in (("val", module.VAL_BUILDINGS), ("test", module.TEST_BUILDINGS)):
        assert sorted(names) == sorted((folder / f"scenes_{split}.txt").read_text().split())


def test_lists_and_places_of_unpacking(raw, tmp_path):
    assert [(ply.stem, building.name, split) for ply, building, split in find_regions(raw)] == [
        ("region0", TRAIN, "train"), ("region1", TRAIN, "train"), ("region0", VAL, "val"), ("region2", TEST, "test"),
    ]  # fmt: skip
    root = tmp_path / "raw"
    for kind in ("region_segmentations", "undistorted_color_images", "undistorted_depth_images", "undistorted_camera_parameters"):
        shutil.copytree(raw / "scans" / VAL / kind, root / VAL / VAL / kind)
    (root / "metadata").mkdir()
    shutil.copy(raw / "category_mapping.tsv", root / "metadata")
    (root / "scenes_test.txt").write_text(f"{VAL}\n")
    (report,) = preprocess(fill_region, jobs_of(root, tmp_path / "out"), Settings(), workers=0)
    assert (report.split, report.num_frames) == ("test", 12)


def test_a_second_run_makes_only_what_is_missing(raw, tmp_path):
    settings = Settings(frames=False)
    preprocess(fill_region, jobs_of(raw, tmp_path, ["train"]), settings, workers=0)
    first, second = (tmp_path / "train" / f"{TRAIN}_region{n}" for n in range(2))
    before = (first / "coord.npy").stat().st_mtime_ns
    shutil.rmtree(second)
    reports = preprocess(fill_region, jobs_of(raw, tmp_path, ["train"]), settings, workers=0)
    assert [report.num_points for report in reports] == [486, 486] and second.is_dir()
    assert (first / "coord.npy").stat().st_mtime_ns == before
    preprocess(fill_region, jobs_of(raw, tmp_path, ["train"]), Settings(), workers=0)  # other settings: anew, with frames
    assert (first / "coord.npy").stat().st_mtime_ns != before and (first / "depth").is_dir()
    (second / ".done").unlink()
    with pytest.raises(FileExistsError, match="was not written by this preprocessing"):
        preprocess(fill_region, jobs_of(raw, tmp_path, ["train"]), settings, workers=0)


@pytest.fixture
def copy_of_raw(raw, tmp_path):
    shutil.copytree(raw / "scans" / VAL, tmp_path / "raw" / VAL)
    shutil.copy(raw / "category_mapping.tsv", tmp_path / "raw")
    return tmp_path / "raw"


def run(root: Path, settings: Settings = Settings()):  # noqa: B008 (frozen)
    return preprocess(fill_region, jobs_of(root, root.parent / "out"), settings, workers=0)


def test_pictures_that_are_missing_or_have_no_pose_are_left_out_and_counted(copy_of_raw):
    building = copy_of_raw / VAL
    (building / "undistorted_depth_images/0a1f_d0_0.png").unlink()
    (building / "undistorted_color_images/0a1f_i1_0.jpg").unlink()
    conf = building / f"undistorted_camera_parameters/{VAL}.conf"
    lines = conf.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if "9e10_i2_1" in line)
    lines[row] = " ".join([*lines[row].split()[:3], *["0"] * 11, "2.0", "0 0 0 1"])
    lines[row] = lines[row].replace("0 0 0 0 0 0 0 0 0 0 0 2.0", "0 0 0 2 0 0 0 1 0 0 0 1")  # a centre, and no rotation
    conf.write_text("\n".join(lines))
    (report,) = run(copy_of_raw)
    assert report.num_frames == 9
    assert report.notes == {
        "pictures whose depth is not there, left out": 1,
        "pictures whose colour is not there, left out": 1,
        "pictures with a pose that is none, left out": 1,
    }


def test_bad_files_are_named(copy_of_raw):
    conf = copy_of_raw / VAL / f"undistorted_camera_parameters/{VAL}.conf"
    good = conf.read_text()
    for text, message in (
        (good.rsplit("scan", 1)[0], r"says 12 images, has 11; is the file whole"),
        (good.replace("0 0 0 1", "0 0 1", 1), r"line 7: cannot be read \(cannot reshape"),
        (good.replace("intrinsics_matrix 134", "intrinsics_matrix -134", 1), r"line 6: .*positive focal lengths"),
    ):
        conf.write_text(text)
        with pytest.raises(ValueError, match=message):
            run(copy_of_raw)
    conf.write_text(good)
    shutil.rmtree(copy_of_raw / VAL / "undistorted_depth_images")
    with pytest.raises(FileNotFoundError, match=r"unpack undistorted_depth_images.zip there, or write points only \(--no-frames\)"):
        run(copy_of_raw)
    table = copy_of_raw / "category_mapping.tsv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(ValueError, match="region0.ply: has category_id 6, category_mapping.tsv goes to 3"):
        run(copy_of_raw, Settings(frames=False))
    table.write_text("index\tnyu40\tnyuClass\n1\t1\twall\n")
    with pytest.raises(ValueError, match="has no column 'nyu40id'; did you mean 'nyu40'"):
        run(copy_of_raw)
    table.unlink()
    with pytest.raises(FileNotFoundError, match="--category-mapping says where it is"):
        run(copy_of_raw)
    with pytest.raises(ValueError, match="'tset' is unknown; did you mean 'test'"):
        find_regions(copy_of_raw, ["tset"])
    packed = copy_of_raw.parent / "packed" / VAL
    packed.mkdir(parents=True)
    (packed / "region_segmentations.zip").touch()
    with pytest.raises(FileNotFoundError, match="region_segmentations.zip is still packed"):
        find_regions(packed.parent)


def test_data_set(done):
    root, _ = done
    data = MatterportDataset(split="train", data_root=root, num_classes=160)
    assert data.class_names == label_set("matterport160").names
    np.testing.assert_array_equal(data.get_data(0)["segment"], np.load(root / "train" / f"{TRAIN}_region0" / "segment160.npy"))
    assert MatterportDataset(split="test", data_root=root).get_data(0)["segment"].max() == 20
    with pytest.raises(ValueError, match="num_classes must be 21, 40, 80 or 160, got 20"):
        MatterportDataset(data_root=root, num_classes=20)


def test_command_line(raw, tmp_path, capsys):
    script = Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "matterport.py"
    spec = importlib.util.spec_from_file_location("preprocess_matterport_tool", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["--raw-root", str(raw), "--output-root", str(tmp_path), "--image-width", "40", "--workers", "0"]
    assert tool.main(arguments) == 0
    output = capsys.readouterr()
    assert "4 scenes (train 2, val 1, test 1), 1944 points, 36 frames" in output.out
    assert "scenes without a picture taken inside them: 1 in 1 scenes" in output.out
    assert output.err.count("s left)") == 4
