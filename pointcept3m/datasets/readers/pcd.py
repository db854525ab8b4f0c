"""PCD files of the Point Cloud Library, version 0.7 and before: ascii, binary and binary_compressed.

The header is checked against the size of the file before anything is allocated.
Source: the format's description, https://pointclouds.org/documentation/tutorials/pcd_file_format.html
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import near_files

_MAX_HEADER = 1 << 16
_TYPES = {
    ("F", 4): "<f4", ("F", 8): "<f8", ("I", 1): "<i1", ("I", 2): "<i2", ("I", 4): "<i4", ("I", 8): "<i8",
    ("U", 1): "<u1", ("U", 2): "<u2", ("U", 4): "<u4", ("U", 8): "<u8",
}  # fmt: skip
_KEYS = ("VERSION", "FIELDS", "COLUMNS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")


def read_pcd(path: str | Path) -> dict[str, NDArray]:
    """The fields of a PCD file by name, each [N]; a packed `rgb` or `rgba` becomes `red`, `green`, `blue` (uint8).

    Of a field with a COUNT above 1 (a descriptor) nothing is returned; "_" is padding.
    Raises: FileNotFoundError; ValueError naming the file where it is no PCD file, is damaged or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such PCD file; {near_files(path)}")
    with open(path, "rb") as file:
        header, start = _read_header(path, file.read(_MAX_HEADER))
        names, types, counts, num_points = _layout(path, header)
        file.seek(start)
        kind = header["DATA"][0].lower()
        left = path.stat().st_size - start
        widths = [np.dtype(t).itemsize * c for t, c in zip(types, counts, strict=True)]
        if kind == "ascii":
            # one character a number and one between, the last line end may be missing
            _check_size(path, num_points, 2 * sum(counts) * num_points - 1, left)
            columns = _read_ascii(path, file.read(), types, counts, num_points)
        elif kind == "binary":
            _check_size(path, num_points, sum(widths) * num_points, left)
            columns = _split_rows(file.read(sum(widths) * num_points), names, types, counts, num_points)
        elif kind == "binary_compressed":
            columns = _read_compressed(path, file.read(), widths, types, counts, num_points)
        else:
            raise ValueError(f"{path}: DATA must be ascii, binary or binary_compressed, got {kind!r}")
    fields = {n: c for n, c, count in zip(names, columns, counts, strict=True) if n != "_" and count == 1}
    return _unpack_color(fields)


def _read_header(path: Path, head: bytes) -> tuple[dict[str, list[str]], int]:
    """(words by key, where the data begin)."""
    header: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in header:
        end = head.find(b"\n", position)
        if end < 0:
            raise ValueError(f"{path}: is no PCD file, or its header does not end: no DATA line within {_MAX_HEADER} bytes")
        words = head[position:end].decode("ascii", "replace").split()
        position = end + 1
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in _KEYS:
            raise ValueError(f"{path}: is no PCD file: its header has {words[0][:20]!r}; wanted one of {', '.join(_KEYS)}")
        header["FIELDS" if words[0] == "COLUMNS" else words[0]] = words[1:]
    return header, position


def _layout(path: Path, header: dict[str, list[str]]) -> tuple[list[str], list[str], list[int], int]:
    """(names, numpy types, counts, number of points)."""
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "WIDTH", "DATA") if not header.get(key)]
    if missing:
        raise ValueError(f"{path}: its PCD header lacks {', '.join(missing)}")
    names = header["FIELDS"]
    try:
        sizes = [int(word) for word in header["SIZE"]]
        counts = [int(word) for word in header.get("COUNT", ["1"] * len(names))]
        width, height = int(header["WIDTH"][0]), int(header.get("HEIGHT", ["1"])[0])
        num_points = int(header["POINTS"][0]) if header.get("POINTS") else width * height
    except ValueError as error:
        raise ValueError(f"{path}: its PCD header has a number that is none ({error})") from error
    if not len(names) == len(sizes) == len(header["TYPE"]) == len(counts):
        raise ValueError(f"{path}: FIELDS, SIZE, TYPE and COUNT differ in length")
    if num_points != width * height:
        raise ValueError(f"{path}: POINTS {num_points} is not WIDTH x HEIGHT, {width} x {height}")
    if num_points < 1 or min(counts) < 1:
        raise ValueError(f"{path}: has {num_points} points and counts {counts}; wanted at least 1 of each")
    types = []
    for name, kind, size in zip(names, header["TYPE"], sizes, strict=True):
        if (kind, size) not in _TYPES:
            raise ValueError(f"{path}: field {name!r} is of type {kind} and size {size}, which PCD does not know")
        types.append(_TYPES[kind, size])
    return names, types, counts, num_points


def _check_size(path: Path, num_points: int, needed: int, left: int) -> None:
    if needed > left:
        raise ValueError(f"{path}: cut short: {num_points} points need at least {needed} bytes, {left} follow the header")


def _read_ascii(path: Path, data: bytes, types: list[str], counts: list[int], num_points: int) -> list[NDArray]:
    words = data.split()
    width = sum(counts)
    if len(words) != width * num_points:
        raise ValueError(f"{path}: wanted {num_points} rows of {width} numbers, got {len(words)} numbers")
    columns, at = [], 0
    for kind, count in zip(types, counts, strict=True):
        texts = words[at::width]
        at += count
        try:
            # packed colours are written as the bits of a float ("4.2e6") or as an integer
            columns.append(np.array(texts, dtype=np.float64 if kind[1] == "f" else np.int64).astype(kind))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: holds something that is no number ({error})") from error
    return columns


def _split_rows(data: bytes, names: list[str], types: list[str], counts: list[int], num_points: int) -> list[NDArray]:
    """Columns of rows of fields; a field of several numbers gives its first, which the caller leaves out."""
    layout = np.dtype([(f"f{i}", kind, (count,)) for i, (kind, count) in enumerate(zip(types, counts, strict=True))])
    rows = np.frombuffer(data, layout, count=num_points)
    return [np.array(rows[f"f{i}"][:, 0]) for i in range(len(names))]


def _read_compressed(path: Path, data: bytes, widths: list[int], types: list[str], counts: list[int], num_points: int) -> list[NDArray]:
    """Two sizes, then one LZF block that holds the fields one after the other."""
    if len(data) < 8:
        raise ValueError(f"{path}: cut short: no sizes before the compressed data")
    compressed, plain = (int(n) for n in np.frombuffer(data, "<u4", count=2))
    if plain != sum(widths) * num_points:
        raise ValueError(f"{path}: {num_points} points take {sum(widths) * num_points} bytes, the compressed data claim {plain}")
    if compressed > len(data) - 8:
        raise ValueError(f"{path}: cut short: {compressed} compressed bytes wanted, {len(data) - 8} there")
    try:
        block = decompress_lzf(memoryview(data)[8 : 8 + compressed], plain)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    columns, at = [], 0
    for kind, count, width in zip(types, counts, widths, strict=True):
        columns.append(np.frombuffer(block, kind, count=num_points * count, offset=at)[::count].copy())
        at += width * num_points
    return columns


def decompress_lzf(data: bytes | memoryview, size: int) -> bytearray:
    """The `size` bytes that LZF-compressed `data` stand for.

    A control byte below 32 announces that many literal bytes and one more; else its upper 3 bits and maybe a further
    byte give a length, its lower 5 and the next byte how far back to copy from.

    Raises: ValueError where the data are cut short, point before their beginning, or give another size.
    Source: LibLZF by Marc Lehmann, which PCL compresses with.
    """
    out = bytearray()
    position, end = 0, len(data)
    try:
        while position < end:
            control = data[position]
            position += 1
            if control < 32:
                out += data[position : position + control + 1]
                position += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += data[position]
                position += 1
            start = len(out) - ((control & 31) << 8) - data[position] - 1
            position += 1
            length += 2
            if start < 0:
                raise ValueError("a reference points before the first byte")
            if start + length <= len(out):
                out += out[start : start + length]
            else:  # the copy runs into what it writes: a repeated pattern
                pattern = out[start:]
                out += (pattern * (length // len(pattern) + 1))[:length]
            if len(out) > size:
                break
    except IndexError:
        raise ValueError("the compressed data end within a reference") from None
    if len(out) != size or position > end:
        raise ValueError(f"the compressed data give {len(out)} bytes where {size} were promised")
    return out


def _unpack_color(fields: dict[str, NDArray]) -> dict[str, NDArray]:
    """`rgb` or `rgba` of four bytes, 0x00RRGGBB as an integer or as a float's bits, becomes three fields."""
    for name in ("rgb", "rgba"):
        packed = fields.get(name)
        if packed is not None and packed.dtype.itemsize == 4:
            bits = fields.pop(name).view("<u4")
            fields.update(red=(bits >> 16).astype(np.uint8), green=(bits >> 8).astype(np.uint8), blue=bits.astype(np.uint8))
            break
    return fields
