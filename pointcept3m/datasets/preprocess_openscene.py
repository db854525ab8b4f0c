"""OpenScene's preprocessed data to scene folders, point for point, so that its fused features fit as they are.

    scannet_3d/{train,val}/<scene>_vh_clean_2.pth   matterport_3d[_40,_80,_160]/{train,val,test}/<building>_<region>.pth
    nuscenes_3d/{train,val}/<scene>.pth             replica_3d/<scene>.pth
        torch.save of (coords [N, 3], colors [N, 3] in -1..1 or 0, labels [N], 255 none)

    scannet_2d/<scene>/  replica_2d/<scene>/        color/<n>.jpg depth/<n>.png pose/<n>.txt; intrinsics.txt for all scenes
    matterport_2d/<building>/                       color/<pano>_i0_0.jpg depth/<pano>_d0_0.png, pose/ and intrinsic/<pano>_i0_0.txt
    nuscenes_2d/{train,val}/<scene>/                color/<camera>.jpg pose/<camera>.npy K/<camera>.npy

Its intrinsics put the centre of the first pixel at 0, here that is 0.5. Those of Matterport3D count rows from below (see
preprocess_matterport), which OpenScene does not know; here they come out right.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.normals import estimate_normals
from pointcept3m.datasets.preprocess_matterport import Camera, choose_cameras
from pointcept3m.datasets.preprocess_scenes import IGNORE_INDEX, SPLITS, Job, SceneReport, save_arrays, save_camera
from pointcept3m.structures.images import image_size, read_depth, write_depth
from pointcept3m.structures.scene import check_intrinsic, check_pose, load_array, natural_key, read_matrix
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names
from pointcept3m.utils.torch_files import load_plain

NONE = (255, -100)  # what stands for "no label"


@dataclass(frozen=True)
class Source:
    """What is peculiar to one data set: the asset of its labels and their number (0: it has none), the end of its files'
    names, and the units of its depth in a metre (0: no depth)."""

    asset: str
    classes: int
    suffix: str = ""
    depth_units: float = 0.0


SOURCES = {
    "scannet": Source("segment20", 20, "_vh_clean_2", 1000),
    "matterport": Source("segment21", 21, depth_units=4000),
    "matterport40": Source("segment40", 40, depth_units=4000),
    "matterport80": Source("segment80", 80, depth_units=4000),
    "matterport160": Source("segment160", 160, depth_units=4000),
    "nuscenes": Source("segment", 16),
    "replica": Source("", 0, depth_units=6553.5),
}


@dataclass(frozen=True)
class Settings:
    """What the user chose. normals: estimate them from the points, since the files have none. nearest: how many pictures a
    test region of Matterport3D without one of its own takes."""

    dataset: str
    normals: bool = True
    nearest: int = 100
    version: int = 1

    def __post_init__(self) -> None:
        if self.dataset not in SOURCES:
            raise ValueError(f"dataset {self.dataset!r} is unknown; {near_names(self.dataset, SOURCES)}")


def guess_dataset(points: str | Path) -> str:
    """The data set of a folder called as OpenScene calls it ("matterport_3d_40"). Raises ValueError where its name does not tell."""
    name = Path(points).resolve().name.lower()
    found = next((source for source in SOURCES if name.startswith(source)), None)
    if found is None:
        raise ValueError(f"{points}: its name does not begin with that of a data set; say --dataset {', '.join(SOURCES)}")
    count = name.rsplit("_", 1)[-1]
    return found + count if found + count in SOURCES else found


def jobs_of(points: Sequence[str | Path], output_root: str | Path, frames: str | Path | None = None,
            splits: Sequence[str] = SPLITS, dataset: str | None = None) -> list[Job]:  # fmt: skip
    """The scenes of `points` as jobs of `preprocess_scenes.preprocess(fill_scene, ...)`.

    points: folders of `.pth` files by split, or of files alone (they are for testing). With several, the first has the
        scenes, and the others, of the same scenes, add labels: matterport_3d, matterport_3d_40, ...
    frames: the folder of pictures, None for points only.

    Raises: FileNotFoundError where there are no files of `splits`, ValueError for an unknown data set or split.
    """
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; {near_names(split, SPLITS)}")
    if frames is not None and not Path(frames).is_dir():
        raise FileNotFoundError(f"{frames}: no such folder of pictures; {near_files(frames)}")
    first, *others = map(Path, points)
    names = [dataset or guess_dataset(first), *map(guess_dataset, others)]
    suffix = SOURCES[Settings(names[0]).dataset].suffix
    if not first.is_dir():
        raise FileNotFoundError(f"{first}: no such folder; {near_files(first)}")
    flat = not any((first / split).is_dir() for split in SPLITS)
    found = [(path, split) for split in (("test",) if flat else splits)
             for path in sorted((first if flat else first / split).glob("*.pth"), key=lambda p: natural_key(p.stem))]  # fmt: skip
    if not found:
        raise FileNotFoundError(f"{first}: no .pth file in {', '.join(splits)} there")
    jobs = []
    for path, split in found:
        more = {SOURCES[name].asset: folder / path.relative_to(first) for name, folder in zip(names[1:], others, strict=True)}
        more = {asset: other for asset, other in more.items() if other.is_file()}  # sets of 40 and more are of some splits only
        target = Path(output_root) / split / path.stem.removesuffix(suffix)
        jobs.append(Job(target, (path, more, None if frames is None else Path(frames))))
    return jobs


def fill_scene(folder: Path, report: SceneReport, settings: Settings, path: Path, more: dict[str, Path], frames: Path | None) -> None:
    """Writes the points of the file `path`, labels of the files `more`, and frames. Raises: ValueError naming the file."""
    source = SOURCES[settings.dataset]
    coord, color, label = read_points(path)
    arrays = {"coord": coord}
    if color is not None:
        arrays["color"] = color
    if settings.normals:
        arrays["normal"] = estimate_normals(coord)
    if source.classes:
        arrays[source.asset] = _classes(path, label, source.classes)
    for asset, other in more.items():
        there, _, label = read_points(other)
        if not np.array_equal(there, coord):
            raise ValueError(f"{other}: has other points than {path} ({len(there)} and {len(coord)})")
        arrays[asset] = _classes(other, label, int(asset.removeprefix("segment")))
    save_arrays(folder, report, arrays)
    if frames is not None:
        _write_frames(folder, report, settings, frames, coord)


def read_points(path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, NDArray[np.int64]]:
    """(coord [N, 3] float32, color [N, 3] uint8 or None, label [N] int64 with -1 for none) of one `.pth`.

    Raises: ValueError where it holds no such three arrays.
    """
    content = load_plain(path)
    if not isinstance(content, list | tuple) or len(content) != 3:
        raise ValueError(f"{path}: wanted the three arrays coords, colors and labels, got {type(content).__name__}")
    coord, color, label = (np.asarray(part) for part in content)
    shapes = [list(part.shape) for part in (coord, color, label)]
    good = coord.ndim == 2 and coord.shape[1:] == (3,) and label.shape == coord.shape[:1] and color.shape in ((), coord.shape)
    if not good or any(part.dtype.kind not in "fiu" for part in (coord, color, label)):
        raise ValueError(f"{path}: wanted coords [N, 3], colors [N, 3] or 0 and labels [N], got shapes {shapes}")
    if color.ndim and not (np.abs(color) <= 1 + 1e-6).all():
        raise ValueError(f"{path}: wanted colours from -1 to 1, got {color.min():g} to {color.max():g}")
    color = None if not color.ndim else np.rint(np.clip((color.astype(np.float64) + 1) * 127.5, 0, 255)).astype(np.uint8)
    return coord.astype(np.float32), color, np.where(np.isin(label, NONE), IGNORE_INDEX, label).astype(np.int64)


def _classes(path: Path, label: NDArray, count: int) -> NDArray[np.int64]:
    if label.min() < IGNORE_INDEX or label.max() >= count:
        raise ValueError(f"{path}: wanted labels from 0 to {count - 1} or 255, got {label.min()} to {label.max()}; is it of another data set?")
    return label


# frames


@dataclass(frozen=True)
class Picture:
    """Where one picture lies. depth None: it has none. intrinsic [3, 3] for its size, or None
    where all of the scene share one."""

    name: str
    color: Path
    depth: Path | None
    pose: NDArray[np.float64]
    intrinsic: NDArray[np.float64] | None


def _write_frames(folder: Path, report: SceneReport, settings: Settings, frames: Path, coord: NDArray) -> None:
    """color/ depth/ pose/ intrinsic/ of a scene; files that need no change are linked where the disk can."""
    units = SOURCES[settings.dataset].depth_units
    if settings.dataset.startswith("matterport"):
        pictures = _of_building(frames / report.name.split("_")[0], report, coord, settings.nearest)
    elif settings.dataset == "nuscenes":
        pictures = _of_cameras(frames / report.split / report.name)
    else:
        pictures, shared = _of_sequence(frames / report.name), frames / "intrinsics.txt"
        intrinsic = _centred(check_intrinsic(read_matrix(shared)[:3, :3], str(shared)))
        for kind in ("color", "depth"):
            save_camera(folder, f"intrinsic_{kind}", None, intrinsic)
    for picture in pictures:
        absent = [kind for kind, path in (("colour", picture.color), ("depth", picture.depth)) if path is not None and not path.is_file()]
        if absent:
            report.note(f"pictures whose {' and '.join(absent)} is not there, left out")
            continue
        try:
            check_pose(picture.pose, picture.name)
        except ValueError:
            report.note("pictures with a pose that is none, left out")
            continue
        for kind in ("color", "depth") if picture.depth else ("color",):
            (folder / kind).mkdir(exist_ok=True)
        _link(picture.color, folder / "color" / f"{picture.name}.jpg")
        if picture.depth:
            target = folder / "depth" / f"{picture.name}.png"
            if units == 1000:
                _link(picture.depth, target)
            else:
                write_depth(target, read_depth(picture.depth, units))
        save_camera(folder, picture.name, picture.pose, picture.intrinsic)
        report.num_frames += 1


def _link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy of it where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _centred(intrinsic: NDArray) -> NDArray[np.float64]:
    """An intrinsic that has the centre of the first pixel at 0 as one that has it at 0.5."""
    result = np.array(intrinsic, np.float64)[:3, :3]
    result[:2, 2] += 0.5
    return result


def _files(folder: Path, kind: str, suffix: str) -> list[Path]:
    found = sorted((folder / kind).glob(f"*{suffix}"), key=lambda path: natural_key(path.stem))
    if not found:
        raise FileNotFoundError(f"{folder / kind}: no {suffix} file there; {near_files(folder)}")
    return found


def _of_sequence(folder: Path) -> list[Picture]:
    """ScanNet and Replica."""
    return [Picture(path.stem, path, folder / "depth" / f"{path.stem}.png", read_matrix(folder / "pose" / f"{path.stem}.txt"), None)
            for path in _files(folder, "color", ".jpg")]  # fmt: skip


def _of_building(folder: Path, report: SceneReport, coord: NDArray, nearest: int) -> list[Picture]:
    """Matterport3D: the pictures of a building that are a region's."""
    paths = {path.name: path for path in _files(folder, "color", ".jpg")}
    cameras = []
    for name, path in paths.items():
        pano, lens, yaw = path.stem.rsplit("_", 2)
        matrix = read_matrix(folder / "intrinsic" / f"{path.stem}.txt")[:3, :3]
        cameras.append(Camera(name, f"{pano}_d{lens[1:]}_{yaw}.png", matrix, read_matrix(folder / "pose" / f"{path.stem}.txt")))
    chosen, inside = choose_cameras(cameras, coord, nearest if report.split == "test" else 0)
    if not inside:
        report.note("scenes without a picture taken inside them" + (", which have the nearest ones" if chosen else ""))
    pictures = []
    for camera in chosen:
        intrinsic = camera.intrinsic.copy()
        intrinsic[1, 2] = image_size(paths[camera.color])[0] - 1 - intrinsic[1, 2]  # from the first row above
        check_intrinsic(intrinsic, str(folder / "intrinsic" / f"{Path(camera.color).stem}.txt"))
        pictures.append(Picture(Path(camera.color).stem, paths[camera.color], folder / "depth" / camera.depth, camera.pose, _centred(intrinsic)))
    return pictures


def _of_cameras(folder: Path) -> list[Picture]:
    """nuScenes: six cameras without depth."""
    pictures = []
    for path in _files(folder, "color", ".jpg"):
        pose, intrinsic = (np.asarray(load_array(folder / kind / f"{path.stem}.npy"), np.float64) for kind in ("pose", "K"))
        if pose.shape != (4, 4) or intrinsic.shape not in ((3, 3), (4, 4)):
            raise ValueError(f"{folder}: {path.stem}: wanted a 4x4 pose and a 3x3 K, got {pose.shape} and {intrinsic.shape}")
        intrinsic = check_intrinsic(intrinsic[:3, :3], str(folder / "K" / f"{path.stem}.npy"))
        pictures.append(Picture(path.stem, path, None, pose, _centred(intrinsic)))
    return pictures
