"""Voxelization: ops.voxelize and the GridSample transform beside Pointcept's numpy way and torch.unique.

    python benchmarks/bench_voxelize.py [--threads 2] [--repeats 7] [--device cuda]

Clouds: a labelled ScanNet scan (81,369 points, where POINTCEPT3M_DATA holds it) and generated surfaces of rooms in
random order, about two points in a cell of 2 cm. Peers get the same points:

numpy         Pointcept's GridSample written anew from its description: cells by floor, an FNV-1a hash of each, argsort,
              numpy.unique with inverse and counts, one draw modulo the counts. It numbers cells by their hash and does
              not notice a collision. numpy sorts on one thread.
torch.unique  rows of cells, with inverse and counts. It gives neither order nor start, so it does less.

"limit" is the time that the compulsory bytes take at the machine's measured copy bandwidth (read and written):
N (12 coord + 24 grid_coord + 8 inverse + 8 order) + V (8 counts + 8 start). The fraction is limit / ours. A sort has to
move the points at least once more, so 1 cannot be reached.
"""

import argparse

import measure
import numpy as np
import torch

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms import sampling  # noqa: F401  registers GridSample
from pointcept3m.ops.voxelize import voxelize

GRID = 0.02
COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000)
TRANSFORM_COUNT = 100_000
FNV_START, FNV_PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)


def surface(count: int) -> np.ndarray:
    """float32 [count, 3]: points in random order on floor, walls and boxes of a room that grows with their number."""
    random = np.random.default_rng(0)
    side = np.sqrt(count * GRID**2 / 2 / 2.5)  # metres; the surfaces together are about 2.5 floors
    kind = random.integers(0, 5, count)
    u, v = random.uniform(0, 1, (2, count))
    wall = np.full(count, side)
    coord = np.where(
        (kind < 2)[:, None],
        np.column_stack([u * side, v * side, 0.02 * np.sin(9 * u * side)]),
        np.where((kind < 4)[:, None], np.column_stack([u * side, (kind == 3) * wall, 0.4 * v * side]),
                 np.column_stack([0.5 * side + 0 * u, u * side, 0.4 * v * side])),
    )  # fmt: skip
    return (coord + random.normal(0, 0.003, coord.shape)).astype(np.float32)


def clouds() -> dict[str, np.ndarray]:
    made = {f"surfaces, {count:,}": surface(count) for count in COUNTS}
    try:
        path = measure.data_folder("scannet_scene0000_00") / "scene0000_00.npz"
    except SystemExit as reason:
        print(f"without the ScanNet scan: {reason}\n")
        return made
    with np.load(path) as arrays:
        return {"ScanNet scene0000_00": arrays["coord"].astype(np.float32), **made}


def numpy_cells(coord: np.ndarray, grid_size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(grid_coord, order, inverse of the sorted keys, counts) as Pointcept finds them."""
    cells = np.floor(coord / np.array(grid_size)).astype(int)
    cells -= cells.min(axis=0)
    key = np.full(len(cells), FNV_START)
    for axis in range(3):
        key = np.bitwise_xor(key * FNV_PRIME, cells[:, axis].astype(np.uint64))
    order = np.argsort(key)
    _, inverse, counts = np.unique(key[order], return_inverse=True, return_counts=True)
    return cells, order, inverse, counts


def numpy_grid_sample(data: dict, grid_size: float) -> dict:
    """The whole transform in mode "train", with grid_coord and inverse."""
    cells, order, of_sorted, counts = numpy_cells(data["coord"], grid_size)
    starts = np.cumsum(np.insert(counts, 0, 0)[:-1])
    picked = order[starts + np.random.randint(0, counts.max(), counts.size) % counts]
    inverse = np.zeros_like(of_sorted)
    inverse[order] = of_sorted
    return {**{key: value[picked] for key, value in data.items()}, "grid_coord": cells[picked], "inverse": inverse}


def torch_unique(coord: torch.Tensor, grid_size: torch.Tensor) -> tuple[torch.Tensor, ...]:
    cells = (coord.double() / grid_size).floor().long()
    return torch.unique(cells - cells.amin(dim=0), dim=0, return_inverse=True, return_counts=True)


def compare_ops(options: argparse.Namespace, bandwidth: float) -> None:
    rows = []
    for name, points in clouds().items():
        coord = torch.from_numpy(points).to(options.device)
        size = torch.full((3,), GRID, dtype=torch.float64, device=options.device)
        runs = {"ours": lambda c=coord: voxelize(c, GRID)}
        if options.device == "cpu":
            runs["numpy"] = lambda p=points: numpy_cells(p, GRID)
        times = measure.compare(runs, options.repeats, options.device)
        few = 2 if options.device == "cpu" else options.repeats
        times["torch"] = measure.median_ms(lambda c=coord, s=size: torch_unique(c, s), few, options.device)
        voxels = voxelize(coord, GRID)
        count, num_voxels = len(points), len(voxels.counts)
        limit = (52 * count + 16 * num_voxels) / bandwidth * 1e3
        ours, peer = times["ours"], times.get("numpy", float("nan"))
        ratios = [peer, peer / ours, times["torch"], times["torch"] / ours]
        rows.append([name, num_voxels, ours, 1e6 * ours / count, *ratios, limit, limit / ours])
    columns = [
        "cloud",
        "voxels",
        "ours ms",
        "ours ns/point",
        "numpy ms",
        "ratio",
        "torch.unique ms",
        "ratio",
        "limit ms",
        "fraction",
    ]
    measure.table(columns, rows)


def compare_threads(options: argparse.Namespace) -> None:
    rows = []
    for count in (100_000, 1_000_000):
        coord = torch.from_numpy(surface(count))
        alone = None
        for threads in range(1, options.threads + 1):
            torch.set_num_threads(threads)
            taken = measure.median_ms(lambda c=coord: voxelize(c, GRID), options.repeats)
            alone = alone or taken
            rows.append([f"{count:,}", threads, taken, alone / taken])
    torch.set_num_threads(options.threads)
    measure.table(["points", "threads", "ours ms", "times as fast as 1"], rows)


def compare_transforms(options: argparse.Namespace) -> None:
    count = TRANSFORM_COUNT
    random = np.random.default_rng(1)
    data = {
        "coord": surface(count),
        "color": random.random((count, 3), dtype=np.float32) * 255,
        "normal": random.random((count, 3), dtype=np.float32),
        "segment": random.integers(0, 20, count),
    }
    ours = TRANSFORMS.build(dict(type="GridSample", grid_size=GRID, return_grid_coord=True, return_inverse=True))
    rows = []
    for threads in sorted({1, options.threads}):
        torch.set_num_threads(threads)
        runs = {"ours": lambda: ours(dict(data)), "numpy": lambda: numpy_grid_sample(dict(data), GRID)}
        times = measure.compare(runs, 3 * options.repeats)
        rows.append([f"{count:,}", threads, times["ours"], times["numpy"], times["numpy"] / times["ours"]])
    measure.table(["GridSample, mode train: points", "threads", "ours ms", "numpy ms", "ratio"], rows)


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    measure.start(options)
    bandwidth = measure.copy_bandwidth(options.device)
    print(f"copy {bandwidth / 1e9:.1f} GB/s, grid of {GRID} m\n")
    compare_ops(options, bandwidth)
    if options.device == "cpu":
        compare_threads(options)
        compare_transforms(options)


if __name__ == "__main__":
    main()
