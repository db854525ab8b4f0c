"""Projection and fusion of 2D features: `fuse_views` beside the frame-by-frame way of OpenScene and CUA-O3D.

    POINTCEPT3M_DATA=... python benchmarks/bench_fuse.py [--threads 2] [--repeats 3] [--only room,scannet]

The peer, written anew, does for every frame what their extraction scripts do: all N points projected in numpy and float64,
the depth test, the map enlarged to the size of the image (bicubic, as their DINOv2 and Stable Diffusion maps are), the
features of all N points taken out of it, and those of the visible ones added to float32 sums. "careful" is the same by
somebody who enlarges bilinearly and takes out the features of visible points only.

Scenes: a room of ours, rendered at 240 x 320; 27 ScanNet frames and 100 7-Scenes frames with the clouds fused from them; and
two made up of boxes, at the sizes of ScanNet's scans, with exact depth. Maps are random: 17 x 23 is DINOv2 at 238 x 322, 120 x
160 half the image. They are float32 with channels first, as they leave a network; with channels last they need not be
copied, which the last table shows.

Runs take turns. "ms a view" is the median by the clock; ours includes the sums' memory, made anew for every call with all
views, while the peers, timed on a few of the views, get theirs ready. The ratio of processor time is the one that other work
on the machine disturbs least. Before anything is timed, sums are compared: counts must be those of the peer but for
points whose pixel is decided by rounding.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import measure
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pointcept3m.datasets.fusion import DepthFrame, fuse_frames
from pointcept3m.datasets.readers.rgbd import open_rgbd
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.layout import generate_room
from pointcept3m.datasets.rooms.render import render_frames
from pointcept3m.datasets.rooms.scan import scan_cloud
from pointcept3m.ops.view_fusion import fuse_views, visible_points
from pointcept3m.structures.camera import pixel_rays, resize_nearest, scale_intrinsic

SIZE = (240, 320)
TOLERANCE, BORDER = 0.25, 10
MAPS = ((512, 120, 160), (1024, 17, 23), (768, 30, 40), (48, 30, 40))
WIDEST = (3200, 30, 40)  # Stable Diffusion's three levels; enlarged, an image of them takes a gigabyte


class Views(NamedTuple):
    """A scene: coord [N, 3], and V views of `SIZE`: intrinsic [V, 3, 3], extrinsic [V, 4, 4], depth [V, H, W]."""

    coord: Tensor
    intrinsic: Tensor
    extrinsic: Tensor
    depth: Tensor

    def first(self, count: int) -> "Views":
        """The first `count` of the views, if there are more, taken evenly."""
        step = max(1, len(self.depth) // count)
        return Views(self.coord, *(value[::step][:count].contiguous() for value in self[1:]))


def views_of(coord: np.ndarray, intrinsic: np.ndarray, poses: np.ndarray, depth: np.ndarray) -> Views:
    extrinsic = np.linalg.inv(poses)
    intrinsic = np.broadcast_to(intrinsic, (len(poses), 3, 3)).copy()
    return Views(torch.from_numpy(coord).float(), *map(torch.from_numpy, (intrinsic, extrinsic, depth.astype(np.float32))))


def room() -> Views:
    layout = generate_room(0, "train")
    caster = RayCaster(Surface.of(layout))
    frames = render_frames(layout, 24, SIZE, caster)
    cloud = scan_cloud(layout, frames, caster, 0.025)
    return views_of(cloud.coord, frames.intrinsic, frames.pose, frames.depth / 1000)


def real(name: str) -> Views:
    """Frames of a folder, and the cloud that is fused from them at 2 cm."""
    folder = open_rgbd(measure.data_folder(name))
    frames, depth = [], []
    for record in folder.frames:
        color, metres = folder.read(record)
        frames.append(DepthFrame(color, metres, folder.color_intrinsic, folder.depth_intrinsic, record.pose))
        depth.append(resize_nearest(metres, SIZE))
    intrinsic = scale_intrinsic(folder.depth_intrinsic, folder.depth_size, SIZE)
    return views_of(fuse_frames(frames).coord, intrinsic, np.stack([f.pose for f in frames]), np.stack(depth))


def boxes(num_points: int, num_views: int) -> Views:
    """A room of 7 x 6 x 2.7 m with 24 boxes in it, points on all surfaces, and views from along the walls across it."""
    rng = np.random.default_rng(0)
    size = rng.uniform(0.3, 1.2, (24, 3))
    low = np.column_stack([rng.uniform(0, 6, 24), rng.uniform(0, 5, 24), np.zeros(24)])
    low, high = np.vstack([np.zeros(3), low]), np.vstack([[7, 6, 2.7], low + size])
    edges = high - low
    area = np.stack([edges[:, (d + 1) % 3] * edges[:, (d + 2) % 3] for d in range(3)], axis=1).repeat(2, axis=1)
    face = rng.choice(area.size, num_points, p=area.ravel() / area.sum())
    box, axis, side = face // 6, face % 6 // 2, face % 2
    coord = low[box] + rng.random((num_points, 3)) * edges[box]
    coord[np.arange(num_points), axis] = np.where(side, high[box, axis], low[box, axis])
    intrinsic = np.array([[288.9, 0, 160], [0, 288.9, 120], [0, 0, 1]])
    poses, depth = [], []
    for k in range(num_views):
        turn = 2 * np.pi * (3 * k / num_views + 0.02 * rng.standard_normal())
        forward = np.array([np.cos(turn), np.sin(turn), -0.35 + 0.15 * rng.standard_normal()])
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = [3.5 - 2.8 * np.cos(turn), 3 - 2.3 * np.sin(turn), 1.6]
        poses.append(pose)
        depth.append(cast(low, high, pose, intrinsic))
    return views_of(coord, intrinsic, np.stack(poses), np.stack(depth))


def cast(low: np.ndarray, high: np.ndarray, pose: np.ndarray, intrinsic: np.ndarray) -> np.ndarray:
    """Depth [H, W] of boxes, the first of them seen from within: where a ray enters the nearest one, or leaves the first."""
    rays = (pixel_rays(SIZE, intrinsic) @ pose[:3, :3].T).reshape(-1, 1, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (low - pose[:3, 3]) / rays, (high - pose[:3, 3]) / rays
    enter, leave = np.minimum(one, other).max(axis=2), np.maximum(one, other).min(axis=2)
    hit = np.where((enter < leave) & (enter > 0), enter, np.inf)
    return np.minimum(hit[:, 1:].min(axis=1), leave[:, 0]).reshape(SIZE)


SCENES: dict[str, Callable[[], Views]] = {
    "room": room,
    "rgbd_scannet": lambda: real("rgbd_scannet_scene0014_00"),
    "rgbd_7scenes": lambda: real("rgbd_7scenes"),
    "scannet": lambda: boxes(160_000, 100),
}

Sums = tuple[Tensor, Tensor]  # total [N, C], count [N]


def sums_of(views: Views, channels: int) -> Sums:
    return torch.zeros(len(views.coord), channels), torch.zeros(len(views.coord), dtype=torch.int32)


def ours(views: Views, maps: Tensor, sums: Sums | None = None) -> Sums:
    total, count = sums or sums_of(views, maps.size(1))
    fuse_views(total, count, views.coord, maps, views.intrinsic, views.extrinsic, SIZE, views.depth, TOLERANCE, BORDER)
    return total, count


def project_frame(coord: np.ndarray, intrinsic: np.ndarray, extrinsic: np.ndarray, depth: np.ndarray) -> tuple:
    """(row, column, visible) of all points in one frame, in the release's manner: 4 x N homogeneous float64."""
    points = extrinsic @ np.concatenate([coord, np.ones([len(coord), 1])], axis=1).T
    with np.errstate(divide="ignore", invalid="ignore"):
        column = np.round(points[0] * intrinsic[0, 0] / points[2] + intrinsic[0, 2] - 0.5)
        row = np.round(points[1] * intrinsic[1, 1] / points[2] + intrinsic[1, 2] - 0.5)
    inside = (column >= BORDER) & (row >= BORDER) & (column < SIZE[1] - BORDER) & (row < SIZE[0] - BORDER)
    inside &= points[2] > 0
    row, column = np.where(inside, row, 0).astype(np.int64), np.where(inside, column, 0).astype(np.int64)
    there = depth[row, column]
    return row, column, inside & (there > 0) & (np.abs(there - points[2]) <= TOLERANCE * there)


def frame_by_frame(views: Views, maps: Tensor, sums: Sums, careful: bool = False) -> Sums:
    """Adds the views to the sums, in place, and returns them."""
    total, count = sums
    coord = views.coord.numpy().astype(np.float64)
    for k in range(len(maps)):
        row, column, seen = map(torch.from_numpy, project_frame(coord, *(value[k].numpy() for value in views[1:])))
        enlarged = F.interpolate(maps[k : k + 1], SIZE, mode="bilinear" if careful else "bicubic")[0]
        count[seen] += 1
        if careful:
            total[seen] += enlarged[:, row[seen], column[seen]].t()
        else:
            feat = enlarged[:, row, column].permute(1, 0)
            total[seen] += feat[seen]
    return total, count


def check(views: Views) -> None:
    """Both see the same, and sum up the same but for the half pixel by which the peer rounds."""
    maps = torch.randn(len(views.depth), 48, 17, 23)
    (total, count), (other, other_count) = ours(views, maps), frame_by_frame(views, maps, sums_of(views, 48), careful=True)
    apart = (count != other_count).float().mean().item()
    same = count == other_count
    cosine = F.cosine_similarity(total[same & (count > 0)], other[same & (count > 0)]).mean().item()
    if apart > 1e-3 or cosine < 0.99:
        raise SystemExit(f"ours and the peer disagree: counts of {apart:.2%} of the points, mean cosine {cosine:.4f}")


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each run, by the clock and of the processor."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - busy))
    return {
        name: tuple(1e3 * statistics.median(column) for column in zip(*taken, strict=True)) for name, taken in times.items()
    }


def compare_ways(views: Views, shape: tuple[int, int, int], peer_views: int, repeats: int) -> list[object]:
    """A row: ours on all views, sums made and filled; the peers on some of them, their sums made before."""
    maps = torch.randn(len(views.depth), *shape)
    some, step = views.first(peer_views), max(1, len(maps) // peer_views)
    some_maps, sums = maps[::step][:peer_views].contiguous(), sums_of(views, shape[0])
    runs = {
        "ours": lambda: ours(views, maps),
        "release": lambda: frame_by_frame(some, some_maps, sums),
        "careful": lambda: frame_by_frame(some, some_maps, sums, careful=True),
    }
    counts = {"ours": len(maps), "release": len(some_maps), "careful": len(some_maps)}
    taken = take_turns(runs, repeats)
    wall, busy = ({key: value[i] / counts[key] for key, value in taken.items()} for i in (0, 1))
    return [" x ".join(map(str, shape)), wall["ours"], wall["release"], wall["careful"], wall["release"] / wall["ours"],
            busy["release"] / busy["ours"], wall["careful"] / wall["ours"], busy["careful"] / busy["ours"]]  # fmt: skip


def fusion_table(options: argparse.Namespace, scenes: dict[str, Views]) -> None:
    rows = []
    for name, scene in scenes.items():
        views = scene.first(options.views)
        seen = visible_points(*views[:3], SIZE, views.depth, TOLERANCE, BORDER)[1].float().mean().item()
        check(views)
        what = f"{name}: {len(views.coord):,} points, {len(views.depth)} views, {seen:.0%} visible"
        for shape in MAPS:
            rows.append([what, *compare_ways(views, shape, options.peer_views, options.repeats)])
        if name in options.wide.split(","):
            rows.append([what, *compare_ways(views, WIDEST, min(2, options.peer_views), options.repeats)])
    measure.table(["scene", "maps", "ours, ms a view", "release", "careful", "ratio", "of processor time",
                   "ratio to careful", "of processor time"], rows)  # fmt: skip


def parts_table(options: argparse.Namespace, scenes: dict[str, Views]) -> None:
    """What the time of ours goes to, sums made before: projection and tests alone, maps with channels last, few views a call."""
    rows = []
    for name, scene in scenes.items():
        views = scene.first(options.views)
        maps = torch.randn(len(views.depth), 768, 30, 40)
        last, narrow = maps.contiguous(memory_format=torch.channels_last), maps[:, :0].contiguous()
        sums = sums_of(views, 768)
        singles = [Views(views.coord, *(value[k : k + 1] for value in views[1:])) for k in range(len(maps))]
        runs = {
            "project": lambda: visible_points(*views[:3], SIZE, views.depth, TOLERANCE, BORDER),  # noqa: B023
            "numpy": lambda: [project_frame(views.coord.numpy().astype(np.float64), *(x[k].numpy() for x in views[1:])) for k in range(len(maps))],  # noqa: B023
            "find": lambda: ours(views, narrow),  # noqa: B023
            "all": lambda: ours(views, maps, sums),  # noqa: B023
            "last": lambda: ours(views, last, sums),  # noqa: B023
            "single": lambda: [ours(one, last[k : k + 1], sums) for k, one in enumerate(singles)],  # noqa: B023
        }
        taken = take_turns(runs, options.repeats)
        rows.append([name, *(wall / len(maps) for wall, _ in taken.values())])
    measure.table(["768 x 30 x 40, ms a view", "visible_points", "numpy's projection", "fuse_views with no channels", "with all",
                   "channels last", "one view a call"], rows)  # fmt: skip


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--views", type=int, default=20, help="views of each scene, at most")
    parser.add_argument("--only", default=",".join(SCENES), help="scenes, by name")
    parser.add_argument("--wide", default="scannet", help="scenes that are also fused with 3,200 channels")
    parser.add_argument("--peer-views", type=int, default=5, help="views that the peers are timed on")
    options = parser.parse_args()
    measure.start(options)
    scenes = {name: SCENES[name]() for name in options.only.split(",")}
    print(f"copy bandwidth {measure.copy_bandwidth() / 1e9:.1f} GB/s\n")
    with torch.inference_mode():
        fusion_table(options, scenes)
        parts_table(options, scenes)


if __name__ == "__main__":
    main()
