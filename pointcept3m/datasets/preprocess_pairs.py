"""Posed depth frames into clouds, one a frame, and the list of how much each two of a scene overlap.

Source: PointContrast (Xie et al., ECCV 2020), Sec. 3: frames of ScanNet, pairs with at least 30 % overlap. The measure
is that of its published script; the layout of the files is Pointcept's `scannet_pair`.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.fusion import DepthFrame, FusionSettings, back_project
from pointcept3m.datasets.readers.rgbd import RGBDFolder, detect_kind, open_rgbd
from pointcept3m.datasets.scannet_pair import read_overlap
from pointcept3m.ops import knn_query, scatter_mean, voxelize
from pointcept3m.utils.files import atomic_folder
from pointcept3m.utils.processes import as_done

LISTING, SETTINGS = "overlap.txt", "settings.json"
RADIUS = 1.5  # in overlap voxels: how near a point's counterpart must be


@dataclass(frozen=True)
class PairSettings:
    """How frames become pairs. Lengths in metres.

    stride: every n-th frame is taken (PointContrast: 25 of the raw recording). voxel: one point is kept of each cell
    of a frame, 0 keeps all. overlap_voxel: grid on which overlap is measured. min_depth, max_depth: range believed.
    """

    stride: int = 1
    voxel: float = 0.01
    overlap_voxel: float = 0.05
    min_depth: float = 0.3
    max_depth: float = 4.0

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        if self.voxel < 0 or not self.overlap_voxel > 0:
            raise ValueError(f"wanted voxel >= 0 and overlap_voxel > 0, got {self.voxel} and {self.overlap_voxel}")


@dataclass(frozen=True)
class PairReport:
    """What came of one scene: frames with points, frames left out, pairs, and those that overlap by more than 30 %."""

    name: str
    num_frames: int
    num_empty: int
    num_pairs: int
    num_overlapping: int


def find_frame_folders(roots: Sequence[str | Path]) -> list[Path]:
    """The folders of posed RGB-D frames: each root itself, or those right below it, sorted.

    Raises: FileNotFoundError where a root has none; ValueError where two have the same name.
    """
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        folders = [path for path in (root, *sorted(root.iterdir())) if path.is_dir() and _has_frames(path)]
        if not folders:
            raise FileNotFoundError(
                f"{root}: neither it nor the folders in it hold posed RGB-D frames (color/ depth/ pose/)"
            )
        for folder in folders:
            if folder.name in found:
                raise ValueError(f"two scenes are called {folder.name}: {found[folder.name]} and {folder}")
            found[folder.name] = folder
    return list(found.values())


def preprocess_pairs(
    roots: Sequence[str | Path],
    output_root: str | Path,
    settings: PairSettings | None = None,
    workers: int = 0,
    progress: Callable[[int, int, PairReport], None] | None = None,
) -> list[PairReport]:
    """Writes `<output_root>/<scene>/pcd/` for every scene below `roots`; returns a report on each, by name.

    A scene that is there, whole and with the same settings, is left as it is, and so is one that Pointcept's script
    wrote. workers: processes; 0 works in this one. progress: called with (scenes done, scenes in all, report).
    Raises: as `write_pairs`; scenes finished by then stay.
    """
    settings, output_root = settings or PairSettings(), Path(output_root)
    folders = find_frame_folders(roots)
    jobs = [(folder, output_root / folder.name, settings) for folder in folders]
    reports: list[PairReport] = []
    for report in as_done(write_pairs, jobs, workers):
        reports.append(report)
        if progress:
            progress(len(reports), len(jobs), report)
    return sorted(reports, key=lambda report: report.name)


def write_pairs(folder: Path, target: Path, settings: PairSettings) -> PairReport:
    """Writes one scene: `target`/pcd/ with <frame>.npz (coord, color, normal), overlap.txt and the settings, all or nothing.

    Frames whose pose is no rigid motion, or without a believed depth, are left out.
    Raises: OSError or ValueError where a picture is damaged, naming the file.
    """
    frames = open_rgbd(folder, on_bad_frame="skip")
    chosen = frames.frames[:: settings.stride]
    pcd = target / "pcd"
    if _is_there(pcd, settings):
        shares = [share for *_, share in read_overlap(pcd / LISTING)]
        present = len(list(pcd.glob("*.npz")))
        return PairReport(folder.name, present, len(chosen) - present, len(shares), sum(share > 0.3 for share in shares))
    clouds = {}
    with atomic_folder(pcd) as part:
        for frame in chosen:
            cloud = frame_cloud(*frames.read(frame), frame.pose, frames, settings)
            if len(cloud["coord"]):
                np.savez(part / f"{frame.name}.npz", **cloud)
                clouds[frame.name] = cloud["coord"]
        share = overlaps(list(clouds.values()), settings.overlap_voxel)
        names = [f"/{target.name}/pcd/{name}.npz" for name in clouds]
        pairs = list(itertools.combinations(range(len(names)), 2))
        (part / LISTING).write_text("".join(f"{names[i]} {names[j]} {share[i, j]:.6f}\n" for i, j in pairs))
        (part / SETTINGS).write_text(json.dumps(asdict(settings), indent=1))
    overlapping = sum(bool(share[i, j] > 0.3) for i, j in pairs)
    return PairReport(folder.name, len(clouds), len(chosen) - len(clouds), len(pairs), overlapping)


def _is_there(pcd: Path, settings: PairSettings) -> bool:
    """Whether a scene is whole, with these settings or without a word about them, as Pointcept's script leaves it."""
    known = pcd / SETTINGS
    return (pcd / LISTING).is_file() and (not known.is_file() or json.loads(known.read_text()) == asdict(settings))


def frame_cloud(
    color: NDArray[np.uint8], depth: NDArray[np.float32], pose: NDArray, folder: RGBDFolder, settings: PairSettings
) -> dict[str, NDArray]:
    """A frame's believed pixels: coord [N, 3] float32 in the world, color [N, 3] uint8, normal [N, 3] float32."""
    frame = DepthFrame(color, depth, folder.color_intrinsic, folder.depth_intrinsic, pose)
    rows = back_project(frame, FusionSettings(min_depth=settings.min_depth, max_depth=settings.max_depth))
    if settings.voxel and len(rows):
        cells = voxelize(torch.from_numpy(np.ascontiguousarray(rows[:, :3])), settings.voxel)
        rows = rows[np.sort(cells.order[cells.start[:-1]].numpy())]
    return {
        "coord": rows[:, :3].astype(np.float32),
        "color": np.clip(np.rint(rows[:, 3:6] * 255), 0, 255).astype(np.uint8),
        "normal": rows[:, 6:9].astype(np.float32),
    }


def overlaps(clouds: Sequence[NDArray], voxel: float) -> NDArray[np.float64]:
    """How much each two of F clouds overlap: [F, F], symmetric, 1 on the diagonal.

    Clouds [N, 3] are reduced to the centroids of cells of `voxel` metres. Of cloud a, the share of centroids with one
    of b within 1.5 voxels is taken, and of the two shares of a pair the greater.
    """
    reduced = [_centroids(cloud, voxel) for cloud in clouds]
    share = np.eye(len(clouds))
    for i, target in enumerate(reduced):
        # Boxes that are farther apart than the radius cannot overlap; of long sequences, most are.
        low, high = target.amin(0) - RADIUS * voxel, target.amax(0) + RADIUS * voxel
        near = [
            j
            for j, other in enumerate(reduced)
            if j != i and bool(((other.amax(0) >= low) & (other.amin(0) <= high)).all())
        ]
        if not near:
            continue
        queries = torch.cat([reduced[j] for j in near])
        counts = [len(reduced[j]) for j in near]
        _, distance = knn_query(1, target, torch.tensor([len(target)]), queries, torch.tensor([len(queries)]))
        for j, found in zip(near, (distance[:, 0] <= RADIUS * voxel).split(counts), strict=True):
            share[i, j] = float(found.double().mean())
    return np.maximum(share, share.T)


def _centroids(cloud: NDArray, voxel: float) -> torch.Tensor:
    coord = torch.from_numpy(np.ascontiguousarray(cloud, dtype=np.float64))
    cells = voxelize(coord, voxel)
    return scatter_mean(coord, cells.inverse, dim=0, dim_size=len(cells.counts))


def _has_frames(folder: Path) -> bool:
    try:
        detect_kind(folder)
    except ValueError:
        return False
    return True
