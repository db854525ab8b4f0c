"""Raw Matterport3D to scene folders, one a region of a building, with labels of 21, 40, 80 and 160 classes and RGB-D frames.

    raw_root/<building>/  (or raw_root/scans/<building>/, as unpacked from the downloaded archives)
        region_segmentations/region<n>.ply                     mesh; each face has segment_id (object) and category_id
        undistorted_camera_parameters/<building>.conf          intrinsics, and the pose of every picture
        undistorted_color_images/<pano>_i<camera>_<yaw>.jpg    undistorted_depth_images/<pano>_d<camera>_<yaw>.png
    category_mapping.tsv  in raw_root or raw_root/metadata

Labels are voted: a vertex has the class that most of its faces have, of several the first; faces without a class vote too
(OpenScene's rule). Poses there have OpenGL's axes (y up, z backward) and pictures count rows from below: the camera centre of a
.conf is (cx, cy) from the centre of the pixel at the lower left, here it is (cx + 0.5, H - 0.5 - cy) from the upper left corner.
(matterport_camera_intrinsics has it the OpenCV way: 513.798 of 1024 where the .conf says 509.202. OpenScene takes cy as it is.)
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.preprocess_scannet import vertex_normals
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
from pointcept3m.datasets.readers.ply import Ply, read_ply
from pointcept3m.datasets.scannet_labels import SCANNET20_IDS
from pointcept3m.structures.camera import resize_nearest, scale_intrinsic
from pointcept3m.structures.images import read_color, read_depth, write_depth
from pointcept3m.structures.label_sets import label_set
from pointcept3m.structures.scene import check_intrinsic, check_pose, natural_key
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

CLASS_COUNTS = (21, 40, 80, 160)
CEILING = 22  # among the 40 NYU classes; the 21st class of the set of 21
DEPTH_UNITS = 4000  # in a metre
CATEGORIES = "category_mapping.tsv"

# The official benchmark has 61 buildings for training, 11 and 18 for these. (OpenScene's lists have 60, 10 and 17.)
VAL_BUILDINGS = (
    "2azQ1b91cZZ", "8194nk5LbLH", "EU6Fwq7SyZv", "oLBMNvg9in8", "QUCTc6BB5sX", "TbHJrupSAjP", "X7HyMhZNoso",
    "pLe4wQe7qrG", "x8F5xyUWy9e", "Z6MFQCViBuw", "zsNo4HB9uLZ",
)  # fmt: skip
TEST_BUILDINGS = (
    "2t7WUuJeko7", "5ZKStnWn8Zo", "ARNzJeq3xxb", "fzynW3qQPVF", "jtcxE69GiFV", "pa4otMbVnkk", "q9vSo1VnCiC",
    "rqfALeAoiTq", "UwV83HsGsw3", "wc2JMjhGNzB", "WYY7iVyf5p8", "YFuZgdQ5vWj", "yqstnuAEVhm", "YVUC4YcDtcY",
    "gxdoqLR6rwA", "gYvKGZ5eRqb", "RPmz2sHmrrY", "Vt2qJdWjCF2",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the user chose. image_width: of the pictures written, 0 as they are. nearest: how many pictures a test region
    without one of its own takes. frames False: points only."""

    frames: bool = True
    image_width: int = 640
    nearest: int = 100
    version: int = 1

    def __post_init__(self) -> None:
        if self.image_width < 0 or self.nearest < 0:
            raise ValueError(f"image_width and nearest must not be negative, got {self.image_width} and {self.nearest}")


@dataclass(frozen=True)
class Camera:
    """One picture of a building. intrinsic [3, 3] as the .conf has it, for rows from below; pose [4, 4] camera->world, OpenCV's axes."""

    color: str
    depth: str
    intrinsic: NDArray[np.float64]
    pose: NDArray[np.float64]


# what is there


def find_regions(raw_root: str | Path, splits: Sequence[str] = SPLITS) -> list[tuple[Path, Path, str]]:
    """(region<n>.ply, folder of the building, split) of each region of `splits`, by building and number.

    Lists scenes_{train,val,test}.txt in raw_root decide, and buildings in none of them are left out; where there are no
    lists, the benchmark's do, and buildings that it neither validates nor tests on are for training.

    Raises: FileNotFoundError where raw_root has no region, ValueError for an unknown split.
    """
    raw_root = Path(raw_root)
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; {near_names(split, SPLITS)}")
    if not raw_root.is_dir():
        raise FileNotFoundError(f"{raw_root}: no such folder; {near_files(raw_root)}")
    lists = {split: raw_root / f"scenes_{split}.txt" for split in SPLITS}
    listed = {name: split for split, path in lists.items() if path.is_file() for name in path.read_text().split()}
    official = {**dict.fromkeys(VAL_BUILDINGS, "val"), **dict.fromkeys(TEST_BUILDINGS, "test")}
    buildings = {path.name: path for path in (*raw_root.iterdir(), *(raw_root / "scans").glob("*")) if path.is_dir()}
    regions = {name: _data_folder(path, "region_segmentations") for name, path in buildings.items()}
    found = [(ply, buildings[name], listed.get(name) if listed else official.get(name, "train"))
             for name, folder in sorted(regions.items()) if folder
             for ply in sorted(folder.glob("region*.ply"), key=lambda p: natural_key(p.stem))]  # fmt: skip
    if not found:
        packed = next(raw_root.glob("**/region_segmentations.zip"), None)
        hint = f"; {packed} is still packed" if packed else ""
        raise FileNotFoundError(f"{raw_root}: wanted Matterport3D's <building>/region_segmentations/region<n>.ply there, found none{hint}")
    return [item for item in found if item[2] in splits]


def _data_folder(building: Path, kind: str) -> Path | None:
    """The folder of one kind of data; archives hold <building>/<kind>/, and people unpack them at three places."""
    name = building.name
    for folder in (building / kind, building / name / kind, building / kind / name / kind):
        if folder.is_dir():
            return folder
    return None


def jobs_of(raw_root: str | Path, output_root: str | Path, splits: Sequence[str] = SPLITS, categories: str | Path | None = None) -> list[Job]:
    """The regions of `splits` as jobs of `preprocess_scenes.preprocess(fill_region, ...)`; scenes are "<building>_region<n>".

    categories: category_mapping.tsv; None looks in raw_root and raw_root/metadata. Raises: as `find_regions` and
    `read_categories`; ValueError where no region is of the splits.
    """
    raw_root, output_root = Path(raw_root), Path(output_root)
    regions = find_regions(raw_root, splits)
    if not regions:
        raise ValueError(f"{raw_root}: none of its buildings is of the splits {', '.join(splits)}")
    if categories is None:
        places = [raw_root / CATEGORIES, raw_root / "metadata" / CATEGORIES]
        categories = next((path for path in places if path.is_file()), places[0])
    table = read_categories(categories)
    return [Job(output_root / split / f"{building.name}_{ply.stem}", (ply, building, table)) for ply, building, split in regions]


def read_categories(path: str | Path) -> dict[int, NDArray[np.int64]]:
    """{K: class among K of each category_id, int64 [categories + 1], -1 none} from category_mapping.tsv.

    21 classes by `nyu40id`, 40, 80 and 160 by the name in `nyuClass`.
    Raises: FileNotFoundError, or ValueError naming a missing column or bad row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; Matterport3D's repository has it (metadata/{CATEGORIES}), --category-mapping says where it is"
        )
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        for column in ("index", "nyu40id", "nyuClass"):
            if column not in (rows.fieldnames or ()):
                raise ValueError(f"{path}: has no column {column!r}; {near_names(column, rows.fieldnames or ())}")
        found: dict[int, tuple[int, str]] = {}
        for row in rows:
            try:
                index, nyu40 = int(row["index"]), int(row["nyu40id"] or 0)
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {rows.line_num}: wanted numbers as index and nyu40id, got {row['index']!r}, {row['nyu40id']!r}") from None
            if not 0 < index < 1 << 16:
                raise ValueError(f"{path}, line {rows.line_num}: wanted an index from 1 to 65535, got {index}")
            found[index] = nyu40, row["nyuClass"] or ""
    by_nyu40 = {number: place for place, number in enumerate((*SCANNET20_IDS, CEILING))}
    tables = {count: np.full(max(found, default=0) + 1, IGNORE_INDEX) for count in CLASS_COUNTS}
    by_name = {count: {name: place for place, name in enumerate(label_set(f"matterport{count}").names)} for count in CLASS_COUNTS[1:]}
    for index, (nyu40, name) in found.items():
        tables[21][index] = by_nyu40.get(nyu40, IGNORE_INDEX)
        for count, places in by_name.items():
            tables[count][index] = places.get(name, IGNORE_INDEX)
    return tables


def read_cameras(path: str | Path) -> list[Camera]:
    """The pictures of a building's .conf. Raises: FileNotFoundError, ValueError naming the line that is no such line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {near_files(path)}")
    cameras, intrinsic, wanted = [], None, 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        try:
            if words[:1] == ["intrinsics_matrix"]:
                intrinsic = check_intrinsic(np.array(words[1:], dtype=np.float64).reshape(3, 3), f"{path}, line {number}")
            elif words[:1] == ["n_images"]:
                wanted = int(words[1])
            elif words[:1] == ["scan"]:
                pose = np.array(words[3:], dtype=np.float64).reshape(4, 4)
                if intrinsic is None:
                    raise ValueError("no intrinsics_matrix before it")
                cameras.append(Camera(words[2], words[1], intrinsic, pose @ np.diag([1.0, -1, -1, 1])))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}, line {number}: cannot be read ({error}): {line[:100]!r}") from error
    if len(cameras) != wanted:
        raise ValueError(f"{path}: says {wanted} images, has {len(cameras)}; is the file whole?")
    return cameras


# points


def fill_region(folder: Path, report: SceneReport, settings: Settings, ply: Path, building: Path, table: dict[int, NDArray]) -> None:
    """Writes the points, labels and frames of one region. Raises: whatever makes it unreadable, naming the file."""
    mesh = read_ply(ply)
    arrays = {"coord": mesh.coord, "color": mesh.color, "normal": vertex_normals(mesh.coord, mesh.faces)}
    save_arrays(folder, report, {**arrays, **read_labels(mesh, table)})
    if settings.frames:
        _write_frames(folder, report, settings, building, arrays["coord"])


def read_labels(mesh: Ply, table: dict[int, NDArray]) -> dict[str, NDArray]:
    """segment21, segment40, segment80, segment160 [N] int64 and instance [N] int32 of a region's vertices, -1 none.

    An instance is a `segment_id` of the file. Raises: ValueError where faces have no such numbers, or unknown categories.
    """
    missing = [name for name in ("segment_id", "category_id") if name not in mesh.face]
    if missing:
        raise ValueError(f"{mesh.path}: faces have no {' and no '.join(missing)}; wanted a mesh of region_segmentations, got {sorted(mesh.face)}")
    category, count = mesh.face["category_id"].astype(np.int64), len(mesh.coord)
    last = len(next(iter(table.values()))) - 1
    if len(category) and category.max() > last:
        raise ValueError(f"{mesh.path}: has category_id {category.max()}, {CATEGORIES} goes to {last}; is it of another release?")
    category = np.maximum(category, 0)  # -1 and 0: no category, which all tables have as -1
    labels = {f"segment{k}": vote(mesh.faces, classes[category], count) for k, classes in table.items()}
    names, place = np.unique(np.maximum(mesh.face["segment_id"], -1), return_inverse=True)
    # places stay in the order of the ids; votes want -1 for none
    none = int(names[:1].tolist() == [-1])
    chosen = vote(mesh.faces, place.reshape(-1) - none, count)
    labels["instance"] = np.where(chosen < 0, -1, names[np.maximum(chosen, 0) + none] if len(names) > none else -1).astype(np.int32)
    return labels


def vote(faces: NDArray, label: NDArray, num_points: int) -> NDArray[np.int64]:
    """The label that most faces around each vertex have, int64 [N]; of several the smallest, -1 (none) before all others.

    faces [F, 3], label [F] from -1. Vertices without faces have none.
    """
    width = int(label.max(initial=-1)) + 2
    key, votes = np.unique(faces.reshape(-1) * width + np.repeat(label + 1, 3), return_counts=True)
    order = np.lexsort((key, -votes, key // width))
    vertex, first = np.unique(key[order] // width, return_index=True)
    result = np.full(num_points, IGNORE_INDEX)
    result[vertex] = key[order][first] % width - 1
    return result


# frames


def choose_cameras(cameras: Sequence[Camera], coord: NDArray, nearest: int) -> tuple[list[Camera], bool]:
    """(the pictures of a region, whether they were taken inside it): those whose camera is inside the bounding box of `coord`
    [N, 3]; where there are none, the `nearest` ones to its middle."""
    if not cameras:
        return [], False
    centre, low, high = np.stack([camera.pose[:3, 3] for camera in cameras]), coord.min(axis=0), coord.max(axis=0)
    inside = np.flatnonzero(((centre > low) & (centre < high)).all(axis=1))
    if len(inside):
        return [cameras[row] for row in inside], True
    distance = np.linalg.norm(centre - (low + high) / 2, axis=1)
    return [cameras[row] for row in np.sort(np.argsort(distance, kind="stable")[:nearest])], False


def _write_frames(folder: Path, report: SceneReport, settings: Settings, building: Path, coord: NDArray) -> None:
    """color/ depth/ pose/ intrinsic/ of a region's pictures, all of one size, depth in millimetres."""
    kinds = ("undistorted_camera_parameters", "undistorted_color_images", "undistorted_depth_images")
    folders = {kind: _data_folder(building, kind) for kind in kinds}
    for kind, path in folders.items():
        if path is None:
            raise FileNotFoundError(f"{building / kind}: no such folder; unpack {kind}.zip there, or write points only (--no-frames)")
    parameters, color_folder, depth_folder = folders.values()
    chosen, inside = choose_cameras(read_cameras(parameters / f"{building.name}.conf"), coord, settings.nearest if report.split == "test" else 0)
    if not inside:
        report.note("scenes without a picture taken inside them" + (", which have the nearest ones" if chosen else ""))
    for camera in chosen:
        color_path, depth_path, name = color_folder / camera.color, depth_folder / camera.depth, Path(camera.color).stem
        absent = [kind for kind, path in (("colour", color_path), ("depth", depth_path)) if not path.is_file()]
        if absent:
            report.note(f"pictures whose {' and '.join(absent)} is not there, left out")
            continue
        try:
            pose = check_pose(camera.pose, name)
        except ValueError:
            report.note("pictures with a pose that is none, left out")
            continue
        color, depth = read_color(color_path), read_depth(depth_path, DEPTH_UNITS)
        own = color.shape[:2]
        size = shrunk(own, settings.image_width)
        intrinsic = camera.intrinsic.copy()
        intrinsic[:2, 2] = intrinsic[0, 2] + 0.5, own[0] - 0.5 - intrinsic[1, 2]
        save_color(folder / "color" / f"{name}.jpg", color, size)
        (folder / "depth").mkdir(exist_ok=True)
        write_depth(folder / "depth" / f"{name}.png", resize_nearest(depth, size))
        save_camera(folder, name, pose, scale_intrinsic(intrinsic, own, size))
        report.num_frames += 1
