"""LAS and LAZ files. The only file that imports laspy, an optional package: pip install "pointcept3m[io]"."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import near_files

CHUNK = 1_000_000  # points decoded at a time


def import_laspy() -> Any:
    """The module laspy. Raises ImportError with the command that installs it."""
    try:
        import laspy
    except ImportError as error:
        raise ImportError('LAS and LAZ files need laspy: pip install "laspy[lazrs]" (or "pointcept3m[io]")') from error
    return laspy


def read_las(path: str | Path) -> tuple[NDArray[np.float64], NDArray[np.uint16] | None]:
    """(coord [N, 3] float64 in the file's unit, color [N, 3] uint16 as stored, or None where there is none or all is 0).

    Raises: ImportError without laspy; FileNotFoundError; ValueError where the file is damaged, cut short or empty.
    """
    laspy = import_laspy()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such LAS file; {near_files(path)}")
    try:
        with laspy.open(path) as file:
            return _read(path, file)
    except (laspy.LaspyException, ValueError, OSError, EOFError, RuntimeError, OverflowError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: cannot be read as LAS: {error}") from error


def _read(path: Path, file: Any) -> tuple[NDArray[np.float64], NDArray[np.uint16] | None]:
    header = file.header
    count, size = header.point_count, path.stat().st_size
    # a compressed point takes less than its plain size, but hardly below a hundredth of it
    least = header.point_format.size * count // (200 if header.are_points_compressed else 1)
    if least > size - header.offset_to_point_data:
        raise ValueError(f"{path}: cut short: {count} points need at least {least} bytes, {size - header.offset_to_point_data} follow the header")
    if not count:
        raise ValueError(f"{path}: has no points")
    colored = {"red", "green", "blue"} <= set(header.point_format.dimension_names)
    coord = np.empty((count, 3), np.float64)
    color = np.empty((count, 3), np.uint16) if colored else None
    done = 0
    for points in file.chunk_iterator(CHUNK):
        rows = slice(done, done + len(points))
        for axis, name in enumerate("xyz"):
            coord[rows, axis] = points[name]
        if color is not None:
            for channel, name in enumerate(("red", "green", "blue")):
                color[rows, channel] = points[name]
        done += len(points)
    if done != count:
        raise ValueError(f"{path}: cut short: its header promises {count} points, {done} are there")
    return coord, color if color is not None and color.any() else None


def write_las(path: str | Path, coord: NDArray, color: NDArray[np.uint8], **extra: NDArray) -> None:
    """Writes points of format 7 (RGB) with the further dimensions `extra` [N], as LAS 1.4; a name in .laz compresses.

    Coordinates are kept to a 2^31st of the cloud's extent or 0.1 mm, the larger.

    Raises: ImportError without laspy.
    """
    laspy = import_laspy()
    header = laspy.LasHeader(point_format=7, version="1.4")
    finite = coord[np.isfinite(coord).all(axis=1)]
    low, high = (finite.min(axis=0), finite.max(axis=0)) if len(finite) else (np.zeros(3), np.zeros(3))
    header.offsets = np.floor(low)
    header.scales = np.maximum((high - header.offsets) / 2**31 * 1.01, 1e-4)
    header.add_extra_dims([laspy.ExtraBytesParams(name=name, type=values.dtype) for name, values in extra.items()])
    las = laspy.LasData(header)
    # LAS has no place for a coordinate that is no number: such points stand at the lower corner
    las.x, las.y, las.z = np.where(np.isfinite(coord).all(axis=1, keepdims=True), coord, low).T
    las.red, las.green, las.blue = (color.astype(np.uint16) * 257).T
    for name, values in extra.items():
        las[name] = values
    las.write(str(path))
