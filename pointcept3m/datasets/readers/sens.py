"""ScanNet's `.sens` recordings, version 4: posed colour and depth frames in one file, read frame by frame.

Layout, little-endian: u32 version · u64 length and bytes of the sensor's name · four 4x4 f32 matrices (colour intrinsic,
colour extrinsic, depth intrinsic, depth extrinsic) · i32 colour and i32 depth compression · u32 colour width, height,
depth width, height · f32 depth shift (depth units a metre) · u64 number of frames · then for each frame a 4x4 f32 pose
camera->world, u64 colour and depth timestamps, u64 colour and depth sizes in bytes, the colour bytes, the depth bytes.
What may follow (IMU data) is not read. The format is that of github.com/ScanNet/ScanNet, SensReader.

Every length is checked against the bytes that are left before anything is allocated.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from pointcept3m.structures.scene import check_pose

VERSION = 4
COLOR_COMPRESSION = {0: "raw", 1: "png", 2: "jpeg"}
DEPTH_COMPRESSION = {0: "raw_ushort", 1: "zlib_ushort"}  # 2 is occi_ushort, which needs a closed library
_FRAME = struct.Struct("<16f4Q")
_MAX_NAME = 4096
_MAX_SIDE = 1 << 14


class SensReader:
    """An open `.sens` file. Use as a context manager, or call `close`.

    path · sensor_name · intrinsic_color, extrinsic_color, intrinsic_depth, extrinsic_depth: float64 [4, 4]
    · color_size, depth_size: (H, W) · depth_shift: depth units a metre · len(reader): number of frames.

    Opening walks over all frame headers, so a file that is cut short is refused at once.

    Raises: FileNotFoundError, or ValueError naming the file, the frame, what was wanted and what came.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such .sens file")
        self._file: BinaryIO = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._read_header()
            self._index = self._scan_frames()
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return self.num_frames

    def __enter__(self) -> "SensReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def pose(self, index: int) -> np.ndarray:
        """Pose camera->world of a frame, float64 [4, 4]. ScanNet marks lost tracking by -inf; see `pose_is_valid`."""
        start, _, _ = self._index[self._check_index(index)]
        self._file.seek(start)
        return np.frombuffer(self._take(64, f"the pose of frame {index}"), "<f4").reshape(4, 4).astype(np.float64)

    def pose_is_valid(self, index: int) -> bool:
        """Whether a frame's pose is a finite rigid motion, by the measure of `check_pose`."""
        try:
            check_pose(self.pose(index), f"{self.path}: frame {index}")
        except ValueError:
            return False
        return True

    def color_bytes(self, index: int) -> bytes:
        """The compressed colour picture of a frame as it is in the file."""
        start, color_size, _ = self._index[self._check_index(index)]
        self._file.seek(start + _FRAME.size)
        return self._take(color_size, f"the colour of frame {index}")

    def color(self, index: int) -> np.ndarray:
        """Colour of a frame, uint8 [H, W, 3] RGB. Raises: ValueError where the picture is damaged or of another size."""
        data = self.color_bytes(index)
        h, w = self.color_size
        if self.color_compression == "raw":
            if len(data) != h * w * 3:
                raise ValueError(f"{self.path}: frame {index}: wanted {h * w * 3} bytes of raw colour, got {len(data)}")
            return np.frombuffer(data, np.uint8).reshape(h, w, 3)
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data), formats=[self.color_compression.upper()]) as image:
                if image.size != (w, h):
                    raise ValueError(f"{self.path}: frame {index}: wanted colour of {w}x{h}, got {image.size[0]}x{image.size[1]}")
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{self.path}: frame {index}: its {self.color_compression} colour cannot be decoded ({error})") from error

    def depth(self, index: int) -> np.ndarray:
        """Depth of a frame in the file's own units, uint16 [H, W]; divide by `depth_shift` for metres; 0 is invalid.

        Raises: ValueError where the data are damaged or of another size.
        """
        start, color_size, depth_size = self._index[self._check_index(index)]
        self._file.seek(start + _FRAME.size + color_size)
        data = self._take(depth_size, f"the depth of frame {index}")
        h, w = self.depth_size
        wanted = h * w * 2
        if self.depth_compression == "zlib_ushort":
            try:
                data = zlib.decompressobj().decompress(data, wanted + 1)  # never more than the picture holds
            except zlib.error as error:
                raise ValueError(f"{self.path}: frame {index}: its depth cannot be unpacked ({error})") from error
        if len(data) != wanted:
            more = "more" if len(data) > wanted else str(len(data))
            raise ValueError(f"{self.path}: frame {index}: wanted {wanted} bytes of depth ({w}x{h}), got {more}")
        return np.frombuffer(data, "<u2").reshape(h, w)

    # the file

    def _take(self, count: int, what: str) -> bytes:
        at = self._file.tell()
        if count > self._size - at:
            raise ValueError(f"{self.path}: cut short: {what} needs {count} bytes at byte {at}, the file has {self._size} bytes")
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError(f"{self.path}: {what}: wanted {count} bytes at byte {at}, could read {len(data)}")
        return data

    def _unpack(self, code: str, what: str) -> tuple:
        layout = struct.Struct("<" + code)
        return layout.unpack(self._take(layout.size, what))

    def _read_header(self) -> None:
        (version,) = self._unpack("I", "the version")
        if version != VERSION:
            raise ValueError(f"{self.path}: wanted .sens version {VERSION}, got {version}; is this a .sens file?")
        (length,) = self._unpack("Q", "the length of the sensor's name")
        if length > _MAX_NAME:
            raise ValueError(f"{self.path}: wanted a sensor name of at most {_MAX_NAME} bytes, got {length}")
        self.sensor_name = self._take(length, "the sensor's name").decode("utf-8", "replace")
        names = ("intrinsic_color", "extrinsic_color", "intrinsic_depth", "extrinsic_depth")
        matrices = np.frombuffer(self._take(256, "the calibration"), "<f4").reshape(4, 4, 4).astype(np.float64)
        for name, matrix in zip(names, matrices, strict=True):
            if not np.isfinite(matrix).all():
                raise ValueError(f"{self.path}: {name} is not finite: {matrix.tolist()}")
        self.intrinsic_color, self.extrinsic_color, self.intrinsic_depth, self.extrinsic_depth = matrices
        color, depth = self._unpack("2i", "the compression")
        if color not in COLOR_COMPRESSION:
            raise ValueError(f"{self.path}: colour compression {color} is unknown; known: {COLOR_COMPRESSION}")
        if depth not in DEPTH_COMPRESSION:
            raise ValueError(f"{self.path}: depth compression {depth} cannot be read; known: {DEPTH_COMPRESSION}")
        self.color_compression, self.depth_compression = COLOR_COMPRESSION[color], DEPTH_COMPRESSION[depth]
        sides = self._unpack("4I", "the sizes of the pictures")
        if not all(1 <= side <= _MAX_SIDE for side in sides):
            raise ValueError(f"{self.path}: wanted sides of pictures from 1 to {_MAX_SIDE} pixels, got colour {sides[:2]}, depth {sides[2:]}")
        self.color_size, self.depth_size = (sides[1], sides[0]), (sides[3], sides[2])
        (self.depth_shift,) = self._unpack("f", "the depth shift")
        if not (np.isfinite(self.depth_shift) and self.depth_shift > 0):
            raise ValueError(f"{self.path}: wanted a positive depth shift, got {self.depth_shift}")
        (self.num_frames,) = self._unpack("Q", "the number of frames")
        left = self._size - self._file.tell()
        if self.num_frames > left // _FRAME.size:
            raise ValueError(f"{self.path}: cut short: {self.num_frames} frames need more than the {left} bytes that follow the header")

    def _scan_frames(self) -> list[tuple[int, int, int]]:
        """(start, bytes of colour, bytes of depth) of each frame."""
        index = []
        start = self._file.tell()
        for k in range(self.num_frames):
            self._file.seek(start)
            *_, color_size, depth_size = _FRAME.unpack(self._take(_FRAME.size, f"the header of frame {k} of {self.num_frames}"))
            end = start + _FRAME.size + color_size + depth_size
            if end > self._size:
                raise ValueError(
                    f"{self.path}: cut short: frame {k} of {self.num_frames} has {color_size} bytes of colour and {depth_size} of depth "
                    f"and would end at byte {end}, the file has {self._size} bytes"
                )
            index.append((start, color_size, depth_size))
            start = end
        return index

    def _check_index(self, index: int) -> int:
        if not 0 <= index < self.num_frames:
            raise IndexError(f"{self.path}: frame {index} is not among its {self.num_frames} frames")
        return index


def write_sens(path: str | Path, pose: np.ndarray, color: Iterable[np.ndarray], depth: Iterable[np.ndarray],
               intrinsic_color: np.ndarray, intrinsic_depth: np.ndarray, depth_shift: float = 1000.0,
               sensor_name: str = "StructureSensor", jpeg_quality: int = 92) -> None:  # fmt: skip
    """Writes a version 4 `.sens` file with jpeg colour and zlib depth.

    Args:
        pose: camera->world [M, 4, 4]. color: M pictures uint8 [H, W, 3]. depth: M pictures uint16 [H, W].
        intrinsic_color, intrinsic_depth: [3, 3] or [4, 4], each for its own size.

    Raises: ValueError where the numbers of poses and pictures differ, or the sizes within one kind.
    """
    pose = np.asarray(pose, np.float64)
    color, depth = list(color), list(depth)
    if not len(pose) == len(color) == len(depth) or not len(pose):
        raise ValueError(f"wanted as many poses as pictures, at least one, got {len(pose)} poses, {len(color)} colour, {len(depth)} depth")
    sizes = [{np.asarray(image).shape[:2] for image in images} for images in (color, depth)]
    if any(len(size) != 1 for size in sizes):
        raise ValueError(f"wanted one size for all colour and one for all depth pictures, got {sizes}")
    (color_h, color_w), (depth_h, depth_w) = (next(iter(size)) for size in sizes)
    name = sensor_name.encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<IQ", VERSION, len(name)) + name)
        for matrix in (intrinsic_color, np.eye(4), intrinsic_depth, np.eye(4)):
            full = np.eye(4)
            full[: len(matrix), : len(matrix)] = matrix
            file.write(full.astype("<f4").tobytes())
        file.write(struct.pack("<2i4IfQ", 2, 1, color_w, color_h, depth_w, depth_h, depth_shift, len(pose)))
        for k in range(len(pose)):
            picture = _jpeg(color[k], jpeg_quality)
            packed = zlib.compress(np.ascontiguousarray(depth[k], "<u2").tobytes(), 6)
            stamp = k * 33_333
            file.write(_FRAME.pack(*pose[k].reshape(16), stamp, stamp, len(picture), len(packed)) + picture + packed)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
