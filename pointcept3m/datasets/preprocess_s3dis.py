"""Raw S3DIS (Stanford3dDataset_v1.2 or its aligned version) to Pointcept's folders of `.npy`.

    raw_root/Area_1/<room>/Annotations/<class>_<number>.txt    lines "x y z r g b", metres and 0..255
    raw_root/Area_1/Area_1_alignmentAngle.txt                  lines "<room> <degrees>"; only for align_angle

    output_root/Area_1/<room>/  coord float32  color uint8  segment int16  instance int16  normal float32

The published files have known faults, all of which are met here: single bytes that are no part of a number (line 180389
of Area_5/hallway_6 ceiling_1 in the aligned version; Area_5/office_19 ceiling_1 in the other), a copy "wall_3 (1).txt"
of a wall in Area_5/office_36, and the droppings of file managers. What is mended is reported by file and line.

A room is written under a temporary name and renamed when it is whole, so a run that was stopped continues.
"""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.normals import estimate_normals
from pointcept3m.datasets.s3dis import S3DIS_CLASSES
from pointcept3m.utils.files import atomic_folder, near_files
from pointcept3m.utils.processes import as_done
from pointcept3m.utils.registry import near_names

DONE = ".done"
COLUMNS = 6
NUMERALS = b"0123456789.+-eE"
BLANKS = b" \t\r\n"
TO_BLANK = bytes(byte if byte in NUMERALS + BLANKS else ord(" ") for byte in range(256))
STRANGERS = bytes(byte for byte in range(256) if byte not in NUMERALS + BLANKS)
COPY = re.compile(r" \(\d+\)$")  # what a file manager calls the second "wall_3.txt"


@dataclass(frozen=True)
class Settings:
    """What the user chose: whether rooms are turned by the angle of their area's file, and whether normals are made."""

    align_angle: bool = False
    normals: bool = True
    version: int = 1


@dataclass
class RoomReport:
    """What came of one room: points of each class, objects, and what was mended or left out."""

    area: str
    name: str
    num_points: int = 0
    num_objects: int = 0
    class_points: list[int] = field(default_factory=lambda: [0] * len(S3DIS_CLASSES))
    notes: list[str] = field(default_factory=list)
    error: str = ""


def find_rooms(raw_root: str | Path, areas: Sequence[str] = ()) -> list[Path]:
    """The folders of rooms (those with Annotations/) of `areas`, sorted. Raises FileNotFoundError, saying what was there."""
    raw_root = Path(raw_root)
    if not raw_root.is_dir():
        raise FileNotFoundError(f"{raw_root}: no such folder; {near_files(raw_root)}")
    found = {path.name: path for path in raw_root.glob("Area_*") if path.is_dir()}
    if not found:
        there = ", ".join(sorted(path.name for path in raw_root.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(f"{raw_root}: wanted S3DIS's folders Area_1 .. Area_6 there, found {there}")
    for area in areas:
        if area not in found:
            raise FileNotFoundError(f"{raw_root} has no area {area!r}; {near_names(area, found)}")
    rooms = [room.parent for area in sorted(areas or found) for room in sorted(found[area].glob("*/Annotations")) if room.is_dir()]
    if not rooms:
        raise FileNotFoundError(f"{raw_root}: no room has a folder Annotations/ in {', '.join(sorted(areas or found))}")
    return rooms


def read_angles(area: Path) -> dict[str, float]:
    """Degrees by room from `<area>/<area>_alignmentAngle.txt`. Raises FileNotFoundError or ValueError naming file and line."""
    path = area / f"{area.name}_alignmentAngle.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, without which rooms cannot be turned; it comes with Stanford3dDataset_v1.2. "
            f"The aligned version needs no turning"
        )
    angles = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            angles[words[0]] = float(words[1])
        except (IndexError, ValueError):
            raise ValueError(f"{path}, line {number}: wanted a room and its degrees, got {line!r}") from None
    return angles


def read_object(path: str | Path) -> tuple[NDArray[np.float64], list[str]]:
    """(points [N, 6]: x y z in metres, r g b in 0..255; sentences about the lines that were mended).

    A byte that is no part of a number stands for a blank, or where the line has too many numbers then, for nothing.

    Raises: ValueError naming file and line where a line does not hold six numbers, or the numbers are no such point.
    """
    path = Path(path)
    text, notes = path.read_bytes(), []
    if text.translate(None, NUMERALS + BLANKS):
        lines = text.split(b"\n")
        for row, line in enumerate(lines):
            if line.translate(None, NUMERALS + BLANKS):
                lines[row] = _mended(line, path, row + 1)
                notes.append(f"{path.name}, line {row + 1}: {line.decode(errors='backslashreplace')!r} read as "
                             f"{lines[row].decode().strip()!r}")  # fmt: skip
        text = b"\n".join(lines)
    if not text.strip():
        return np.empty((0, COLUMNS)), notes
    try:
        points = np.loadtxt(io.BytesIO(text), ndmin=2)
    except ValueError:
        points = None
    if points is None or points.shape[1] != COLUMNS:
        _name_bad_line(text, path)
    if not np.isfinite(points).all():
        row = int(np.argmin(np.isfinite(points).all(axis=1)))
        raise ValueError(f"{path}: point {row + 1} is not finite: {points[row].tolist()}")
    if points[:, 3:].min() < 0 or points[:, 3:].max() > 255:
        raise ValueError(f"{path}: colours run from {points[:, 3:].min():g} to {points[:, 3:].max():g}; wanted 0..255")
    return points, notes


def _mended(line: bytes, path: Path, number: int) -> bytes:
    for candidate in (line.translate(TO_BLANK), line.translate(None, STRANGERS)):
        if _numbers(candidate) == COLUMNS or not candidate.strip():
            return candidate
    raise ValueError(f"{path}, line {number}: wanted six numbers, got {line[:80]!r}")


def _numbers(line: bytes) -> int:
    """How many numbers a line holds; 0 where a word of it is none."""
    try:
        return len([float(word) for word in line.split()])
    except ValueError:
        return 0


def _name_bad_line(text: bytes, path: Path) -> None:
    """Raises the ValueError of the first line that has not six numbers."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and _numbers(line) != COLUMNS:
            raise ValueError(f"{path}, line {number}: wanted six numbers, got {line[:80]!r}; is the file whole?")
    raise ValueError(f"{path}: cannot be read as lines of six numbers")


def read_room(room: Path, report: RoomReport) -> dict[str, NDArray]:
    """coord [N, 3] float64, color uint8, segment and instance [N] int16 of a raw room. Objects are numbered by the order
    of their file names, classes that the benchmark does not have (stairs) are clutter. Notes go into `report`.
    """
    paths = sorted(p for p in (room / "Annotations").glob("*.txt") if not p.name.startswith("."))
    parts: dict[str, list[NDArray]] = {"points": [], "segment": [], "instance": []}
    for path in paths:
        if COPY.search(path.stem) and path.with_name(COPY.sub("", path.stem) + ".txt") in paths:
            report.notes.append(f"{path.name}: left out as a copy")
            continue
        name = path.stem.split("_")[0]
        if name not in S3DIS_CLASSES:
            report.notes.append(f"{path.name}: class {name!r} counts as clutter")
            name = "clutter"
        points, notes = read_object(path)
        report.notes += notes
        if not len(points):
            report.notes.append(f"{path.name}: empty")
            continue
        parts["points"].append(points)
        parts["segment"].append(np.full(len(points), S3DIS_CLASSES.index(name), np.int16))
        parts["instance"].append(np.full(len(points), report.num_objects, np.int16))
        report.num_objects += 1
    if not report.num_objects:
        raise ValueError(f"{room / 'Annotations'}: no file <class>_<number>.txt holds a point")
    points, segment, instance = (np.concatenate(values) for values in parts.values())
    report.num_points = len(points)
    report.class_points = np.bincount(segment, minlength=len(S3DIS_CLASSES)).tolist()
    color = np.rint(points[:, 3:]).astype(np.uint8)
    return {"coord": points[:, :3], "color": color, "segment": segment, "instance": instance}


def turn(coord: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Points turned by -`degrees` about the vertical line through the middle of their bounding box."""
    angle = -np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    middle = (coord.min(axis=0) + coord.max(axis=0)) / 2
    return (coord - middle) @ matrix.T + middle


def preprocess_room(room: Path, output_root: Path, settings: Settings, angle: float | None = None) -> RoomReport:
    """Writes one room, unless it is there with the same settings; see `preprocess_s3dis`."""
    target = output_root / room.parent.name / room.name
    if target.exists():
        if not (target / DONE).is_file():
            raise FileExistsError(f"{target}: is there but was not written by this preprocessing; move it away or choose another output folder")
        known = json.loads((target / DONE).read_text())
        if known["settings"] == asdict(settings):
            return RoomReport(**known["report"])
    report = RoomReport(room.parent.name, room.name)
    data = read_room(room, report)
    if angle is not None:
        data["coord"] = turn(data["coord"], angle)
    data["coord"] = data["coord"].astype(np.float32)
    if settings.normals:
        data["normal"] = estimate_normals(data["coord"])
    with atomic_folder(target) as part:
        for name, array in data.items():
            np.save(part / f"{name}.npy", array)
        (part / DONE).write_text(json.dumps({"settings": asdict(settings), "report": asdict(report)}, indent=1))
    return report


def preprocess_s3dis(raw_root: str | Path, output_root: str | Path, settings: Settings | None = None,
                     areas: Sequence[str] = (), workers: int = 2, skip_broken: bool = False,
                     progress: Callable[[int, int, RoomReport], None] | None = None) -> list[RoomReport]:  # fmt: skip
    """Writes every room of `areas` (all) to output_root/<area>/<room>; returns a report on each, in order.

    Rooms that are already there, whole and with the same settings, are left as they are.

    Args:
        workers: processes; 0 works in this one.
        skip_broken: go on past a room that cannot be read; its report has `error`. Otherwise the first such room ends
            the run with its own error.
        progress: called with (rooms done, rooms in all, report) after each room.
    """
    settings, output_root = settings or Settings(), Path(output_root)
    rooms = find_rooms(raw_root, areas)
    angles = {area: read_angles(area) for area in dict.fromkeys(room.parent for room in rooms)} if settings.align_angle else {}
    for room in rooms if settings.align_angle else ():
        if room.name not in angles[room.parent]:
            raise ValueError(f"{room.parent.name}_alignmentAngle.txt has no room {room.name!r}; {near_names(room.name, angles[room.parent])}")
    jobs = [(room, output_root, settings, angles.get(room.parent, {}).get(room.name), skip_broken) for room in rooms]
    reports = []
    for report in as_done(_attempt, jobs, workers):
        reports.append(report)
        if progress:
            progress(len(reports), len(jobs), report)
    return sorted(reports, key=lambda report: (report.area, report.name))


def _attempt(room: Path, output_root: Path, settings: Settings, angle: float | None, skip_broken: bool) -> RoomReport:
    try:
        return preprocess_room(room, output_root, settings, angle)
    except (OSError, ValueError) as error:
        if not skip_broken:
            raise
        return RoomReport(room.parent.name, room.name, error=f"{type(error).__name__}: {error}")
