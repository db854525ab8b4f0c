"""Neighbours, sampling, grouping and interpolation beside what a user can install or write, as Markdown tables.

    python benchmarks/bench_neighbours.py [--threads 2] [--repeats 5] [--device cuda]

Data: the ScanNet scan scene0000_00 (81,369 points), spconv's LiDAR sweep (198,130), and for growth points drawn evenly
from a scan of rooms' size. Peers: scipy's cKDTree (its tree is built anew each time, as ours is; `workers` as many as
our threads), torch_cluster where it is installed, and plain torch (chunks of cdist and topk; a loop over samples).

"of limit" is the time that the bytes which must be moved take at the measured bandwidth of a copy, divided by ours, for
N points, M queries or samples, k neighbours and C float32 channels:

    knn, ball       12 N + 12 M + 8 M k         (coordinates once; a row and a distance for each neighbour)
    sampling        12 N + 4 M
    grouping        2 * 4 M k C + 4 M k, backward 4 M k C + 4 N C + 4 M k
    interpolation   4 M k C + 4 M C + 8 M k, backward 4 M k C + 4 N C + 8 M k

Searches stay far below theirs on a CPU: comparing with the points around a query is work that this bound leaves out.
"""

import argparse
from collections.abc import Callable

import measure
import numpy as np
import torch
from torch import Tensor

from pointcept3m.ops.grouping import grouping, interpolation
from pointcept3m.ops.neighbours import ball_query, knn_query
from pointcept3m.ops.sampling import farthest_point_sampling

try:
    from scipy.spatial import cKDTree
except ImportError:
    cKDTree = None
try:
    import torch_cluster
except ImportError:
    torch_cluster = None

Run = Callable[[], object]
K, RADIUS = 16, 0.1


def ends(*counts: int, device: str) -> Tensor:
    return torch.tensor(counts, device=device).cumsum(0)


def clouds(device: str) -> dict[str, Tensor]:
    scan = np.load(measure.data_folder("scannet_scene0000_00") / "scene0000_00.npz")["coord"]
    sweep = np.load(measure.data_folder("spconv_cloud") / "benchmark-pc.npz")["pc"]
    shuffled = np.random.default_rng(0).permutation(sweep)[:100_000]
    found = {"scan": scan, "sweep": sweep, "sweep, 100k in random order": shuffled}
    return {name: torch.from_numpy(np.ascontiguousarray(c, dtype=np.float32)).to(device) for name, c in found.items()}


def grown(scan: Tensor, count: int) -> Tensor:
    """`count` points of the surfaces of a scan: its own, drawn with repetition, and moved by 5 mm or so."""
    rows = torch.randint(0, len(scan), (count,)).to(scan.device)
    return scan[rows] + 0.005 * torch.randn(count, 3).to(scan.device)


def brute_knn(k: int, coord: Tensor, queries: Tensor) -> list:
    return [torch.cdist(part, coord).topk(k, largest=False) for part in queries.split(1000)]


def brute_sampling(coord: Tensor, count: int) -> Tensor:
    far, taken = coord.new_full((len(coord),), torch.inf), [torch.zeros((), dtype=torch.int64, device=coord.device)]
    for _ in range(count - 1):
        far = torch.minimum(far, (coord - coord[taken[-1]]).square().sum(dim=1))
        taken.append(far.argmax())
    return torch.stack(taken)


def searches(name: str, coord: Tensor, options: argparse.Namespace) -> list[tuple[str, Run, Run | None, Run]]:
    """(what, ours, cKDTree's, torch_cluster's) on one cloud; in the whole sweep the tree's lists of balls get too long."""
    offset, host, workers = ends(len(coord), device=options.device), coord.cpu().numpy(), options.threads
    return [
        (
            f"knn, k = {K}",
            lambda: knn_query(K, coord, offset),
            lambda: cKDTree(host).query(host, K, workers=workers),
            lambda: torch_cluster.knn(coord, coord, K),
        ),
        (
            f"ball, {RADIUS} m, {K} of each",
            lambda: ball_query(K, RADIUS, 0, coord, offset),
            None if name == "sweep" else lambda: cKDTree(host).query_ball_point(host, RADIUS, workers=workers),
            lambda: torch_cluster.radius(coord, coord, RADIUS, max_num_neighbors=K),
        ),
    ]


def search_table(options: argparse.Namespace, bandwidth: float) -> None:
    rows = []
    for name, coord in clouds(options.device).items():
        limit = 1e3 * (24 + 8 * K) * len(coord) / bandwidth
        for what, ours, tree, cluster in searches(name, coord, options):
            ms = measure.median_ms(ours, options.repeats, options.device)
            tree_ms = measure.median_ms(tree, 2) if tree and cKDTree else float("nan")
            cluster_ms = measure.median_ms(cluster, 2, options.device) if torch_cluster else float("nan")
            rows.append([f"{name} ({len(coord):,})", what, ms, tree_ms, tree_ms / ms, cluster_ms, f"{limit / ms:.1%}"])
    measure.table(["points", "search", "ours ms", "cKDTree ms", "ratio", "torch_cluster ms", "of limit"], rows)


def brute_table(options: argparse.Namespace) -> None:
    coord = clouds(options.device)["scan"]
    queries = coord[torch.randperm(len(coord))[:2000].to(coord.device)]
    offset, asked = ends(len(coord), device=options.device), ends(2000, device=options.device)
    ours = measure.median_ms(lambda: knn_query(K, coord, offset, queries, asked), options.repeats, options.device)
    brute = measure.median_ms(lambda: brute_knn(K, coord, queries), 2, options.device)
    rows = [[f"knn, k = {K}: 2,000 queries, 81,369 points", ours, brute, brute / ours]]
    ours = measure.median_ms(lambda: farthest_point_sampling(coord, offset, asked), options.repeats, options.device)
    brute = measure.median_ms(lambda: brute_sampling(coord, 2000), 1, options.device)
    rows.append(["farthest point sampling: 2,000 of 81,369 points", ours, brute, brute / ours])
    measure.table(["", "ours ms", "plain torch ms", "ratio"], rows)


def growth_tables(options: argparse.Namespace) -> None:
    scan = clouds(options.device)["scan"]
    rows = []
    for count in (1_000, 10_000, 100_000, 1_000_000):
        coord, offset = grown(scan, count), ends(count, device=options.device)
        repeats = options.repeats if count < 1_000_000 else 2
        knn = measure.median_ms(lambda: knn_query(K, coord, offset), repeats, options.device)  # noqa: B023
        quarter = ends(count // 4, device=options.device)
        sampled = float("nan")
        if options.device == "cpu" or count < 1_000_000:
            sampled = measure.median_ms(lambda: farthest_point_sampling(coord, offset, quarter), min(2, repeats), options.device)  # noqa: B023
        rows.append([f"{count:,}", knn, 1e3 * knn / count, sampled, 1e3 * sampled / count])
    measure.table(["N", f"knn ms, k = {K}", "us a point", "sampling N / 4, ms", "us a point"], rows)

    offset = ends(len(scan), device=options.device)
    rows = []
    for k in (1, 4, 16, 32, 64, 128, 256):
        ms = measure.median_ms(lambda: knn_query(k, scan, offset), min(3, options.repeats), options.device)  # noqa: B023
        rows.append([k, ms, 1e6 * ms / (k * len(scan))])
    measure.table(["k (scan)", "knn ms", "ns a neighbour"], rows)
    if options.device == "cuda":
        return
    rows = []
    for threads in sorted({1, options.threads}):
        torch.set_num_threads(threads)
        runs = {
            "knn": lambda: knn_query(K, scan, offset),
            "ball": lambda: ball_query(K, RADIUS, 0, scan, offset),
        }
        rows.append([threads, *measure.compare(runs, options.repeats).values()])
    measure.table(["threads (scan)", "knn ms", "ball ms"], rows)


def feature_table(options: argparse.Namespace, bandwidth: float) -> None:
    """A scan and a quarter of it: features of neighbours, and features carried back from the quarter."""
    coord = clouds(options.device)["scan"]
    count, few = len(coord), len(coord) // 4
    offset, fewer = ends(count, device=options.device), ends(few, device=options.device)
    coarse = coord[farthest_point_sampling(coord, offset, fewer).long()]
    rows = []
    for channels in (32, 64, 256):
        feat = torch.randn(count, channels, device=options.device, requires_grad=True)
        idx, _ = knn_query(K, coord, offset, coarse, fewer)
        bytes_moved = 8 * few * K * channels + 4 * few * K
        back = 4 * few * K * channels + 4 * count * channels + 4 * few * K
        rows += pair(f"grouping, k = {K}, C = {channels}", options, bandwidth, feat, bytes_moved, back,
                     lambda feat: grouping(idx, feat, coord), lambda feat: feat[idx.long()])  # fmt: skip  # noqa: B023
        feat = torch.randn(few, channels, device=options.device, requires_grad=True)
        idx3, dist = knn_query(3, coarse, fewer, coord, offset)
        weight = 1 / (dist + 1e-8)
        weight = weight / weight.sum(dim=1, keepdim=True)
        bytes_moved = 4 * count * channels * 4 + 24 * count
        back = 12 * count * channels + 4 * few * channels + 24 * count
        rows += pair(f"interpolation, k = 3, C = {channels}", options, bandwidth, feat, bytes_moved, back,
                     lambda feat: torch.ops.pointcept3m.interpolate_rows(feat, idx3, weight),  # noqa: B023
                     lambda feat: (feat[idx3.long()] * weight[..., None]).sum(dim=1))  # fmt: skip  # noqa: B023
        whole = measure.median_ms(lambda: interpolation(coarse, coord, feat, fewer, offset), options.repeats, options.device)  # noqa: B023
        rows.append([f"interpolation with its search, C = {channels}", whole, float("nan"), float("nan"), "-"])
    measure.table(["", "ours ms", "torch ms", "ratio", "of limit"], rows)


def pair(
    name: str, options: argparse.Namespace, bandwidth: float, feat: Tensor, forward: float, backward: float, ours: Run, torchs: Run
) -> list[list]:
    """Rows of a table: forward and backward of ours and of torch, with the bytes that either moves."""
    runs, back = {}, {}
    for side, call in (("ours", ours), ("torch", torchs)):
        out = call(feat)
        grad = torch.ones_like(out)
        runs[side] = lambda call=call: call(feat.detach())
        back[side] = lambda out=out, grad=grad: torch.autograd.grad(out, feat, grad, retain_graph=True)
    rows = []
    for what, sides, moved in ((name, runs, forward), (name + ", backward", back, backward)):
        ms = measure.compare(sides, options.repeats, options.device)
        rows.append([what, ms["ours"], ms["torch"], ms["torch"] / ms["ours"], f"{1e3 * moved / bandwidth / ms['ours']:.0%}"])
    return rows


def main() -> None:
    options = measure.parser(__doc__, repeats=5).parse_args()
    measure.start(options)
    for name, module in (("scipy", cKDTree), ("torch_cluster", torch_cluster)):
        if module is None:
            print(f"{name} is not installed; its columns stay empty.\n")
    bandwidth = measure.copy_bandwidth(options.device)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    search_table(options, bandwidth)
    brute_table(options)
    growth_tables(options)
    feature_table(options, bandwidth)


if __name__ == "__main__":
    main()
