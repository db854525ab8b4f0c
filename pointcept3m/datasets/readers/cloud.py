"""A point cloud from whatever file people have: coordinates, and colours and normals where the file has them.

    .ply           vertices x y z, red green blue (or r g b), nx ny nz
    .pcd           ascii, binary, binary_compressed; rgb packed or apart
    .las .laz      through laspy (pip install "pointcept3m[io]")
    .npy           [N, 3] coordinates, [N, 6] with colours or normals, [N, 9] with both, or a structured array
    .npz           arrays under names such as coord, color, normal
    .xyz .txt .csv .asc .pts   text, one point a line: as .npy, or columns by the names in the first line
    folder         of coord.npy color.npy normal.npy (Pointcept), or of posed RGB-D frames, which are fused

Numbers come out as they are in the file; what they mean (unit, up, range of colours) is guessed in `datasets/scan.py`.
"""

import shlex
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

NAMES = {
    "coord": ("coord", "coords", "xyz", "points", "point", "positions", "pos", "vertices"),
    "color": ("color", "colors", "colour", "colours", "rgb"),
    "normal": ("normal", "normals", "nxyz"),
}
COLUMNS = {
    "coord": (("x", "y", "z"), ("X", "Y", "Z")),
    "color": (("red", "green", "blue"), ("r", "g", "b"), ("R", "G", "B"), ("diffuse_red", "diffuse_green", "diffuse_blue")),
    "normal": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")),
}
MESHES = (".obj", ".stl", ".off", ".glb", ".gltf")
MAX_INFLATION = 1100  # deflate cannot make a byte into more than 1,032


@dataclass
class Cloud:
    """Points as a file gives them.

    coord: [N, 3], any float or integer type. color, normal: [N, 3], any number type, or None. up: the direction
    against gravity and where it is known from, or None. unit: metres in a unit of coord and where that is known
    from, or None. notes: sentences about what was read, each with the flag that changes it.
    """

    name: str
    kind: str
    coord: NDArray
    color: NDArray | None = None
    normal: NDArray | None = None
    up: tuple[NDArray[np.float64], str] | None = None
    unit: tuple[float, str] | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("coord", "color", "normal"):
            values = getattr(self, key)
            if values is None and key != "coord":
                continue
            if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
                raise TypeError(f"{self.name}: {key} must be numbers, got {getattr(values, 'dtype', type(values).__name__)}")
            if values.ndim != 2 or values.shape[1] != 3:
                raise ValueError(f"{self.name}: {key} must have shape [N, 3], got {list(values.shape)}")
            if len(values) != len(self.coord):
                raise ValueError(f"{self.name}: {key} has {len(values)} rows where coord has {len(self.coord)}")
        if not len(self.coord):
            raise ValueError(f"{self.name}: has no points")


def read_cloud(path: str | Path, columns: str = "auto", **rgbd: Any) -> Cloud:
    """The cloud in `path`, a file or a folder of the kinds that this module's docstring lists.

    Args:
        columns: what columns 3 to 5 of an .npy [N, 6] or of six columns of text hold, "color" or "normal"; "auto" looks
            at the numbers.
        rgbd: for a folder of RGB-D frames: kind, intrinsic, units_per_metre, on_bad_frame as `open_rgbd`, and voxel,
            max_depth as `FusionSettings`.

    Raises: FileNotFoundError with near files; ImportError where laspy is needed and absent; ValueError naming the
        file and what is wrong: unknown kind, damaged, cut short, counts that the bytes cannot hold, no points.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {near_files(path)}")
    if path.is_dir():
        return _read_rgbd(path, rgbd) if is_rgbd(path) else _read_scene(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = f"wanted a folder or one of {', '.join(READERS)}"
        raise ValueError(f"{path}: {known}. {way_out(path)}" if suffix else f"{path}: cannot tell what it is without a suffix; {known}")
    if suffix in TABLES:
        return TABLES[suffix](path, columns)
    return READERS[suffix](path)


def is_rgbd(path: Path) -> bool:
    """Whether a folder is read as RGB-D frames, which takes a while, and not as a scene of .npy files."""
    return path.is_dir() and not (path / "coord.npy").is_file()


def check_rgbd(path: Path, kind: str = "auto", intrinsic: Any = None, units_per_metre: float | None = None, on_bad_frame: str = "raise", **_: Any) -> None:
    """Opens a folder of RGB-D frames and fuses nothing. Raises as `open_rgbd`."""
    from pointcept3m.datasets.readers.rgbd import open_rgbd

    open_rgbd(path, kind, intrinsic, units_per_metre, on_bad_frame)


def way_out(path: Path) -> str:
    """How a file of another kind becomes one that is read: CloudCompare for clouds, trimesh for meshes, whose surface is sampled."""
    quoted = shlex.quote(str(path))
    if path.suffix.lower() in MESHES:
        code = "import sys, trimesh; trimesh.PointCloud(trimesh.load(sys.argv[1], force='mesh').sample(1000000)).export('points.ply')"
        return f'A mesh becomes points so (pip install trimesh; without colours): python -c "{code}" {quoted}'
    return f"CloudCompare reads many others: CloudCompare -SILENT -O {quoted} -C_EXPORT_FMT PLY -SAVE_CLOUDS"


def as_cloud(points: Any, name: str = "points", columns: str = "auto") -> Cloud:
    """A cloud from memory: an array [N, 3], [N, 6] or [N, 9], a structured array, a tensor, or a dict of arrays.

    Raises: as `Cloud`; KeyError where a dict has no coordinates.
    """
    if isinstance(points, Cloud):
        return points
    if isinstance(points, Mapping):
        return _from_names({str(key): to_array(value) for key, value in points.items() if value is not None}, name, "arrays")
    array = to_array(points)
    if array.dtype.names:
        return _from_columns({key: array[key] for key in array.dtype.names}, name, "structured array")
    return _from_table(array, name, "array", columns)


def to_array(values: Any) -> NDArray:
    """`values` as an array: tensors of any device are brought to the CPU."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _from_names(arrays: Mapping[str, NDArray], name: str, kind: str) -> Cloud:
    """A cloud of arrays by name; those under other names are left out, and a note says so."""
    found: dict[str, NDArray] = {}
    used = set()
    for key, names in NAMES.items():
        present = [n for n in arrays if n.lower() in names]
        if len(present) > 1:
            raise KeyError(f"{name}: {' and '.join(present)} could all be {key}; leave one")
        if present:
            found[key] = arrays[present[0]]
            used.add(present[0])
    if "coord" not in found:
        raise KeyError(f"{name}: wanted coordinates under 'coord'; it has {', '.join(arrays) or 'nothing'} ({near_names('coord', arrays)})")
    if found["coord"].ndim == 2 and found["coord"].shape[1] in (6, 9) and len(found) == 1:
        return _from_table(found["coord"], name, kind, "auto")
    rest = sorted(set(arrays) - used)
    notes = [f"not used: {', '.join(rest)}"] if rest else []
    return Cloud(name, kind, notes=notes, **found)


def _from_columns(values: Mapping[str, NDArray], name: str, kind: str) -> Cloud:
    """A cloud of single columns by name (x, y, z, red, ...). Raises KeyError where there are no coordinates."""
    found = {}
    for key, choices in COLUMNS.items():
        chosen = next((names for names in choices if all(n in values for n in names)), None)
        if chosen:
            found[key] = np.stack([values[n] for n in chosen], axis=1)
    if "coord" not in found:
        raise KeyError(f"{name}: wanted x, y, z; it has {', '.join(values) or 'nothing'}")
    return Cloud(name, kind, **found)


def _from_table(array: NDArray, name: str, kind: str, columns: str) -> Cloud:
    """A cloud of one table: coordinates, then colours or normals, then normals."""
    if columns not in ("auto", "color", "normal"):
        raise ValueError(f"columns must be auto, color or normal, got {columns!r}")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: wanted numbers, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] not in (3, 6, 9):
        wanted = "[N, 3] coordinates, [N, 6] with colours or normals, [N, 9] with both"
        raise ValueError(f"{name}: wanted {wanted}; got {list(array.shape)}. Other columns: pass arrays by name (coord, color, normal)")
    parts = {"coord": array[:, :3]}
    notes = []
    if array.shape[1] == 9:
        parts.update(color=array[:, 3:6], normal=array[:, 6:9])
    elif array.shape[1] == 6:
        meaning = columns if columns != "auto" else "normal" if _are_normals(array[:, 3:6]) else "color"
        parts[meaning] = array[:, 3:6]
        if columns == "auto":
            notes = [f"columns 3 to 5 are the {meaning}s, by their values (--columns color|normal)"]
    return Cloud(name, kind, notes=notes, **parts)


def _are_normals(values: NDArray) -> bool:
    """Whether nearly all rows have unit length, and some a negative entry."""
    sample = values[:: max(1, len(values) // 10_000)].astype(np.float64)
    length = np.linalg.norm(sample, axis=1)
    return bool((sample < 0).any() and (np.abs(length - 1) < 0.02).mean() > 0.9)


def _read_ply(path: Path) -> Cloud:
    from pointcept3m.datasets.readers.ply import read_ply

    return _from_columns(read_ply(path).vertex, str(path), "ply")


def _read_pcd(path: Path) -> Cloud:
    from pointcept3m.datasets.readers.pcd import read_pcd

    return _from_columns(read_pcd(path), str(path), "pcd")


def _read_las(path: Path) -> Cloud:
    from pointcept3m.datasets.readers.las import read_las

    up, unit = (np.array([0.0, 0.0, 1.0]), "LAS files have z up"), (1.0, "most LAS files have it, some are in feet")
    coord, color = read_las(path)
    return Cloud(str(path), path.suffix.lower()[1:], coord, color, up=up, unit=unit)


def _read_npy(path: Path, columns: str) -> Cloud:
    from pointcept3m.structures.scene import load_array

    return _as_file(as_cloud(load_array(path), str(path), columns), "npy")


def _read_text(path: Path, columns: str) -> Cloud:
    from pointcept3m.datasets.readers.text import read_text

    table, names = read_text(path)
    if names:
        cloud = _from_columns(dict(zip(names, table.T, strict=True)), str(path), "text")
        used = {name for key in ("coord", "color", "normal") if getattr(cloud, key) is not None for choice in COLUMNS[key] for name in choice}
        if rest := [name for name in names if name not in used]:
            cloud.notes.append(f"not used: {', '.join(rest)}")
        return cloud
    if path.suffix.lower() == ".pts" and table.shape[1] == 7:  # Leica's: x y z intensity red green blue
        return Cloud(str(path), "text", table[:, :3], table[:, 4:7], notes=["not used: column 3, the intensity of a .pts file"])
    if table.shape[1] == 4:
        return Cloud(str(path), "text", table[:, :3], notes=["not used: column 3"])
    if table.shape[1] not in (3, 6, 9):
        raise ValueError(f"{path}: has {table.shape[1]} columns without names; say in its first line what they are, as x y z intensity r g b")
    return _from_table(table, str(path), "text", columns)


def _read_npz(path: Path) -> Cloud:
    """The arrays by name; the size that each claims is checked against its bytes before it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _check_entry(path, archive, entry)
        with np.load(path, allow_pickle=False) as arrays:
            return _from_names({name: arrays[name] for name in arrays.files if _is_numeric(arrays, name)}, str(path), "npz")
    except (zipfile.BadZipFile, OSError, EOFError, zipfile.zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz archive ({error})") from error


def _is_numeric(arrays: Any, name: str) -> bool:
    """Whether an entry is an array of numbers or booleans; texts and objects cannot be points."""
    try:
        return arrays[name].dtype.kind in "fiub"
    except ValueError:  # objects, which would need pickle
        return False


def _check_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.file_size > MAX_INFLATION * max(1, entry.compress_size):
        raise ValueError(f"{path}: entry {entry.filename} claims {entry.file_size:,} bytes from {entry.compress_size:,}")
    if not entry.filename.endswith(".npy"):
        return
    with archive.open(entry) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
        except (ValueError, SyntaxError, EOFError) as error:
            raise ValueError(f"{path}: entry {entry.filename} is no array ({error})") from error
        count = 1
        for length in shape:
            count *= length
        if count * dtype.itemsize > entry.file_size - stream.tell():
            raise ValueError(f"{path}: entry {entry.filename} of {entry.file_size:,} bytes cannot hold {list(shape)} of {dtype}")


def _read_scene(path: Path) -> Cloud:
    """A scene folder of .npy files, in the conventions of `structures/scene.py`."""
    from pointcept3m.structures.scene import Scene

    points = Scene(path).points(("coord", "color", "normal"))
    color = points.get("color")
    return Cloud(
        str(path), "scene folder", points["coord"], None if color is None else color.astype(np.uint8), points.get("normal"),
        up=(np.array([0.0, 0.0, 1.0]), "scene folders have z up"), unit=(1.0, "scene folders are in metres"),
    )  # fmt: skip


def _read_rgbd(path: Path, options: Mapping[str, Any]) -> Cloud:
    """Posed RGB-D frames, fused into one cloud."""
    from pointcept3m.datasets.fusion import DepthFrame, FusionSettings, choose_up, fuse_frames
    from pointcept3m.datasets.readers.rgbd import open_rgbd
    from pointcept3m.utils.logger import Progress

    options = dict(options)
    settings = FusionSettings(**{key: options.pop(key) for key in ("voxel", "max_depth") if options.get(key) is not None})
    up_axis = options.pop("up_axis", None) or "auto"
    folder = open_rgbd(path, **{key: value for key, value in options.items() if value is not None and key not in ("voxel", "max_depth")})

    def frames() -> Any:
        for frame in folder.frames:
            color, depth = folder.read(frame)
            yield DepthFrame(color, depth, folder.color_intrinsic, folder.depth_intrinsic, frame.pose)

    with Progress(len(folder.frames), "fusing frames") as progress:
        cloud = fuse_frames(frames(), settings, lambda done: progress.update())
    notes = [f"{folder.kind} folder, {len(folder.frames)} frames fused at {settings.voxel:g} m, {folder.units_per_metre:g} depth units a metre (--depth-units)"]
    if folder.dropped:
        notes.append(f"left out {len(folder.dropped)} frames with a bad pose: {', '.join(folder.dropped)}")
    up = choose_up(folder, cloud, up_axis)
    return Cloud(str(path), "RGB-D folder", cloud.coord, cloud.color, cloud.normal, up=up, unit=(1.0, "depth is in metres"), notes=notes)


def _as_file(cloud: Cloud, kind: str) -> Cloud:
    cloud.kind = kind
    return cloud


TABLES: dict[str, Callable[[Path, str], Cloud]] = {".npy": _read_npy, **dict.fromkeys((".xyz", ".txt", ".csv", ".asc", ".pts"), _read_text)}
READERS: dict[str, Callable[..., Cloud]] = {
    ".ply": _read_ply,
    ".pcd": _read_pcd,
    ".las": _read_las,
    ".laz": _read_las,
    ".npz": _read_npz,
    **TABLES,
}
