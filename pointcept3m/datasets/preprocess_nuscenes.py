"""Raw nuScenes with lidarseg to scene folders, one a key frame: a sweep of the lidar, labels of 16 classes, six pictures without depth.

    raw_root/v1.0-trainval/{scene,sample,sample_data,ego_pose,calibrated_sensor,sensor,category,lidarseg}.json  (or -mini, -test)
    raw_root/samples/LIDAR_TOP/*.pcd.bin     [N, 5] float32: x, y, z in metres, intensity to 255, ring
    raw_root/samples/CAM_*/*.jpg             1600 x 900
    raw_root/lidarseg/<version>/*_lidarseg.bin   [N] uint8, `index` of a category

Points stay in the lidar's own frame (x right, y ahead, z up), as Pointcept has them; pictures are posed in it through both cars'
poses, since a camera fires at another moment than the lidar.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pointcept3m.datasets.preprocess_scenes import (
    IGNORE_INDEX,
    SPLITS,
    Job,
    SceneReport,
    save_arrays,
    save_camera,
    save_color,
    shrunk,
)
from pointcept3m.structures.camera import invert_pose, scale_intrinsic
from pointcept3m.structures.images import read_color
from pointcept3m.structures.scene import check_intrinsic, check_pose
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

LIDAR = "LIDAR_TOP"
COLUMNS = 5
VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")
TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")

# The 16 classes of the lidarseg challenge, in the order of `label_set("nuscenes16")`; other categories do not count.
CLASS_OF = {
    "movable_object.barrier": 0, "vehicle.bicycle": 1, "vehicle.bus.bendy": 2, "vehicle.bus.rigid": 2, "vehicle.car": 3,
    "vehicle.construction": 4, "vehicle.motorcycle": 5, "human.pedestrian.adult": 6, "human.pedestrian.child": 6,
    "human.pedestrian.construction_worker": 6, "human.pedestrian.police_officer": 6, "movable_object.trafficcone": 7,
    "vehicle.trailer": 8, "vehicle.truck": 9, "flat.driveable_surface": 10, "flat.other": 11, "flat.sidewalk": 12,
    "flat.terrain": 13, "static.manmade": 14, "static.vegetation": 15,
}  # fmt: skip

# The official validation scenes, as the numbers of scene-XXXX; of v1.0-trainval and v1.0-mini the others are for training.
VAL_SCENES = (
    3, 12, 13, 14, 15, 16, 17, 18, 35, 36, 38, 39, 92, 93, 94, 95, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106,
    107, 108, 109, 110, 221, 268, 269, 270, 271, 272, 273, 274, 275, 276, 277, 278, 329, 330, 331, 332, 344, 345, 346,
    519, 520, 521, 522, 523, 524, 552, 553, 554, 555, 556, 557, 558, 559, 560, 561, 562, 563, 564, 565, 625, 626, 627,
    629, 630, 632, 633, 634, 635, 636, 637, 638, 770, 771, 775, 777, 778, 780, 781, 782, 783, 784, 794, 795, 796, 797,
    798, 799, 800, 802, 904, 905, 906, 907, 908, 909, 910, 911, 912, 913, 914, 915, 916, 917, 919, 920, 921, 922, 923,
    924, 925, 926, 927, 928, 929, 930, 931, 962, 963, 966, 967, 968, 969, 971, 972, 1059, 1060, 1061, 1062, 1063, 1064,
    1065, 1066, 1067, 1068, 1069, 1070, 1071, 1072, 1073,
)  # fmt: skip
MINI_VAL_SCENES = (103, 916)


@dataclass(frozen=True)
class Settings:
    """What the user chose. frames False: points only. image_width: of the pictures written, 0 as they are."""

    frames: bool = True
    image_width: int = 800
    version: int = 1

    def __post_init__(self) -> None:
        if self.image_width < 0:
            raise ValueError(f"image_width must not be negative, got {self.image_width}")


@dataclass(frozen=True)
class Picture:
    """One camera of a key frame. intrinsic [3, 3] for the picture on disk, the centre of the first pixel at 0.5; pose [4, 4]
    camera -> lidar's frame."""

    name: str
    path: Path
    intrinsic: NDArray[np.float64]
    pose: NDArray[np.float64]


def split_of(scene: str, version: str) -> str:
    """The split of "scene-0103" in a version. Raises ValueError for a name of another form."""
    number = scene.removeprefix("scene-")
    if number == scene or not number.isdigit():
        raise ValueError(f"wanted a nuScenes scene like 'scene-0103', got {scene!r}")
    if version.endswith("test"):
        return "test"
    return "val" if int(number) in (MINI_VAL_SCENES if version.endswith("mini") else VAL_SCENES) else "train"


def jobs_of(raw_root: str | Path, output_root: str | Path, version: str | None = None, splits: Sequence[str] = SPLITS,
            stride: int = 1) -> list[Job]:  # fmt: skip
    """Key frames as jobs of `preprocess_scenes.preprocess(fill_sample, ...)`; scenes are "scene-0103_07", numbered in time.

    version: the folder of tables; None takes the only one that is there. stride: every n-th key frame of a scene.

    Raises: FileNotFoundError for missing tables, ValueError for an unknown split or version, damaged tables, or no key
        frame of the splits.
    """
    raw_root = Path(raw_root)
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; {near_names(split, SPLITS)}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    version = version or _only_version(raw_root)
    tables = {name: read_table(raw_root / version / f"{name}.json") for name in TABLES}
    sensors = {token: tables["sensor"][row["sensor_token"]]["channel"] for token, row in tables["calibrated_sensor"].items()}
    classes, labels = (None, {}) if version.endswith("test") else _labels(raw_root, version)
    views: dict[str, dict[str, dict]] = {}
    for row in tables["sample_data"].values():
        if row["is_key_frame"]:
            views.setdefault(row["sample_token"], {})[sensors[row["calibrated_sensor_token"]]] = row
    samples: dict[str, list[dict]] = {}
    for row in tables["sample"].values():
        samples.setdefault(row["scene_token"], []).append(row)
    jobs = []
    for token, scene in sorted(tables["scene"].items(), key=lambda item: item[1]["name"]):
        split = split_of(scene["name"], version)
        if split not in splits:
            continue
        in_time = sorted(samples.get(token, ()), key=lambda row: row["timestamp"])
        for number, sample in list(enumerate(in_time))[::stride]:
            seen = views.get(sample["token"], {})
            if LIDAR not in seen:
                raise ValueError(f"{raw_root / version}: key frame {number} of {scene['name']} has no {LIDAR}")
            lidar = seen[LIDAR]
            to_lidar = invert_pose(_pose(lidar, tables))
            pictures = [Picture(channel, raw_root / row["filename"], _intrinsic(row, tables), to_lidar @ _pose(row, tables))
                        for channel, row in sorted(seen.items()) if channel.startswith("CAM_")]  # fmt: skip
            target = Path(output_root) / split / f"{scene['name']}_{number:02d}"
            jobs.append(Job(target, (raw_root / lidar["filename"], labels.get(lidar["token"]), classes, pictures)))
    if not jobs:
        raise ValueError(f"{raw_root / version}: none of its {len(tables['scene'])} scenes is of the splits {', '.join(splits)}")
    return jobs


def _only_version(raw_root: Path) -> str:
    found = [version for version in VERSIONS if (raw_root / version).is_dir()]
    if not found:
        raise FileNotFoundError(f"{raw_root}: wanted nuScenes' folder of tables there, {' or '.join(VERSIONS)}; {near_files(raw_root / VERSIONS[0])}")
    if len(found) > 1:
        raise ValueError(f"{raw_root}: has {' and '.join(found)}; say which, --version")
    return found[0]


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """{token: row} of one of nuScenes' tables. Raises FileNotFoundError, or ValueError where it is no such table."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; {near_files(path)}")
    try:
        return {row["token"]: row for row in json.loads(path.read_bytes())}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: wanted a JSON list of rows with a token ({type(error).__name__}: {error})") from error


def _labels(raw_root: Path, version: str) -> tuple[NDArray[np.int64], dict[str, Path]]:
    """(class of each category's index, -1 none; the file of labels by the token of a sweep)."""
    categories = read_table(raw_root / version / "category.json")
    classes = np.full(256, IGNORE_INDEX)
    for row in categories.values():
        if not isinstance(row.get("index"), int) or not 0 <= row["index"] < 256:
            raise ValueError(f"{raw_root / version / 'category.json'}: category {row.get('name')!r} has no index; unpack nuScenes-lidarseg over nuScenes")
        classes[row["index"]] = CLASS_OF.get(row["name"], IGNORE_INDEX)
    table = read_table(raw_root / version / "lidarseg.json")
    return classes, {row["sample_data_token"]: raw_root / row["filename"] for row in table.values()}


def rigid(rotation: ArrayLike, translation: ArrayLike) -> NDArray[np.float64]:
    """The [4, 4] motion of a unit quaternion (w, x, y, z) and a shift. Raises ValueError where the quaternion is zero."""
    w, x, y, z = np.asarray(rotation, np.float64)
    norm = w * w + x * x + y * y + z * z
    if not norm > 0.5:
        raise ValueError(f"wanted a unit quaternion, got {[w, x, y, z]}")
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    pose = np.eye(4)
    pose[:3, :3] += 2 / norm * (w * cross + cross @ cross)
    pose[:3, 3] = translation
    return pose


def _pose(row: dict, tables: dict[str, dict]) -> NDArray[np.float64]:
    """sensor -> world at the moment of a row of sample_data."""
    car, sensor = tables["ego_pose"][row["ego_pose_token"]], tables["calibrated_sensor"][row["calibrated_sensor_token"]]
    return rigid(car["rotation"], car["translation"]) @ rigid(sensor["rotation"], sensor["translation"])


def _intrinsic(row: dict, tables: dict[str, dict]) -> NDArray[np.float64]:
    matrix = np.array(tables["calibrated_sensor"][row["calibrated_sensor_token"]]["camera_intrinsic"], dtype=np.float64)
    if matrix.shape != (3, 3):
        raise ValueError(f"calibrated_sensor.json: {row['filename']} has no 3x3 camera_intrinsic")
    matrix[:2, 2] += 0.5  # OpenCV's: the centre of the first pixel is at 0
    return check_intrinsic(matrix, f"calibrated_sensor.json, {row['filename']}")


def fill_sample(folder: Path, report: SceneReport, settings: Settings, lidar: Path, label: Path | None, classes: NDArray | None,
                pictures: list[Picture]) -> None:  # fmt: skip
    """Writes coord, strength [N, 1] (intensity in 0..1), segment where there are labels, and the frames of one key frame."""
    points = read_sweep(lidar)
    arrays = {"coord": points[:, :3], "strength": points[:, 3:4] / np.float32(255)}
    if classes is not None:
        if label is None:
            raise ValueError(f"{lidar}: lidarseg.json has no labels of this sweep")
        if not label.is_file():
            raise FileNotFoundError(f"{label}: no such file of labels; {near_files(label)}")
        index = np.fromfile(label, dtype=np.uint8)
        if len(index) != len(points):
            raise ValueError(f"{label}: {len(index)} labels, {lidar.name} has {len(points)} points")
        arrays["segment"] = classes[index]
    save_arrays(folder, report, arrays)
    for picture in pictures if settings.frames else ():
        color = read_color(picture.path)
        check_pose(picture.pose, str(picture.path))
        size = shrunk(color.shape[:2], settings.image_width)
        save_color(folder / "color" / f"{picture.name}.jpg", color, size)
        save_camera(folder, picture.name, picture.pose, scale_intrinsic(picture.intrinsic, color.shape[:2], size))
        report.num_frames += 1


def read_sweep(path: Path) -> NDArray[np.float32]:
    """A `.pcd.bin`: [N, 5] float32. Raises FileNotFoundError, ValueError where its size is none of whole points."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such sweep; {near_files(path)}")
    size = path.stat().st_size
    if not size or size % (4 * COLUMNS):
        raise ValueError(f"{path}: {size} bytes are no whole number of points of {COLUMNS} float32; is the file whole?")
    return np.fromfile(path, dtype="<f4").reshape(-1, COLUMNS)
