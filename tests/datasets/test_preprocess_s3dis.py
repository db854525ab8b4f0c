"""S3DIS preprocessing, on a raw tree written from generated rooms with the faults that the published files have."""

import importlib.util

import numpy as np
import pytest

from pointcept3m.datasets import S3DISDataset
from pointcept3m.datasets.preprocess_s3dis import (
    RoomReport,
    Settings,
    find_rooms,
    preprocess_s3dis,
    read_angles,
    read_object,
    turn,
)
from pointcept3m.datasets.rooms import ROOMS_CLASSES, write_rooms
from pointcept3m.datasets.s3dis import S3DIS_CLASSES
from tests.conftest import REPOSITORY

ROOMS = {"Area_1": ("office_1", "office_2"), "Area_5": ("hallway_6",)}


@pytest.fixture(scope="session")
def clouds(tmp_path_factory):
    """Three scans, of some thousand points each, of a generated room: (coord, color, segment, instance)."""
    root = tmp_path_factory.mktemp("rooms")
    write_rooms(root, "train", 1, 0, 3, (48, 64), 0)
    scene = next((root / "train").iterdir())
    arrays = [np.load(scene / f"{name}.npy") for name in ("coord", "color", "segment", "instance")]
    return [tuple(array[start::9] for array in arrays) for start in range(3)]


def write_raw(root, clouds):
    """The clouds as a download of S3DIS: a text file for every object, the whole room, the area's angles."""
    for (area, room), (coord, color, segment, instance) in zip(
        [(area, room) for area, rooms in ROOMS.items() for room in rooms], clouds, strict=True
    ):
        folder = root / area / room / "Annotations"
        folder.mkdir(parents=True)
        for number in np.unique(instance):
            rows = instance == number
            name = ROOMS_CLASSES[segment[rows][0]] if segment[rows][0] >= 0 else "stairs"
            name = {"bookshelf": "bookcase"}.get(name, name if name in (*S3DIS_CLASSES, "stairs") else "clutter")
            table = np.column_stack([coord[rows], color[rows]])
            np.savetxt(folder / f"{name}_{max(number, 0) + 1}.txt", table, fmt="%.3f %.3f %.3f %d %d %d")
        (folder / ".DS_Store").write_bytes(b"\0\1\2")
        (folder / "Icon\r").write_bytes(b"")
        (root / area / ".DS_Store").write_bytes(b"\0")
        np.savetxt(root / area / room / f"{room}.txt", coord[:3])
    for area, rooms in ROOMS.items():
        lines = [f"## Global alignment angle per disjoint space in {area} ##", *(f"{room} {90 * n}" for n, room in enumerate(rooms))]
        (root / area / f"{area}_alignmentAngle.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def raw(tmp_path, clouds):
    return write_raw(tmp_path / "raw", clouds)


def rows_of(array):
    return sorted(map(tuple, np.asarray(array).tolist()))


def test_rooms_come_out_as_they_went_in(raw, tmp_path, clouds):
    reports = preprocess_s3dis(raw, tmp_path / "out", workers=0)
    assert [(r.area, r.name) for r in reports] == [("Area_1", "office_1"), ("Area_1", "office_2"), ("Area_5", "hallway_6")]
    dataset = S3DISDataset(split=("Area_1", "Area_5"), data_root=tmp_path / "out")
    for number, (coord, color, segment, instance) in enumerate(clouds):
        sample = dataset[number]
        written = np.column_stack([sample["coord"], sample["color"]])
        order, raw_order = np.lexsort(written.T), np.lexsort(np.column_stack([coord.round(3), color]).T)
        np.testing.assert_allclose(sample["coord"][order], coord[raw_order], atol=6e-4)
        # the same points share an object, and its class is the one of its file's name
        assert len(np.unique(np.column_stack([sample["instance"], sample["segment"]]), axis=0)) == len(np.unique(instance))
        walls = sample["segment"] == S3DIS_CLASSES.index("wall")
        assert walls.sum() == (segment == ROOMS_CLASSES.index("wall")).sum() > 100
        assert reports[number].class_points[S3DIS_CLASSES.index("wall")] == walls.sum()
        assert reports[number].num_points == len(coord) == sum(reports[number].class_points)
        np.testing.assert_allclose(np.linalg.norm(sample["normal"], axis=1), 1, atol=1e-5)
    folder = tmp_path / "out" / "Area_5" / "hallway_6"
    assert {p.stem: np.load(p).dtype.name for p in folder.glob("*.npy")} == {
        "coord": "float32", "color": "uint8", "segment": "int16", "instance": "int16", "normal": "float32",
    }  # fmt: skip
    assert dataset.get_data_name(2) == "Area_5-hallway_6"


def test_objects_are_numbered_by_their_files_names(raw, tmp_path):
    preprocess_s3dis(raw, tmp_path / "out", Settings(normals=False), ["Area_5"], workers=0)
    folder = tmp_path / "out" / "Area_5" / "hallway_6"
    segment, instance = (np.load(folder / f"{name}.npy") for name in ("segment", "instance"))
    names = sorted(p.stem for p in (raw / "Area_5" / "hallway_6" / "Annotations").glob("*.txt"))
    expected = [name.split("_")[0] if name.split("_")[0] in S3DIS_CLASSES else "clutter" for name in names]
    assert [S3DIS_CLASSES[segment[instance == number][0]] for number in range(len(names))] == expected
    assert not (folder / "normal.npy").exists()


def test_the_published_faults_are_mended_and_named(raw, tmp_path, clouds):
    folder = raw / "Area_5" / "hallway_6" / "Annotations"
    (folder / "ceiling_1.txt").write_bytes(b"22.350 6.692 3.048 185\x10187 182\n1.5 2 3 4 5 6\n")  # aligned version, Area_5
    (folder / "ceiling_2.txt").write_bytes(b"1 2 3 110 104 103.0\x100000\r\n\r\n")  # v1.2, office_19
    (folder / "ceiling_3.txt").write_bytes("1 2 3 4\u00a05 6".encode())
    (folder / "door_9.txt").write_text("1 1 1 2 3 4\n")
    (folder / "door_9 (1).txt").write_text("1 1 1 2 3 4\n")
    (folder / "stairs_1.txt").write_text("0 0 0 9 9 9\n")
    (folder / "._wall_1.txt").write_bytes(b"\0\1")
    (folder / "beam_1.txt").write_text("\n")
    report = preprocess_s3dis(raw, tmp_path / "out", areas=["Area_5"], workers=0)[0]
    assert [note for note in report.notes if "stairs" not in note] == [
        "beam_1.txt: empty",
        "ceiling_1.txt, line 1: '22.350 6.692 3.048 185\\x10187 182' read as '22.350 6.692 3.048 185 187 182'",
        "ceiling_2.txt, line 1: '1 2 3 110 104 103.0\\x100000\\r' read as '1 2 3 110 104 103.00000'",
        "ceiling_3.txt, line 1: '1 2 3 4\\xa05 6' read as '1 2 3 4  5 6'",
        "door_9 (1).txt: left out as a copy",
    ]
    assert "stairs_1.txt: class 'stairs' counts as clutter" in report.notes
    folder = tmp_path / "out" / "Area_5" / "hallway_6"
    coord, color, segment = (np.load(folder / f"{name}.npy") for name in ("coord", "color", "segment"))
    found = np.column_stack([coord, color])[segment == S3DIS_CLASSES.index("ceiling")]
    np.testing.assert_allclose(found, [[22.35, 6.692, 3.048, 185, 187, 182], [1.5, 2, 3, 4, 5, 6], [1, 2, 3, 110, 104, 103], [1, 2, 3, 4, 5, 6]], atol=1e-6)
    assert len(coord) == len(clouds[2][0]) + 6 and report.class_points[0] == 4


@pytest.mark.parametrize(
    "text, words",
    [
        (b"1 2 3 4 5 6\n1 2 3 4 5\n", r"line 2: wanted six numbers, got b'1 2 3 4 5'; is the file whole"),
        (b"1 2 3 4 5\n1 2 3 4 5\n", "line 1: wanted six numbers"),
        (b"1 2 3 4 5 6\n\n1 2\x003 4 5 6 7 8\n", r"line 3: wanted six numbers, got b'1 2\\x003 4 5 6 7 8'"),
        (b"1 2 3 4 5 6 7\n", "line 1: wanted six numbers"),
        (b"1 2 3 4 5 1-2\n", "line 1: wanted six numbers"),
        (b"1 2 3 4 5 256\n", "colours run from 4 to 256; wanted 0..255"),
        (b"1 2 1e999 4 5 6\n", "point 1 is not finite"),
    ],
)
def test_lines_that_cannot_be_mended_are_named(tmp_path, text, words):
    (tmp_path / "wall_1.txt").write_bytes(text)
    with pytest.raises(ValueError, match=f"wall_1.txt.*{words}"):
        read_object(tmp_path / "wall_1.txt")


def test_a_room_is_turned_about_its_middle(raw, tmp_path):
    corner = np.array([[0, 0, 0], [4, 0, 1], [4, 2, 2], [0, 2, 3.0]])
    np.testing.assert_allclose(turn(corner, 90), [[1, 3, 0], [1, -1, 1], [3, -1, 2], [3, 3, 3]], atol=1e-12)  # clockwise
    assert read_angles(raw / "Area_1") == {"office_1": 0.0, "office_2": 90.0}
    plain = preprocess_s3dis(raw, tmp_path / "plain", Settings(normals=False), workers=0)
    preprocess_s3dis(raw, tmp_path / "turned", Settings(True, False), workers=0)
    for report in plain:
        before, after = (np.load(tmp_path / kind / report.area / report.name / "coord.npy") for kind in ("plain", "turned"))
        size, turned_size = np.ptp(before, axis=0), np.ptp(after, axis=0)
        expected = size[[1, 0, 2]] if report.name == "office_2" else size
        np.testing.assert_allclose(turned_size, expected, atol=1e-4)
    (raw / "Area_5" / "Area_5_alignmentAngle.txt").write_text("hallway_7 0\n")
    with pytest.raises(ValueError, match="has no room 'hallway_6'; did you mean 'hallway_7'"):
        preprocess_s3dis(raw, tmp_path / "other", Settings(True), workers=0)
    (raw / "Area_5" / "Area_5_alignmentAngle.txt").write_text("hallway_6 north\n")
    with pytest.raises(ValueError, match="line 1: wanted a room and its degrees"):
        read_angles(raw / "Area_5")
    (raw / "Area_5" / "Area_5_alignmentAngle.txt").unlink()
    with pytest.raises(FileNotFoundError, match="aligned version needs no turning"):
        preprocess_s3dis(raw, tmp_path / "other", Settings(True), workers=0)


def test_a_stopped_run_continues_and_workers_agree(raw, tmp_path):
    done = []

    def stop(number, total, report):
        done.append(report.name)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess_s3dis(raw, tmp_path / "out", workers=0, progress=stop)
    assert len(list((tmp_path / "out").glob("*/*"))) == 2
    first = tmp_path / "out" / "Area_1" / "office_1" / "coord.npy"
    stamp = first.stat().st_mtime_ns
    reports = preprocess_s3dis(raw, tmp_path / "out", workers=0)
    assert first.stat().st_mtime_ns == stamp and all(isinstance(r, RoomReport) and r.num_points for r in reports)
    preprocess_s3dis(raw, tmp_path / "out", Settings(normals=False), workers=0)  # other settings: written anew
    assert not first.with_name("normal.npy").exists()
    (tmp_path / "strange" / "Area_1" / "office_1").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="was not written by this preprocessing"):
        preprocess_s3dis(raw, tmp_path / "strange", workers=0)


def test_the_tool_says_what_it_did(raw, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("s3dis_tool", REPOSITORY / "tools" / "preprocess" / "s3dis.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (raw / "Area_1" / "office_2" / "Annotations" / "wall_77.txt").write_text("1 2\n")
    arguments = ["--dataset_root", str(raw), "--output_root", str(tmp_path / "out"), "--workers", "0", "--normals", "none"]
    with pytest.raises(ValueError, match="wall_77.txt, line 1: wanted six numbers"):
        tool.main(arguments)
    assert tool.main([*arguments, "--skip-broken"]) == 1
    said = capsys.readouterr()
    assert "2 rooms (Area_1 1, Area_5 1)" in said.out and "skipped Area_1/office_2: ValueError" in said.out
    walls = next(line.split() for line in said.out.splitlines() if line.startswith("  wall"))
    counted = sum((np.load(path) == 2).sum() for path in (tmp_path / "out").glob("*/*/segment.npy"))
    assert int(walls[1]) == counted > 0 and "[3/3]" in said.err
    with pytest.raises(FileNotFoundError, match="no such folder"):
        tool.main(["--raw-root", str(tmp_path / "ra"), "--output-root", str(tmp_path / "out")])


def test_absent_areas_and_rooms_are_named(raw, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no area 'Area_2'; .*Area_"):
        find_rooms(raw, ["Area_2"])
    with pytest.raises(FileNotFoundError, match="wanted S3DIS's folders Area_1 .. Area_6 there, found Annotations"):
        find_rooms(raw / "Area_1" / "office_1")
    (tmp_path / "empty" / "Area_1" / "office_1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no room has a folder Annotations/"):
        find_rooms(tmp_path / "empty")


def test_classes_are_the_official_list(real_data):
    official = (real_data("metadata") / "s3dis" / "class_names.txt").read_text().split()
    assert list(S3DIS_CLASSES) == official
