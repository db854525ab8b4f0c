"""PLY files: vertices with their properties, and triangles. The only file that imports plyfile.

The header is checked against the size of the file before anything is allocated, and all numbers are read and written
as whole arrays.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_MAX_HEADER = 1 << 16
_SIZES = {
    "char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2,
    "int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8,
}  # fmt: skip


@dataclass
class Ply:
    """The contents of a PLY file: vertex properties by name, each [N], faces int64 [F, 3] (F may be 0), and the numbers
    that faces have besides their corners, each [F]."""

    path: Path
    vertex: dict[str, np.ndarray]
    faces: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    face: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def coord(self) -> np.ndarray:
        """Positions, float32 [N, 3]. Raises KeyError where x, y or z is missing."""
        return self.columns("x", "y", "z").astype(np.float32)

    @property
    def color(self) -> np.ndarray:
        """Colours, uint8 [N, 3] RGB. Raises KeyError where they are missing, ValueError where they are not 0..255 integers."""
        color = self.columns("red", "green", "blue")
        if color.dtype != np.uint8:
            raise ValueError(f"{self.path}: wanted red, green, blue of type uchar, got {color.dtype}")
        return color

    @property
    def normal(self) -> np.ndarray:
        """Normals, float32 [N, 3]. Raises KeyError where nx, ny or nz is missing."""
        return self.columns("nx", "ny", "nz").astype(np.float32)

    def columns(self, *names: str) -> np.ndarray:
        """Vertex properties side by side, [N, len(names)]. Raises KeyError that lists what the file has."""
        missing = [name for name in names if name not in self.vertex]
        if missing:
            raise KeyError(f"{self.path}: has no vertex property {', '.join(missing)}; it has {', '.join(self.vertex)}")
        return np.stack([self.vertex[name] for name in names], axis=1)


def read_ply(path: str | Path) -> Ply:
    """Reads vertices and faces of a PLY file, ascii or binary; polygons of more than three corners become fans.

    Raises: FileNotFoundError; ValueError where it is no PLY file, is cut short, has no vertices or faces that name
    vertices which do not exist.
    """
    import plyfile

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such PLY file")
    header = _check_header(path)
    face_list = next((name for name in ("vertex_indices", "vertex_index") if name in header.get("face", ())), None)
    try:
        known = {"face": {face_list: 3}} if face_list else {}
        try:
            data = plyfile.PlyData.read(str(path), mmap="c", known_list_len=known)
        except plyfile.PlyElementParseError:
            data = plyfile.PlyData.read(str(path))  # perhaps not all faces are triangles: the slow way, or the true error
    except (plyfile.PlyParseError, ValueError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as PLY: {error}") from error
    vertices = data["vertex"].data
    vertex = {name: np.array(vertices[name]) for name in vertices.dtype.names if vertices[name].dtype != object}
    faces, face = np.zeros((0, 3), np.int64), {}
    if face_list and data["face"].count:
        polygons = data["face"].data
        faces, turns = _triangles(polygons[face_list])
        scalars = [name for name in polygons.dtype.names if name != face_list and polygons.dtype[name].kind in "iuf"]
        face = {name: np.array(polygons[name]) if turns is None else np.repeat(polygons[name], turns) for name in scalars
                if polygons[name].ndim == 1}  # fmt: skip
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError(f"{path}: faces name vertices {faces.min()} to {faces.max()}, the file has {len(vertices)}")
    return Ply(path, vertex, faces, face)


def needs_double(coord: np.ndarray) -> bool:
    """Whether float32 would lose of `coord` [N, 3]: doubles beyond 4 km, where it is off by a quarter of a millimetre."""
    return coord.dtype != np.float32 and bool(np.abs(coord[np.isfinite(coord)]).max(initial=0) > 4096)


def write_ply(path: str | Path, coord: np.ndarray, color: np.ndarray | None = None, normal: np.ndarray | None = None,
              faces: np.ndarray | None = None, double: bool = False, **properties: np.ndarray) -> None:  # fmt: skip
    """Writes a binary PLY file.

    Args:
        coord: [N, 3], written as float. color: uint8 [N, 3]. normal: [N, 3]. faces: [F, 3] integers.
        double: coord is written as double; float is off by 3 cm at the 500 km of georeferenced scans.
        properties: further vertex properties [N] by name; 64-bit integers become int, for PLY has none.

    Raises: ValueError where a length or shape does not fit, or an integer does not fit 32 bits.
    """
    coord = np.asarray(coord, np.float64 if double else np.float32)
    if coord.ndim != 2 or coord.shape[1] != 3:
        raise ValueError(f"coord: wanted shape [N, 3], got {list(coord.shape)}")
    columns = dict(zip("xyz", coord.T, strict=True))
    for names, values, kind in ((("nx", "ny", "nz"), normal, np.float32), (("red", "green", "blue"), color, np.uint8)):
        if values is not None:
            values = np.asarray(values)
            if values.shape != coord.shape:
                raise ValueError(f"{names}: wanted shape {list(coord.shape)} as coord, got {list(values.shape)}")
            columns.update(zip(names, values.astype(kind).T, strict=True))
    for name, values in properties.items():
        values = np.asarray(values)
        if values.shape != coord.shape[:1]:
            raise ValueError(f"{name}: wanted {len(coord)} values, got shape {list(values.shape)}")
        columns[name] = _within_32_bits(name, values)
    vertices = np.empty(len(coord), [(name, values.dtype.newbyteorder("<")) for name, values in columns.items()])
    for name, values in columns.items():
        vertices[name] = values
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(coord)}"]
    header += [f"property {_ply_type(name, values.dtype)} {name}" for name, values in columns.items()]
    body = [vertices]
    if faces is not None:
        # plyfile writes lists face by face; triangles all have the same length, so one array holds them
        triangles = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", (3,))])
        triangles["count"], triangles["corners"] = 3, faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        body.append(triangles)
    with open(path, "wb") as file:
        file.write(("\n".join([*header, "end_header"]) + "\n").encode("ascii"))
        for array in body:
            file.write(array.tobytes())


def _ply_type(name: str, dtype: np.dtype) -> str:
    kind = f"{dtype.kind}{dtype.itemsize}"
    types = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float", "f8": "double"}
    if kind not in types:
        raise ValueError(f"{name}: PLY has no type for {dtype}; it has {', '.join(types.values())}")
    return types[kind]


def _within_32_bits(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        if len(values) and (values.min() < -(2**31) or values.max() >= 2**31):
            raise ValueError(f"{name}: PLY has no 64-bit integers and the values {values.min()} to {values.max()} do not fit 32 bits")
        return values.astype(np.int32)
    return values.astype(np.uint8) if values.dtype == bool else values


def _check_header(path: Path) -> dict[str, list[str]]:
    """Property names by element, once the header is found sound and the counts fit the file's size."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_MAX_HEADER)
    if head[:3] != b"ply":
        raise ValueError(f"{path}: is no PLY file: it starts with {head[:8]!r}")
    end = head.find(b"end_header")
    if end < 0:
        raise ValueError(f"{path}: its PLY header does not end within {_MAX_HEADER} bytes")
    counts: dict[str, int] = {}
    widths: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    element, binary = "", False
    for line in head[:end].decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            binary = len(words) > 1 and words[1].startswith("binary")
        elif words[:1] == ["element"] and len(words) == 3 and words[2].isdigit():
            element = words[1]
            counts[element], widths[element], names[element] = int(words[2]), 0, []
        elif words[:1] == ["property"] and element and len(words) >= 3:
            names[element].append(words[-1])
            # a list takes at least its own count; a number in text at least two characters
            widths[element] += _SIZES.get(words[2] if words[1] == "list" else words[1], 1) if binary else 2
    needed = sum(counts[name] * max(1, widths[name]) for name in counts)
    # The last number of a text file may lack its line end.
    if needed > size - end + (0 if binary else 2):
        raise ValueError(f"{path}: cut short: {counts} need at least {needed} bytes, {size - end} follow the header")
    if not counts.get("vertex"):
        raise ValueError(f"{path}: has no vertices; its elements are {counts}")
    return names


def _triangles(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(int64 [F, 3], how many triangles each polygon became) of an array [F, 3] (then None), or of one of lists: fans."""
    if polygons.dtype != object:
        return np.array(polygons, dtype=np.int64), None
    fans = [np.stack([np.full(len(p) - 2, p[0]), p[1:-1], p[2:]], axis=1) for p in polygons if len(p) >= 3]
    turns = np.array([max(0, len(p) - 2) for p in polygons])
    return (np.concatenate(fans).astype(np.int64) if fans else np.zeros((0, 3), np.int64)), turns
