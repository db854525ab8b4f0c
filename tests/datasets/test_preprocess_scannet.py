"""Rooms written as raw ScanNet and preprocessed: what the generator knew comes back, and bad input is named."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointcept3m.datasets.preprocess_scannet import (
    Settings,
    choose_frames,
    find_scenes,
    preprocess_scannet,
    read_label_table,
    vertex_normals,
)
from pointcept3m.datasets.readers import read_ply
from pointcept3m.datasets.rooms import generate_room, render_frames, scan_mesh, write_raw_scannet
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.categories import object_labels
from pointcept3m.datasets.scannet_labels import NYU40_TO_SCANNET20, scannet_split

FRAMES, LOST = 9, 4
DEPTH_SIZE, COLOR_SIZE = (60, 80), (122, 164)
EDGE = 0.12
TRAIN, VAL, TEST = "scene0001_00", "scene0005_01", "scene0006_02"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_raw_scannet(root, {"train": [1], "val": [5], "test": [6]}, FRAMES, DEPTH_SIZE, COLOR_SIZE, lost_frames=[LOST], edge=EDGE)
    return root


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("scannet")
    reports = preprocess_scannet(raw, root, Settings(frame_stride=1), workers=0)
    return root, {report.name: report for report in reports}


@pytest.fixture
def copy_of_raw(raw, tmp_path):
    """The training scene alone, to be damaged."""
    root = tmp_path / "raw"
    shutil.copytree(raw / "scans" / TRAIN, root / "scans" / TRAIN)
    for name in ("scannetv2-labels.combined.tsv", "scannetv2_train.txt"):
        shutil.copy(raw / name, root / name)
    return root


def load(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, allow_pickle=False) for path in folder.glob("*.npy")}


def test_points_and_labels_are_the_generators(done):
    root, _ = done
    for split, seed, name in (("train", 1, TRAIN), ("val", 5, VAL)):
        room = generate_room(seed, split)
        caster = RayCaster(Surface.of(room))
        scan = scan_mesh(room, render_frames(room, FRAMES, DEPTH_SIZE, caster), caster, EDGE)
        got, want = load(root / split / name), object_labels(room)
        np.testing.assert_array_equal(got["coord"], scan.cloud.coord)
        np.testing.assert_array_equal(got["color"], scan.cloud.color)
        np.testing.assert_array_equal(got["instance"], scan.cloud.instance)
        np.testing.assert_array_equal(got["segment20"], want["segment20"][scan.cloud.instance])
        np.testing.assert_array_equal(got["segment200"], want["segment200"][scan.cloud.instance])
        assert len(np.unique(got["segment20"])) > 8
        # Away from edges the normals of the mesh are those of the surfaces it was made of.
        agree = np.einsum("ni,ni->n", got["normal"], scan.cloud.normal)
        assert np.median(agree) > 0.97


def test_test_scenes_have_no_labels(done):
    root, reports = done
    arrays = load(root / "test" / TEST)
    for name in ("segment20", "segment200", "instance"):
        assert arrays[name].shape == arrays["coord"].shape[:1] and (arrays[name] == -1).all()
    assert reports[TEST].missing and not (root / "test" / TEST / "label").exists()


def test_lost_poses_are_passed_over_and_frames_keep_their_number(done):
    root, reports = done
    assert (reports[TRAIN].num_frames, reports[TRAIN].lost_poses) == (FRAMES - 1, 1)
    for kind in ("color", "depth", "pose", "label"):
        assert sorted(int(path.stem) for path in (root / "train" / TRAIN / kind).iterdir()) == [k for k in range(FRAMES) if k != LOST]


def project(folder: Path, index: int, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indices of points that a frame's depth confirms, their pixel rows, their pixel columns)."""
    depth = np.asarray(Image.open(folder / f"depth/{index}.png")) / 1000
    world_to_camera = np.linalg.inv(np.loadtxt(folder / f"pose/{index}.txt"))
    camera = arrays["coord"] @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    u, v, z = np.loadtxt(folder / "intrinsic/intrinsic_depth.txt")[:3, :3] @ camera.T
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = u / z, v / z
    inside = np.flatnonzero((z > 0.1) & (u >= 0) & (u < depth.shape[1]) & (v >= 0) & (v < depth.shape[0]))
    cols, rows = u[inside].astype(int), v[inside].astype(int)
    seen = np.abs(depth[rows, cols] - z[inside]) < 0.05
    return inside[seen], rows[seen], cols[seen]


def test_projected_points_meet_their_labels_frame_by_frame(done):
    """Labels stay in step with frames, also past the frame that was left out."""
    root, _ = done
    folder = root / "train" / TRAIN
    arrays = load(folder)
    for index in (0, 3, 5, 8):
        points, rows, cols = project(folder, index, arrays)
        assert len(points) > 500

        def agreement(k, points=points, rows=rows, cols=cols):
            label = NYU40_TO_SCANNET20[np.asarray(Image.open(folder / f"label/{k}.png"))]
            return (label[rows, cols] == arrays["segment20"][points]).mean()

        assert agreement(index) > 0.9
        assert all(agreement(k) < agreement(index) - 0.05 for k in (0, 3, 5, 8) if k != index)


def test_projected_points_meet_their_colours(done):
    """Points and pictures agree best where the cameras say they do, and less a few pixels aside."""
    root, _ = done
    folder = root / "train" / TRAIN
    arrays = load(folder)
    shifts = [(0, 0), (4, 0), (-4, 0), (0, 4), (0, -4)]
    agreement = []
    for index in (0, 3, 5, 8):
        points, rows, cols = project(folder, index, arrays)
        image = np.asarray(Image.open(folder / f"color/{index}.jpg")).astype(float).mean(axis=2)
        assert image.shape == DEPTH_SIZE
        known = arrays["color"][points].mean(axis=1)
        image = np.pad(image, 4, mode="edge")
        agreement.append([np.corrcoef(image[rows + 4 + dy, cols + 4 + dx], known)[0, 1] for dy, dx in shifts])
    agreement = np.mean(agreement, axis=0)
    assert agreement[0] > 0.5 and agreement[0] > agreement[1:].max() + 0.05


def test_colour_size_kept_and_frames_apart(raw, tmp_path):
    settings = Settings(frame_stride=2, num_frames=3, keep_color_size=True)
    (report,) = preprocess_scannet(raw, tmp_path / "points", settings, tmp_path / "frames", splits=["train"], workers=0)
    folder = tmp_path / "frames" / TRAIN
    names = sorted(int(path.stem) for path in (folder / "color").iterdir())
    assert names == [0, 6, 8]  # spread evenly over 0 2 6 8; 4 is lost
    assert report.num_frames == 3
    with Image.open(folder / f"color/{names[1]}.jpg") as color, Image.open(folder / f"label/{names[1]}.png") as label:
        assert color.size == COLOR_SIZE[::-1] and label.size == DEPTH_SIZE[::-1]
    k_color, k_depth = (np.loadtxt(folder / f"intrinsic/intrinsic_{kind}.txt") for kind in ("color", "depth"))
    np.testing.assert_allclose(k_color[0, [0, 2]] / k_depth[0, [0, 2]], COLOR_SIZE[1] / DEPTH_SIZE[1], rtol=1e-5)
    assert not (tmp_path / "points" / "train" / TRAIN / "color").exists()


def test_resized_colour_gets_a_resized_intrinsic(done):
    root, _ = done
    k_color, k_depth = (np.loadtxt(root / f"train/{TRAIN}/intrinsic/intrinsic_{kind}.txt") for kind in ("color", "depth"))
    np.testing.assert_allclose(k_color, k_depth, rtol=1e-5)  # the rooms' two cameras differ in size only


def test_a_finished_scene_is_kept_and_other_settings_write_it_anew(raw, tmp_path):
    calls = []
    run = dict(splits=["val"], workers=0, progress=lambda done, count, report: calls.append((done, count, report.name)))
    preprocess_scannet(raw, tmp_path, Settings(frame_stride=0), **run)
    before = (tmp_path / "val" / VAL / "coord.npy").stat().st_mtime_ns
    (again,) = preprocess_scannet(raw, tmp_path, Settings(frame_stride=0), **run)
    assert (tmp_path / "val" / VAL / "coord.npy").stat().st_mtime_ns == before and again.num_points > 1000
    preprocess_scannet(raw, tmp_path, Settings(frame_stride=4), **run)
    assert len(list((tmp_path / "val" / VAL / "depth").iterdir())) == 2  # 0, 8; 4 is lost
    assert calls == [(1, 1, VAL)] * 3
    assert [path.name for path in (tmp_path / "val").iterdir()] == [VAL]


def test_a_stranger_in_the_way_is_not_overwritten(raw, tmp_path):
    (tmp_path / "train" / TRAIN).mkdir(parents=True)
    (tmp_path / "train" / TRAIN / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="was not written by this preprocessing"):
        preprocess_scannet(raw, tmp_path, splits=["train"], workers=0)
    assert (tmp_path / "train" / TRAIN / "mine.txt").read_text() == "precious"


def test_broken_scene_ends_the_run_or_is_skipped_by_name(copy_of_raw, tmp_path):
    path = copy_of_raw / "scans" / TRAIN / f"{TRAIN}.sens"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{TRAIN}.sens: cut short: frame {FRAMES - 1}"):
        preprocess_scannet(copy_of_raw, tmp_path / "out", Settings(frame_stride=1), workers=0)
    (report,) = preprocess_scannet(copy_of_raw, tmp_path / "out", Settings(frame_stride=1), workers=0, skip_broken=True)
    assert f"{TRAIN}.sens: cut short" in report.error
    assert list((tmp_path / "out").rglob("*.npy")) == []  # nothing half-made stays


def test_overlapping_groups_and_unknown_labels(copy_of_raw, tmp_path):
    path = copy_of_raw / "scans" / TRAIN / f"{TRAIN}.aggregation.json"
    content = json.loads(path.read_text())
    content["segGroups"][0]["label"] = "flying carpet"
    path.write_text(json.dumps(content))
    (report,) = preprocess_scannet(copy_of_raw, tmp_path / "out", Settings(frame_stride=0), workers=0)
    arrays = load(tmp_path / "out" / "train" / TRAIN)
    members = arrays["instance"] == content["segGroups"][0]["id"]
    assert report.unknown_labels == {"flying carpet": int(members.sum())} and members.any()
    assert (arrays["segment20"][members] == -1).all() and (arrays["segment200"][members] == -1).all()


def test_label_folder_serves_in_place_of_the_zip(copy_of_raw, done, tmp_path):
    import zipfile

    scene = copy_of_raw / "scans" / TRAIN
    with zipfile.ZipFile(scene / f"{TRAIN}_2d-label-filt.zip") as archive:
        archive.extractall(scene)
    (scene / f"{TRAIN}_2d-label-filt.zip").unlink()
    preprocess_scannet(copy_of_raw, tmp_path / "out", Settings(frame_stride=4), workers=0)
    for name in ("0", "8"):
        got, want = (np.asarray(Image.open(root / "train" / TRAIN / f"label/{name}.png")) for root in (tmp_path / "out", done[0]))
        np.testing.assert_array_equal(got, want)
    (scene / "label-filt" / "8.png").unlink()
    with pytest.raises(FileNotFoundError, match="8.png"):
        preprocess_scannet(copy_of_raw, tmp_path / "out2", Settings(frame_stride=4), workers=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("_vh_clean_2.0.010000.segs.json", '{"segIndices": [1, 2]}', "wanted one integer for each of"),
        ("_vh_clean_2.0.010000.segs.json", "{", "is no valid JSON"),
        ("_vh_clean_2.0.010000.segs.json", "[]", "wanted an object with a list 'segIndices'"),
        (".aggregation.json", '{"segGroups": [{"id": 1}]}', "wanted groups with id, label and segments"),
        (".aggregation.json", None, "wanted ScanNet's annotation"),
        ("_vh_clean_2.ply", None, "no such PLY file"),
        (".sens", None, "no such .sens file"),
    ],
)
def test_bad_files_are_named(copy_of_raw, tmp_path, name, content, message):
    path = copy_of_raw / "scans" / TRAIN / f"{TRAIN}{name}"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        preprocess_scannet(copy_of_raw, tmp_path / "out", workers=0)
    assert path.name in str(caught.value)


def test_missing_table_and_empty_root_are_named(copy_of_raw, tmp_path):
    (copy_of_raw / "scannetv2-labels.combined.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="label table is missing"):
        preprocess_scannet(copy_of_raw, tmp_path / "out", workers=0)
    with pytest.raises(FileNotFoundError, match="scans/sceneXXXX_YY"):
        find_scenes(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'trian' is unknown; did you mean 'train'"):
        find_scenes(copy_of_raw, ["trian"])
    with pytest.raises(ValueError, match="none of its scenes is of the splits val"):
        preprocess_scannet(copy_of_raw, tmp_path / "out", splits=["val"], workers=0)


def test_choice_of_frames():
    def valid(index):
        return index % 10 != 5

    assert choose_frames(40, valid, Settings(frame_stride=10)) == ([0, 10, 20, 30], 0)
    assert choose_frames(20, valid, Settings(frame_stride=5)) == ([0, 10], 2)
    chosen, lost = choose_frames(100, valid, Settings(frame_stride=1, num_frames=4))
    assert chosen[0] == 0 and chosen[-1] == 99 and len(chosen) == 4 and lost == 10
    with pytest.raises(ValueError, match="must not be negative"):
        Settings(frame_stride=-1)


def test_normals_of_a_known_mesh():
    """Two faces of a roof: a vertex on the ridge gets the mean, weighted by area; a vertex of no face gets zero."""
    coord = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1], [5, 5, 5]], np.float32)
    normal = vertex_normals(coord, np.array([[0, 1, 2], [0, 1, 3]]))
    np.testing.assert_allclose(normal[2], [0, 0, 1])
    np.testing.assert_allclose(normal[3], [0, -1, 0])
    np.testing.assert_allclose(normal[0], np.array([0, -1, 1]) / np.sqrt(2), atol=1e-6)
    np.testing.assert_array_equal(normal[4], 0)


def test_label_ply_and_official_lists(raw, real_data):
    labelled = read_ply(raw / "scans" / TRAIN / f"{TRAIN}_vh_clean_2.labels.ply")
    assert labelled.vertex["label"].dtype == np.uint16 and labelled.vertex["label"].max() <= 40
    folder = real_data("metadata/scannet/meta_data")
    for split, count in (("train", 1201), ("val", 312), ("test", 100)):
        names = (folder / f"scannetv2_{split}.txt").read_text().split()
        assert len(names) == count and all(scannet_split(name) == split for name in names)
    table = read_label_table(folder / "scannetv2-labels.combined.tsv")
    assert table.by_name["office chair"] == (10, 5) and table.nyu40_by_id[10] == 5
    with pytest.raises(ValueError, match="wanted a ScanNet scene name"):
        scannet_split("room000001")


def test_command_line(raw, tmp_path, capsys):
    script = Path(__file__).resolve().parents[2] / "tools" / "preprocess" / "scannet.py"
    spec = importlib.util.spec_from_file_location("preprocess_scannet_tool", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["--raw-root", str(raw), "--output-root", str(tmp_path), "--frame-stride", "3", "--workers", "0"]
    assert tool.main(arguments) == 0
    output = capsys.readouterr()
    assert "3 scenes" in output.out and "missing in 1 scenes: label pictures" in output.out
    assert output.err.count("s left)") == 3
    with pytest.raises(FileNotFoundError, match="scans/sceneXXXX_YY"):
        tool.main(["--raw-root", str(tmp_path), "--output-root", str(tmp_path)])
