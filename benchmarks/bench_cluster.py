"""Ball query, clusters and mesh segmentation: ours beside brute force, scipy and plain Python, in milliseconds.

    POINTCEPT3M_DATA=... python benchmarks/bench_cluster.py [--threads 2] [--repeats 7] [--device cuda]

The cloud is ScanNet's scene0000_00, 81,369 points with NYU40 labels; clusters of 50 points and more, at a radius of
5 cm where nothing else is said. Peers:

- brute force: all pairs in torch, a few queries at a time so that the distances stay in the cache. Every 16th point is
  a query and the time is multiplied by 16 (on a GPU every point is one).
- scipy: cKDTree.query_pairs, then csgraph.connected_components of the pairs of one label. It runs on one thread.
- plain Python: the twin of segment_mesh, whose normals and weights are torch and whose joining is a loop.

"of limit" is the time that the compulsory bytes take at the measured copy bandwidth, over the time taken:
lists 12 N + 8 N + 4 nActive (coordinates read, start_len and idx written), clusters 12 N + 8 N + 8 sumNPoint
(coordinates and labels read, rows written), segment_mesh 12 V + 24 F + 8 V. None of the three can come near it: points
have to be sorted by cell, and edges by weight, before the work begins.
"""

import argparse
from collections.abc import Callable

import measure
import numpy as np
import torch
from torch import Tensor

from pointcept3m.ops.cluster import ballquery_batch_p, bfs_cluster, cluster_points
from pointcept3m.ops.segment_mesh import _segment_mesh_twin, segment_mesh

RADIUS, RADII = 0.05, (0.02, 0.03, 0.05, 0.1, 0.2)
MIN_POINTS = 50
MESH_SIDE = 200  # vertices along a side: 79,202 faces


def scene(device: str) -> tuple[Tensor, Tensor]:
    scan = np.load(measure.data_folder("scannet_scene0000_00") / "scene0000_00.npz")
    coord, label = torch.from_numpy(scan["coord"]).float(), torch.from_numpy(scan["semantic_nyu40"].astype(np.int64))
    return coord.to(device), label.to(device)


def sized(coord: Tensor, label: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """So many points of the same density: a part of the scene along x, or copies of it 20 m apart."""
    if num_points <= len(coord):
        order = coord[:, 0].argsort()[:num_points]
        return coord[order], label[order]
    copies = -(-num_points // len(coord))
    step = torch.tensor([20.0, 0, 0], device=coord.device)
    tiled = torch.cat([coord + i * step for i in range(copies)])
    return tiled[:num_points], label.repeat(copies)[:num_points]


def lists(coord: Tensor, radius: float) -> Callable[[], tuple[Tensor, Tensor]]:
    item = torch.zeros(len(coord), dtype=torch.int32, device=coord.device)
    ends = torch.tensor([0, len(coord)], dtype=torch.int32, device=coord.device)
    return lambda: ballquery_batch_p(coord, item, ends, radius, 50)


def lists_and_search(coord: Tensor, label: Tensor, radius: float) -> Callable[[], tuple[Tensor, Tensor]]:
    query = lists(coord, radius)
    return lambda: bfs_cluster(label, *query(), MIN_POINTS)


def fused(coord: Tensor, label: Tensor, radius: float) -> Callable[[], tuple[Tensor, Tensor]]:
    offset = torch.tensor([len(coord)], device=coord.device)
    return lambda: cluster_points(coord, offset, label, radius, MIN_POINTS)


def brute_force_ms(coord: Tensor, radius: float, device: str) -> float:
    """Lists of all points from all pairs."""
    axes = coord.T.contiguous()
    step, rows = (1, 2048) if device == "cuda" else (16, 4)
    queries = axes[:, ::step].contiguous()

    def run() -> list[Tensor]:
        found = []
        for start in range(0, queries.size(1), rows):
            distance = None
            for axis in range(3):
                delta = axes[axis] - queries[axis, start : start + rows, None]
                distance = delta.mul_(delta) if distance is None else distance.add_(delta.mul_(delta))
            found.append((distance < radius * radius).nonzero())
        return found

    return step * measure.median_ms(run, 1, device)


def scipy_clusters(coord: Tensor, label: Tensor, radius: float) -> Callable[[], np.ndarray] | None:
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
        from scipy.spatial import cKDTree
    except ImportError:
        return None
    points, labels = coord.cpu().numpy(), label.cpu().numpy()

    def run() -> np.ndarray:
        a, b = cKDTree(points).query_pairs(radius, output_type="ndarray").T
        same = labels[a] == labels[b]
        graph = coo_array((np.ones(same.sum(), np.int8), (a[same], b[same])), (len(points), len(points)))
        component = connected_components(graph, directed=False)[1]
        return np.flatnonzero(np.bincount(component)[component] >= MIN_POINTS)

    return run


def compare_with_peers(coord: Tensor, label: Tensor, options: argparse.Namespace, bandwidth: float) -> None:
    runs = {
        "lists": lists(coord, RADIUS),
        "lists + search": lists_and_search(coord, label, RADIUS),
        "fused": fused(coord, label, RADIUS),
    }
    idx, num_rows, n = runs["lists"]()[0], len(runs["fused"]()[0]), len(coord)
    ours = measure.compare(runs, options.repeats, options.device)
    brute = brute_force_ms(coord, RADIUS, options.device)
    tree, kd_ms = scipy_clusters(coord, label, RADIUS), float("nan")
    if tree is None:
        print("scipy is not installed: no k-d tree to compare with\n")
    else:
        assert len(tree()) == num_rows, "scipy finds other clusters"
        kd_ms = measure.median_ms(tree, 1)
    bytes_of = {
        "lists": 20 * n + 4 * idx.numel(),
        "lists + search": 20 * n + 8 * num_rows,
        "fused": 20 * n + 8 * num_rows,
    }
    rows = []
    for name, ms in ours.items():
        scipy_ms = float("nan") if name == "lists" else kd_ms  # it finds clusters, not lists
        limit = f"{100 * bytes_of[name] / bandwidth * 1e3 / ms:.1f} %"
        rows.append([name, ms, brute, brute / ms, scipy_ms, scipy_ms / ms, limit])
    print(f"{n:,} points, radius {RADIUS} m, {idx.numel() / n:.1f} neighbours. Brute force makes the lists only.\n")
    measure.table(["", "ours", "brute force", "ratio", "scipy", "ratio", "of limit"], rows)


def growth(coord: Tensor, label: Tensor, options: argparse.Namespace) -> None:
    def times(coord: Tensor, label: Tensor, radius: float, repeats: int) -> list[float]:
        runs = {
            "a": lists(coord, radius),
            "b": lists_and_search(coord, label, radius),
            "c": fused(coord, label, radius),
        }
        return list(measure.compare(runs, repeats, options.device).values())

    few = max(1, options.repeats // 2)
    rows = []
    for num_points in (10_000, 100_000, 1_000_000):
        part = sized(coord, label, num_points)
        rows.append([f"{num_points:,}", *times(*part, RADIUS, 1 if num_points == 1_000_000 else few)])
    measure.table(["points", "lists", "lists + search", "fused"], rows)
    rows = []
    for radius in RADII:
        neighbors = lists(coord, radius)()[0].numel() / len(coord)
        rows.append([radius, neighbors, *times(coord, label, radius, few)])
    measure.table(["radius, m", "neighbours", "lists", "lists + search", "fused"], rows)
    if options.device == "cpu":
        rows = []
        for threads in range(1, options.threads + 1):
            torch.set_num_threads(threads)
            rows.append([threads, *times(coord, label, RADIUS, few)])
        torch.set_num_threads(options.threads)
        measure.table(["threads", "lists", "lists + search", "fused"], rows)


def mesh(side: int) -> tuple[Tensor, Tensor]:
    """Rolling ground with steps in it, of side * side vertices."""
    x, y = torch.meshgrid(torch.arange(side) * 0.03, torch.arange(side) * 0.03, indexing="ij")
    height = 0.2 * torch.sin(x) * torch.cos(1.3 * y) + 0.3 * torch.floor(x / 1.7) + 0.002 * torch.rand(side, side)
    at = torch.arange(side * side).view(side, side)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, :-1], at[1:, 1:]
    faces = torch.cat([torch.stack([a, c, b], 2).view(-1, 3), torch.stack([b, c, d], 2).view(-1, 3)])
    return torch.stack([x, y, height], 2).view(-1, 3), faces


def compare_segmentation(options: argparse.Namespace, bandwidth: float) -> None:
    rows = []
    for side in (MESH_SIDE // 4, MESH_SIDE, 3 * MESH_SIDE):
        vertices, faces = mesh(side)
        ms = measure.median_ms(lambda v=vertices, f=faces: segment_mesh(v, f), options.repeats)
        python = float("nan")
        if side <= MESH_SIDE:
            python = measure.median_ms(lambda v=vertices, f=faces: _segment_mesh_twin(v, f, 0.01, 20), 1)
        limit = (20 * len(vertices) + 24 * len(faces)) / bandwidth * 1e3
        rows.append(
            [
                f"{len(faces):,}",
                int(segment_mesh(vertices, faces).max()) + 1,
                ms,
                python,
                python / ms,
                f"{100 * limit / ms:.1f} %",
            ]
        )
    measure.table(["faces", "segments", "segment_mesh", "plain Python", "ratio", "of limit"], rows)


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    measure.start(options)
    bandwidth = measure.copy_bandwidth(options.device, 3)
    print(f"copy {bandwidth / 1e9:.1f} GB/s\n")
    coord, label = scene(options.device)
    compare_with_peers(coord, label, options, bandwidth)
    growth(coord, label, options)
    compare_segmentation(options, bandwidth if options.device == "cpu" else measure.copy_bandwidth("cpu", 3))


if __name__ == "__main__":
    main()
