"""One scene on disk. This file alone knows the layout; it checks what it reads and says what is wrong by name.

    <root>/  coord.npy color.npy normal.npy segment20.npy segment200.npy segment.npy instance.npy
             color/<frame>.jpg  depth/<frame>.png  pose/<frame>.txt  label/<frame>.png (written for others, not read)
             intrinsic/intrinsic_color.txt  intrinsic/intrinsic_depth.txt

The frames may lie apart, as GaussianCross keeps them: <frames_root>/<scene>/{color,depth,pose,intrinsic}. Where cameras
differ, intrinsic/<frame>.txt holds for that frame, whose colour and depth then have one size. A scene without a folder
depth/ has frames of colour alone (nuScenes).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.camera import SizeHW, invert_pose, register_color, resize_nearest, scale_intrinsic
from pointcept3m.structures.images import image_size, read_color, read_depth
from pointcept3m.utils.arrays import bounds
from pointcept3m.utils.registry import near_names

MAX_COORD = 1e4  # metres; beyond it a float32 coordinate is off by a millimetre and grid cells overflow
COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")

# asset name -> (columns, or 0 for one value a point; kind of number)
ASSETS = {
    "coord": (3, "float"),
    "color": (3, "number"),
    "normal": (3, "float"),
    "strength": (1, "number"),
    "superpoint": (0, "integer"),
    "segment": (0, "integer"),
    "segment20": (0, "integer"),
    "segment21": (0, "integer"),
    "segment40": (0, "integer"),
    "segment80": (0, "integer"),
    "segment160": (0, "integer"),
    "segment200": (0, "integer"),
    "instance": (0, "integer"),
}


@dataclass(frozen=True)
class Frame:
    """One posed picture with colour and depth in the same camera.

    rgb [H, W, 3] float32 in 0..1 · depth [H, W] float32 metres, 0 invalid, or None in a scene without depth
    · intrinsic [3, 3] float32 pixels · extrinsic [4, 4] float64 world->camera · name "<scene>/<frame>".
    """

    rgb: NDArray[np.float32]
    depth: NDArray[np.float32] | None
    intrinsic: NDArray[np.float32]
    extrinsic: NDArray[np.float64]
    name: str


def natural_key(name: str) -> tuple:
    """A sorting key under which "9" comes before "10", and "frame-000009" before "frame-000010"."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def heldout(frame_names: Iterable[str], every: int = 8) -> list[str]:
    """The frames that are never trained on, nor fused into the cloud: every `every`-th of the sorted names.

    `every` 0 holds none out. The first is number every // 2, so that held-out views lie inside the path.
    """
    if every < 0 or every == 1:
        raise ValueError(f"holdout must be 0 (none) or at least 2 (every n-th frame), got {every}")
    names = sorted(frame_names, key=natural_key)
    return [n for i, n in enumerate(names) if every and i % every == every // 2]


class Scene:
    """A scene folder, opened without reading its contents.

    Args:
        root: the folder of `.npy` files (and frames, if `frames_root` is None).
        frames_root: the folder that holds one folder of frames for every scene, by the scene's name.

    Raises: FileNotFoundError where `root`, or the scene's folder below `frames_root`, does not exist.
    """

    def __init__(self, root: str | Path, frames_root: str | Path | None = None) -> None:
        self.root = Path(root)
        self.name = self.root.name
        self.split = self.root.parent.name
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such scene folder{_near_folder(self.root)}")
        self.frames_root = self.root if frames_root is None else Path(frames_root) / self.name
        if not self.frames_root.is_dir():
            raise FileNotFoundError(f"{self.frames_root}: no frames of scene {self.name!r} there")
        self._frame_names: tuple[str, ...] | None = None
        self._color_paths: dict[str, Path] = {}
        self._intrinsics: dict[str, NDArray[np.float64]] = {}

    def __repr__(self) -> str:
        return f"Scene({str(self.root)!r})"

    # points

    @property
    def assets(self) -> list[str]:
        """The names of the per-point files that this scene has."""
        return [name for name in ASSETS if (self.root / f"{name}.npy").is_file()]

    def load(self, asset: str, count: int | None = None) -> NDArray:
        """One per-point file: coord, color, normal as [N, 3] float32, labels as [N] int64.

        Args:
            count: the number of points that is expected (that of coord).

        Raises: FileNotFoundError, KeyError (no such asset known) or ValueError naming the file, what was wanted
            and what came: wrong type or shape, no point, not finite, coordinates beyond 10 km, colours beyond 0..255.
        """
        if asset not in ASSETS:
            raise KeyError(f"scene {self.name!r}: no asset is called {asset!r}; {near_names(asset, ASSETS)}")
        path = self.root / f"{asset}.npy"
        array = load_array(path)
        columns, number = ASSETS[asset]
        array = _check_shape(path, array, columns, number, count)
        if number == "integer":
            return array.astype(np.int64)
        array = array.astype(np.float32)
        _check_values(path, asset, array)
        return array

    def points(self, assets: Sequence[str] = ("coord", "color", "normal")) -> dict[str, NDArray]:
        """Those of `assets` that the scene has; `coord` always. Raises as `load` does."""
        result = {"coord": self.load("coord")}
        present = self.assets
        for asset in assets:
            if asset in present and asset != "coord":
                result[asset] = self.load(asset, count=len(result["coord"]))
        return result

    # frames

    @property
    def has_frames(self) -> bool:
        """Whether there is any folder of frames. Regions of Matterport3D in which no picture was taken have none."""
        return any((self.frames_root / kind).is_dir() for kind in ("color", "depth", "pose"))

    @property
    def has_depth(self) -> bool:
        """Whether frames have depth: whether there is a folder depth/."""
        return (self.frames_root / "depth").is_dir()

    @property
    def frame_names(self) -> tuple[str, ...]:
        """The frames that have colour, pose and (where the scene `has_depth`) depth, in the order of their numbers."""
        if self._frame_names is None:
            kinds = ("color", "depth", "pose") if self.has_depth else ("color", "pose")
            folders = {kind: self.frames_root / kind for kind in kinds}
            missing = [str(folder) for folder in folders.values() if not folder.is_dir()]
            if missing:
                raise FileNotFoundError(f"scene {self.name!r} has no frames: {', '.join(missing)} not found")
            self._color_paths = {p.stem: p for p in folders["color"].iterdir() if p.suffix in COLOR_SUFFIXES}
            found = {"color": set(self._color_paths)}
            for kind, suffix in (("depth", ".png"), ("pose", ".txt")):
                if kind in folders:
                    found[kind] = {p.stem for p in folders[kind].iterdir() if p.suffix == suffix}
            common = set.intersection(*found.values())
            if not common:
                counts = ", ".join(f"{len(found[kind])} {kind}" for kind in kinds)
                raise ValueError(
                    f"{self.frames_root}: no frame has {', '.join(kinds[:-1])} and pose under one name ({counts} files)"
                )
            self._frame_names = tuple(sorted(common, key=natural_key))
        return self._frame_names

    @property
    def incomplete_frames(self) -> tuple[str, ...]:
        """The frames that have colour, but no pose or (where the scene `has_depth`) no depth, in the order of their numbers."""
        whole = set(self.frame_names)
        return tuple(sorted((name for name in self._color_paths if name not in whole), key=natural_key))

    def intrinsic(self, kind: str = "depth", frame: str | None = None) -> NDArray[np.float64]:
        """The [3, 3] intrinsic of the "color" or "depth" images, at their own size on disk.

        With `frame`, that of its own file intrinsic/<frame>.txt where there is one.
        """
        path = self._intrinsic_path(kind, frame)
        if frame is not None and path.stem == frame:
            return read_intrinsic(path)
        if kind not in self._intrinsics:
            if frame is not None and not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, nor {frame}.txt beside it for that frame alone")
            self._intrinsics[kind] = read_intrinsic(path)
        return self._intrinsics[kind]

    def _intrinsic_path(self, kind: str, frame: str | None) -> Path:
        folder = self.frames_root / "intrinsic"
        own = None if frame is None else folder / f"{frame}.txt"
        return own if own is not None and own.is_file() else folder / f"intrinsic_{kind}.txt"

    def pose(self, frame: str) -> NDArray[np.float64]:
        """The [4, 4] camera->world matrix of `frame`. Raises ValueError where it is not finite or no pose."""
        return read_pose(self.frames_root / "pose" / f"{frame}.txt")

    def check_frames(self, names: Iterable[str]) -> None:
        """Looks over the RGB-D frames `names` without decoding a picture: intrinsics, poses, no picture empty.

        Raises: as `intrinsic`, `pose` and `frame` do, naming the file; FileNotFoundError where the scene has no depth.
        """
        self._require_depth()
        known = set(self.frame_names)
        for name in names:
            if name not in known:
                self._require(name)
            for kind in ("color", "depth"):
                self.intrinsic(kind, name)
            self.pose(name)
            for path in (self._color_paths[name], self.frames_root / "depth" / f"{name}.png"):
                if path.stat().st_size == 0:
                    raise ValueError(f"{path}: an empty file, wanted a picture")

    def frame_size(self, name: str) -> SizeHW:
        """(H, W) of the depth picture of a frame, of its colour where the scene has no depth; from the header alone."""
        self._require(name)
        return image_size(self.frames_root / "depth" / f"{name}.png" if self.has_depth else self._color_paths[name])

    def camera(self, name: str, size: SizeHW | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(intrinsic [3, 3] for `size`, extrinsic [4, 4]) of one frame, as `frame` has them; no picture is decoded.

        `size` (H, W) None: the frame's own, `frame_size`.
        """
        own = self.frame_size(name)
        intrinsic = self._fitting_intrinsic("depth" if self.has_depth else "color", name, own)
        return scale_intrinsic(intrinsic, own, own if size is None else size), invert_pose(self.pose(name))

    def depth(
        self, name: str, size: SizeHW | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """(depth [H, W] in metres, intrinsic [3, 3] for it, extrinsic [4, 4]) of one frame, as in `frame`; no colour is read.

        Raises: FileNotFoundError where the scene has no depth.
        """
        self._require(name)
        self._require_depth()
        extrinsic = invert_pose(self.pose(name))
        depth = read_depth(self.frames_root / "depth" / f"{name}.png")
        intrinsic = self._fitting_intrinsic("depth", name, depth.shape)
        size = depth.shape if size is None else (int(size[0]), int(size[1]))
        return resize_nearest(depth, size), scale_intrinsic(intrinsic, depth.shape, size), extrinsic

    def frame(self, name: str, size: SizeHW | None = None) -> Frame:
        """One frame, colour and depth both in the depth camera scaled to `size` (H, W); None keeps its own size.

        In a scene without depth it is the colour camera, and depth is None.
        """
        if self.has_depth:
            depth, intrinsic, extrinsic = self.depth(name, size)
            size = depth.shape
        else:
            depth, (intrinsic, extrinsic) = None, self.camera(name, size)
            size = self.frame_size(name) if size is None else (int(size[0]), int(size[1]))
        color = read_color(self._color_paths[name])
        own = self._intrinsic_path("color", name)
        if own.stem == name and color.shape[:2] != self.frame_size(name):
            (h, w), (depth_h, depth_w) = color.shape[:2], self.frame_size(name)
            raise ValueError(f"{own}: is for colour of {w} x {h} and depth of {depth_w} x {depth_h}; wanted one size where a frame has its own")
        color_intrinsic = self._fitting_intrinsic("color", name, color.shape[:2])
        return Frame(
            rgb=register_color(color, color_intrinsic, intrinsic, size),
            depth=depth,
            intrinsic=intrinsic.astype(np.float32),
            extrinsic=extrinsic,
            name=f"{self.name}/{name}",
        )

    def _fitting_intrinsic(self, kind: str, name: str, size: SizeHW) -> NDArray[np.float64]:
        """`intrinsic` of a frame whose picture of this kind has `size`, which the principal point must fit."""
        intrinsic = self.intrinsic(kind, name)
        _check_principal_point(self._intrinsic_path(kind, name), kind, intrinsic, size)
        return intrinsic

    def fusion_settings(self) -> dict[str, Any] | None:
        """How the cloud was fused from the frames (`fusion.json`: holdout, voxel, ...), or None if it was scanned."""
        path = self.root / "fusion.json"
        if not path.is_file():
            return None
        try:
            settings = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("holdout"), int):
            raise ValueError(f"{path}: wanted a JSON object with an integer 'holdout'")
        return settings

    def _require_depth(self) -> None:
        if not self.has_depth:
            raise FileNotFoundError(f"scene {self.name!r}: {self.frames_root / 'depth'} not found; its frames have no depth")

    def _require(self, name: str) -> None:
        if name not in self.frame_names:
            raise KeyError(f"scene {self.name!r} has no frame {name!r}; {near_names(name, self.frame_names)}")


def load_array(path: str | Path) -> NDArray:
    """A `.npy` file as a read-only memory map. Nothing is allocated on the word of its header; no pickle.

    Raises: FileNotFoundError, or ValueError where the file is cut short, pickled or no `.npy` at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as stream:
        head = stream.read(6)
    if head != b"\x93NUMPY":
        raise ValueError(f"{path}: not a readable .npy array: it begins with {head!r}, as no such file does")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, OverflowError) as error:
        raise ValueError(f"{path}: not a readable .npy array ({error})") from error


def read_matrix(path: str | Path) -> NDArray[np.float64]:
    """A text file of numbers as a 3x3 or 4x4 matrix. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > 10_000:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; wanted one 3x3 or 4x4 matrix")
    try:
        rows = [[float(word) for word in line.replace(",", " ").split()] for line in path.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f"{path}: not a matrix of numbers ({error})") from error
    rows = [row for row in rows if row]
    if [len(row) for row in rows] not in ([3] * 3, [4] * 4):
        raise ValueError(f"{path}: wanted a 3x3 or 4x4 matrix, got rows of {[len(row) for row in rows]} numbers")
    return np.array(rows)


def read_intrinsic(path: str | Path) -> NDArray[np.float64]:
    """A [3, 3] intrinsic. Raises ValueError where it is singular, not finite, or its focal lengths not positive."""
    return check_intrinsic(read_matrix(path)[:3, :3], str(path))


def check_intrinsic(matrix: NDArray, where: str) -> NDArray[np.float64]:
    """`matrix` itself if it is a [3, 3] pinhole intrinsic, else ValueError that begins with `where`."""
    good = np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0 and np.array_equal(matrix[2], (0, 0, 1))
    if not good:
        raise ValueError(
            f"{where}: wanted an intrinsic [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths, "
            f"got {matrix.tolist()}"
        )
    return matrix


def read_pose(path: str | Path) -> NDArray[np.float64]:
    """A [4, 4] camera->world matrix. Raises ValueError where it is not finite, too far off, or not a rigid motion."""
    return check_pose(read_matrix(path), str(path))


def check_pose(pose: NDArray, where: str) -> NDArray[np.float64]:
    """`pose` itself if it is a rigid 4x4 motion (rotation within 1 %), else ValueError that begins with `where`."""
    if pose.shape != (4, 4):
        raise ValueError(f"{where}: wanted a 4x4 pose, got {pose.shape[0]}x{pose.shape[1]}")
    if not np.isfinite(pose).all():
        raise ValueError(f"{where}: the pose is not finite (the tracker lost this frame): {pose.tolist()}")
    rotation = pose[:3, :3]
    rigid = np.abs(rotation @ rotation.T - np.eye(3)).max() < 0.01 and np.linalg.det(rotation) > 0
    if not rigid or not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6):
        raise ValueError(f"{where}: wanted a camera->world rotation and shift, got {pose.tolist()}")
    if np.abs(pose[:3, 3]).max() > MAX_COORD:
        raise ValueError(f"{where}: the camera stands at {pose[:3, 3].tolist()}, beyond {MAX_COORD:g} m")
    return pose


def _check_shape(path: Path, array: NDArray, columns: int, number: str, count: int | None) -> NDArray:
    """`array` as [N, columns] (or [N]) if its type and shape are right."""
    kinds = {"float": "f", "integer": "iu", "number": "fiu"}[number]
    if array.dtype.kind not in kinds:
        raise ValueError(f"{path}: wanted {number} values, got dtype {array.dtype}")
    if columns == 0 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if columns == 1 and array.ndim == 1:
        array = array[:, None]
    if (columns == 0 and array.ndim != 1) or (columns and (array.ndim != 2 or array.shape[1] != columns)):
        raise ValueError(f"{path}: wanted shape [N{f', {columns}' if columns else ''}], got {list(array.shape)}")
    if len(array) == 0:
        raise ValueError(f"{path}: the scene is empty (0 points)")
    if count is not None and len(array) != count:
        raise ValueError(f"{path}: {len(array)} rows where coord.npy has {count} points")
    return array


def _check_values(path: Path, asset: str, array: NDArray[np.float32]) -> None:
    """Finite, and within the range of the asset."""
    if not np.isfinite(array).all():
        finite = np.isfinite(array).all(axis=1)
        row = int(np.argmin(finite))
        bad = len(array) - int(finite.sum())
        raise ValueError(f"{path}: {bad} of {len(array)} rows are not finite, the first is row {row}: {array[row]}")
    low, high = (float(f(limits)) for f, limits in zip((np.min, np.max), bounds(array), strict=True))
    if asset == "coord" and max(-low, high) > MAX_COORD:
        row = int(np.argmax(np.abs(array).max(axis=1)))
        raise ValueError(f"{path}: row {row} is {array[row]}, beyond {MAX_COORD:g} m; wanted metres")
    if asset == "color":
        if low < 0 or high > 255:
            raise ValueError(f"{path}: colours run from {low:g} to {high:g}; wanted 0..255")
        if 0 < high <= 1 and np.any((array > 0) & (array < 1)):
            raise ValueError(f"{path}: colours run from {low:g} to {high:g}, so they seem to be 0..1; wanted 0..255")


def _check_principal_point(path: Path, kind: str, intrinsic: NDArray, size: SizeHW) -> None:
    """An intrinsic that was calibrated for another image size shows in its principal point."""
    center = np.array([intrinsic[0, 2] / size[1], intrinsic[1, 2] / size[0]])
    if np.abs(center - 0.5).max() > 0.25:
        raise ValueError(
            f"{path}: principal point ({intrinsic[0, 2]:g}, {intrinsic[1, 2]:g}) does not "
            f"fit the {kind} images of {size[1]} x {size[0]}; the matrix belongs to about "
            f"{round(2 * intrinsic[0, 2])} x {round(2 * intrinsic[1, 2])}: scale it to the images on disk"
        )


def _near_folder(path: Path) -> str:
    if not path.parent.is_dir():
        return f" ({path.parent} does not exist either)"
    folders = [p.name for p in path.parent.iterdir() if p.is_dir()]
    # a list of a thousand scenes helps nobody: only near names
    hint = near_names(path.name, folders) if folders else ""
    return f"; {hint}" if hint.startswith("did you mean") else ""
