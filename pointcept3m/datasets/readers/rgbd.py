"""Folders of posed RGB-D frames, of the kinds people have, behind one face.

    scannet    color/ depth/ pose/ intrinsic/{intrinsic_color,intrinsic_depth}.txt       (also this project's scenes)
    sens_info  color/ depth/ pose/ info/<scene>.txt, the header of a .sens file           (ViewAL's ScanNet sample)
    7scenes    frame-000000.{color,depth,pose}.* and camera-intrinsics.txt                (7-Scenes, tsdf-fusion)
    tum        rgb.txt depth.txt groundtruth.txt, joined by nearest time stamps           (TUM RGB-D)
    replica    results/{frame,depth}000000.* and traj.txt, ../cam_params.json             (Replica, as NICE-SLAM renders it)

Poses come out camera->world with OpenCV axes, depth in metres, intrinsics for the images as they lie on disk.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.camera import SizeHW, scale_intrinsic
from pointcept3m.structures.images import image_size, read_color, read_depth
from pointcept3m.structures.scene import (
    COLOR_SUFFIXES,
    check_intrinsic,
    check_pose,
    natural_key,
    read_intrinsic,
    read_matrix,
)
from pointcept3m.utils.registry import near_names

DEPTH_SUFFIXES = (".png", ".pgm")
MAX_TIME_GAP = 0.02  # seconds between a depth picture and its colour or pose, as TUM's own tools allow
# TUM's published calibrations of its three cameras (fx, fy, cx, cy)
TUM_INTRINSICS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}

REPLICA_CAMERA = {"fx": 600.0, "fy": 600.0, "cx": 599.5, "cy": 339.5, "scale": 6553.5}  # of its 1200 x 680 pictures


@dataclass(frozen=True)
class FrameRecord:
    """Where one frame lies. `pose` [4, 4] is camera->world."""

    name: str
    color: Path
    depth: Path
    pose: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class RGBDFolder:
    """An opened folder. Intrinsics [3, 3] belong to images of `color_size` and `depth_size` (H, W).

    up: the direction against gravity in the world of the poses, or None where the folder does not tell; `up_source`
    says where it comes from. dropped: names of frames left out because their pose was bad (on_bad_frame="skip").
    """

    root: Path
    kind: str
    frames: tuple[FrameRecord, ...]
    color_intrinsic: NDArray[np.float64]
    depth_intrinsic: NDArray[np.float64]
    color_size: SizeHW
    depth_size: SizeHW
    units_per_metre: float
    invalid: tuple[int, ...]
    up: NDArray[np.float64] | None
    up_source: str
    dropped: tuple[str, ...] = ()

    def read(self, frame: FrameRecord) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(color [H, W, 3] uint8, depth [h, w] float32 metres with 0 for nothing) of one frame.

        Raises: ValueError where an image is damaged or has another size than the first one.
        """
        color = read_color(frame.color)
        depth = read_depth(frame.depth, self.units_per_metre, self.invalid)
        for path, image, size in ((frame.color, color, self.color_size), (frame.depth, depth, self.depth_size)):
            if image.shape[:2] != size:
                raise ValueError(f"{path}: {image.shape[1]} x {image.shape[0]}, the first is {size[1]} x {size[0]}")
        return color, depth


def open_rgbd(
    root: str | Path,
    kind: str = "auto",
    intrinsic: tuple[float, float, float, float] | None = None,
    units_per_metre: float | None = None,
    on_bad_frame: str = "raise",
) -> RGBDFolder:
    """Opens a folder of posed RGB-D frames; reads poses and intrinsics, no image but the first headers.

    Args:
        kind: one of KINDS, or "auto" to tell by the files.
        intrinsic: (fx, fy, cx, cy) for colour and depth alike, over what the folder says.
        units_per_metre: of the depth images, over what the kind means (1000; TUM 5000).
        on_bad_frame: "raise" for a pose that is not finite or not rigid, or "skip" it into `dropped`.

    Raises: FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of RGB-D frames")
    if on_bad_frame not in ("raise", "skip"):
        raise ValueError(f"on_bad_frame must be 'raise' or 'skip', got {on_bad_frame!r}")
    if kind == "auto":
        kind = detect_kind(root)
    if kind not in KINDS:
        raise ValueError(f"no kind of RGB-D folder is called {kind!r}; {near_names(kind, KINDS)}")
    folder = KINDS[kind](root, _GivenIntrinsic(intrinsic))
    frames, dropped = _check_frames(root, folder["frames"], on_bad_frame)
    return RGBDFolder(
        root=root,
        kind=kind,
        frames=tuple(frames),
        color_intrinsic=folder["color_intrinsic"],
        depth_intrinsic=folder["depth_intrinsic"],
        color_size=image_size(frames[0].color),
        depth_size=image_size(frames[0].depth),
        units_per_metre=folder["units_per_metre"] if units_per_metre is None else units_per_metre,
        invalid=folder["invalid"],
        up=folder["up"],
        up_source=folder["up_source"],
        dropped=tuple(dropped),
    )


def detect_kind(root: Path) -> str:
    """The kind of an RGB-D folder, by its files. Raises ValueError listing what was looked for."""
    if all((root / name).is_file() for name in ("rgb.txt", "depth.txt", "groundtruth.txt")):
        return "tum"
    if all((root / name).is_dir() for name in ("color", "depth", "pose")):
        return "scannet" if (root / "intrinsic").is_dir() else "sens_info"
    if next(root.glob("frame-*.pose.txt"), None) is not None:
        return "7scenes"
    if (root / "traj.txt").is_file() and (root / "results").is_dir():
        return "replica"
    raise ValueError(
        f"{root}: not a folder of posed RGB-D frames that is known here; wanted color/ depth/ pose/ with intrinsic/ or "
        f"info/, or frame-*.pose.txt files, or rgb.txt depth.txt groundtruth.txt, or traj.txt and results/"
    )


@dataclass(frozen=True)
class _GivenIntrinsic:
    """The user's (fx, fy, cx, cy), if any."""

    values: tuple[float, float, float, float] | None

    def __call__(self, otherwise: Callable[[], NDArray]) -> NDArray[np.float64]:
        """The given matrix, else what `otherwise` reads."""
        if self.values is None:
            return otherwise()
        fx, fy, cx, cy = self.values
        return check_intrinsic(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), "the intrinsic given")


def _check_frames(root: Path, frames: Iterator[FrameRecord], on_bad: str) -> tuple[list[FrameRecord], list[str]]:
    good, dropped = [], []
    for frame in frames:
        try:
            check_pose(frame.pose, f"{root}: pose of frame {frame.name!r}")
        except ValueError as error:
            if on_bad == "raise":
                raise ValueError(f"{error}. To leave such frames out, pass --skip-bad-frames") from None
            dropped.append(frame.name)
        else:
            good.append(frame)
    if not good:
        raise ValueError(f"{root}: no frame with colour, depth and a pose ({len(dropped)} with a bad pose)")
    return good, dropped


def _frames_of_folders(root: Path) -> Iterator[FrameRecord]:
    """Frames of color/ depth/ pose/ that have one name in all three."""
    color = {p.stem: p for p in (root / "color").iterdir() if p.suffix in COLOR_SUFFIXES}
    depth = {p.stem: p for p in (root / "depth").iterdir() if p.suffix in DEPTH_SUFFIXES}
    pose = {p.stem: p for p in (root / "pose").iterdir() if p.suffix == ".txt"}
    common = color.keys() & depth.keys() & pose.keys()
    if not common:
        raise ValueError(
            f"{root}: no name is common to color/ ({len(color)} files), depth/ ({len(depth)}) and pose/ ({len(pose)})"
        )
    for name in sorted(common, key=natural_key):
        yield FrameRecord(name, color[name], depth[name], read_matrix(pose[name]))


SCANNET_UP = {"up": np.array([0.0, 0.0, 1.0]), "up_source": "ScanNet's worlds have z up"}


def _open_scannet(root: Path, given: _GivenIntrinsic) -> dict:
    folder = root / "intrinsic"
    return {
        "frames": _frames_of_folders(root),
        "color_intrinsic": given(lambda: read_intrinsic(folder / "intrinsic_color.txt")),
        "depth_intrinsic": given(lambda: read_intrinsic(folder / "intrinsic_depth.txt")),
        "units_per_metre": 1000.0,
        "invalid": (0,),
        **SCANNET_UP,
    }


def _open_sens_info(root: Path, given: _GivenIntrinsic) -> dict:
    """The header holds the calibration at the sensor's sizes; the images may be smaller."""
    headers = sorted((root / "info").glob("*.txt")) if (root / "info").is_dir() else []
    if len(headers) != 1:
        raise FileNotFoundError(f"{root}: wanted intrinsic/ or one .sens header in info/*.txt, got {len(headers)}")
    header = read_sens_header(headers[0])
    frames = list(_frames_of_folders(root))

    def scaled(kind: str) -> NDArray:
        matrix = np.array([float(v) for v in header[f"m_calibration{kind}Intrinsic"].split()]).reshape(4, 4)[:3, :3]
        calibrated = (int(header[f"m_{kind.lower()}Height"]), int(header[f"m_{kind.lower()}Width"]))
        on_disk = image_size(frames[0].color if kind == "Color" else frames[0].depth)
        return scale_intrinsic(check_intrinsic(matrix, f"{headers[0]} ({kind})"), calibrated, on_disk)

    return {
        "frames": frames,
        "color_intrinsic": given(lambda: scaled("Color")),
        "depth_intrinsic": given(lambda: scaled("Depth")),
        "units_per_metre": float(header["m_depthShift"]),
        "invalid": (0,),
        **SCANNET_UP,
    }


def read_sens_header(path: Path) -> dict[str, str]:
    """The `name = value` lines of a .sens header written as text. Raises ValueError where a needed one is absent."""
    lines = [line.partition("=") for line in path.read_text().splitlines() if "=" in line]
    header = {name.strip(): value.strip() for name, _, value in lines}
    needed = [f"m_{kind}{side}" for kind in ("color", "depth") for side in ("Width", "Height")]
    needed += ["m_calibrationColorIntrinsic", "m_calibrationDepthIntrinsic", "m_depthShift"]
    missing = [name for name in needed if name not in header]
    if missing:
        raise ValueError(f"{path}: not a .sens header, it lacks {', '.join(missing)}")
    return header


def _open_7scenes(root: Path, given: _GivenIntrinsic) -> dict:
    def from_file() -> NDArray:
        path = root / "camera-intrinsics.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not found; give the camera by --intrinsic fx fy cx cy (7-Scenes: 585 585 320 240)"
            )
        return read_intrinsic(path)

    def frames() -> Iterator[FrameRecord]:
        names = [p.name.removesuffix(".pose.txt") for p in root.glob("frame-*.pose.txt")]
        for name in sorted(names, key=natural_key):
            color = next(
                (root / f"{name}.color{s}" for s in COLOR_SUFFIXES if (root / f"{name}.color{s}").is_file()), None
            )
            if color is None:
                raise FileNotFoundError(
                    f"{root}/{name}.color.jpg (or .png): not found, though {name}.pose.txt is there"
                )
            yield FrameRecord(name, color, root / f"{name}.depth.png", read_matrix(root / f"{name}.pose.txt"))

    intrinsic = given(from_file)
    up, up_source = None, ""
    gravity = root / "gravity-direction.txt"
    if gravity.is_file():
        down = np.array([float(word) for word in gravity.read_text().split()])
        if down.shape != (3,) or not np.isfinite(down).all() or np.linalg.norm(down) < 1e-6:
            raise ValueError(f"{gravity}: wanted three numbers, the direction of gravity, got {down.tolist()}")
        up, up_source = -down / np.linalg.norm(down), gravity.name
    return {
        "frames": frames(),
        "color_intrinsic": intrinsic,
        "depth_intrinsic": intrinsic,
        "units_per_metre": 1000.0,
        "invalid": (0, 65535),
        "up": up,
        "up_source": up_source,
    }


def _open_tum(root: Path, given: _GivenIntrinsic) -> dict:
    def from_name() -> NDArray:
        path = root / "camera-intrinsics.txt"
        if path.is_file():
            return read_intrinsic(path)
        known = re.search(r"freiburg[123]", str(root.resolve()))
        if known is None:
            raise FileNotFoundError(
                f"{root}: TUM folders hold no intrinsic and this one's name has no 'freiburg1..3'; give the camera by "
                f"--intrinsic fx fy cx cy or {path.name}"
            )
        fx, fy, cx, cy = TUM_INTRINSICS[known.group()]
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])

    intrinsic = given(from_name)
    return {
        "frames": _join_by_time(root),
        "color_intrinsic": intrinsic,
        "depth_intrinsic": intrinsic,
        "units_per_metre": 5000.0,
        "invalid": (0,),
        "up": np.array([0.0, 0.0, 1.0]),
        "up_source": "TUM's motion-capture world has z up",
    }


def _join_by_time(root: Path) -> Iterator[FrameRecord]:
    """Depth pictures with the colour and the pose nearest in time; those without either within 20 ms are left out."""
    depth, color = _read_timed(root / "depth.txt"), _read_timed(root / "rgb.txt")
    poses = _read_timed(root / "groundtruth.txt")
    color_times, pose_times = np.array([t for t, _ in color]), np.array([t for t, _ in poses])
    for time, words in depth:
        color_row, pose_row = int(np.abs(color_times - time).argmin()), int(np.abs(pose_times - time).argmin())
        if max(abs(color_times[color_row] - time), abs(pose_times[pose_row] - time)) > MAX_TIME_GAP:
            continue
        numbers = [float(word) for word in poses[pose_row][1]]
        if len(numbers) != 7:
            raise ValueError(
                f"{root}/groundtruth.txt: wanted tx ty tz qx qy qz qw at {pose_times[pose_row]}, got {numbers}"
            )
        paths = [_inside(root, words[0]), _inside(root, color[color_row][1][0])]
        yield FrameRecord(
            f"{time:.6f}".replace(".", "-"), paths[1], paths[0], pose_from_quaternion(numbers[:3], numbers[3:])
        )


def _read_timed(path: Path) -> list[tuple[float, list[str]]]:
    """Lines `time value ...`, without comments. Raises ValueError naming the line that is none."""
    result = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            result.append((float(words[0]), words[1:]))
        except ValueError:
            raise ValueError(f"{path}, line {number}: wanted a time stamp first, got {line!r}") from None
        if len(words) < 2:
            raise ValueError(f"{path}, line {number}: wanted a time stamp and a value, got {line!r}")
    if not result:
        raise ValueError(f"{path}: no line with a time stamp")
    return result


def _inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused where it leads out of `root`."""
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{root}: the image {relative!r} lies outside the folder")
    return path


def pose_from_quaternion(translation: list[float], xyzw: list[float]) -> NDArray[np.float64]:
    """A [4, 4] camera->world matrix from a translation and a quaternion in TUM's order, x y z w."""
    x, y, z, w = np.asarray(xyzw, dtype=np.float64) / max(float(np.linalg.norm(xyzw)), 1e-12)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation
    return pose


def _open_replica(root: Path, given: _GivenIntrinsic) -> dict:
    path = root.parent / "cam_params.json"
    camera = dict(REPLICA_CAMERA)
    if path.is_file():
        try:
            camera = {key: float(value) for key, value in json.loads(path.read_text())["camera"].items()}
            camera["fx"], camera["fy"], camera["cx"], camera["cy"], camera["scale"]  # noqa: B018 (a KeyError names what is absent)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: wanted camera: fx, fy, cx, cy, scale as numbers ({type(error).__name__}: {error})") from error

    def frames() -> Iterator[FrameRecord]:
        lines = [line for line in (root / "traj.txt").read_text().splitlines() if line.split()]
        color = {p.stem.removeprefix("frame"): p for p in (root / "results").glob("frame*") if p.suffix in COLOR_SUFFIXES}
        if len(lines) != len(color):
            raise ValueError(f"{root}: traj.txt has {len(lines)} poses, results/ has {len(color)} pictures frame*.jpg; is one cut short?")
        for line, (name, picture) in zip(lines, sorted(color.items(), key=lambda item: natural_key(item[0])), strict=True):
            try:
                pose = np.array([float(word) for word in line.split()]).reshape(4, 4)
            except ValueError:
                raise ValueError(f"{root / 'traj.txt'}: wanted 16 numbers a line, got {line[:80]!r}") from None
            yield FrameRecord(name, picture, root / "results" / f"depth{name}.png", pose)

    # its principal point is (W - 1) / 2: there the centre of the first pixel is at 0
    own = np.array([[camera["fx"], 0, camera["cx"] + 0.5], [0, camera["fy"], camera["cy"] + 0.5], [0, 0, 1]])
    intrinsic = given(lambda: check_intrinsic(own, str(path)))
    return {
        "frames": frames(),
        "color_intrinsic": intrinsic,
        "depth_intrinsic": intrinsic,
        "units_per_metre": camera["scale"],
        "invalid": (0,),
        "up": np.array([0.0, 0.0, 1.0]),
        "up_source": "Replica's worlds have z up",
    }


KINDS: dict[str, Callable[[Path, _GivenIntrinsic], dict]] = {
    "scannet": _open_scannet,
    "sens_info": _open_sens_info,
    "7scenes": _open_7scenes,
    "tum": _open_tum,
    "replica": _open_replica,
}
