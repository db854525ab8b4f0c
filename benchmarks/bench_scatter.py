"""Voxel scatter: our kernels beside torch's, medians in milliseconds, as a Markdown table.

    python benchmarks/bench_scatter.py [--threads 2] [--repeats 9]

Each case scatters N rows of C channels into V bins in random order. "floor" is what the compulsory bytes
(rows and index read, bins written) take at the machine's measured copy bandwidth.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pointcept3m import ops
from pointcept3m.ops import _library

CASES = ((1_000_000, 32, 250_000), (1_000_000, 64, 250_000), (200_000, 256, 60_000))


def median_ms(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.zeros(32_000_000)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source), repeats) / 1e3)


def measure(num_rows: int, channels: int, num_bins: int, repeats: int, bandwidth: float) -> dict[str, float]:
    src = torch.randn(num_rows, channels)
    index = torch.randint(0, num_bins, (num_rows,))
    index[:num_bins] = torch.arange(num_bins)
    index = index[torch.randperm(num_rows)]
    order = index.argsort(stable=True)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), index.bincount(minlength=num_bins).cumsum(0)[:-1]])
    wide = index[:, None].expand_as(src)
    zeros = src.new_zeros(num_bins, channels)
    leaf = src.clone().requires_grad_()

    def backward(reduce: str) -> float:
        out = ops.scatter(leaf, index, 0, dim_size=num_bins, reduce=reduce)
        out = out[0] if reduce == "max" else out
        grad = torch.ones_like(out)
        return median_ms(lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True), repeats)

    def ours(reduce: str) -> float:
        return median_ms(lambda: ops.scatter(src, index, 0, dim_size=num_bins, reduce=reduce), repeats)

    size = src.nbytes + index.nbytes + zeros.nbytes
    return {
        "floor": size / bandwidth * 1e3,
        "ours sum": ours("sum"),
        "ours mean": ours("mean"),
        "ours max": ours("max"),
        "ours sum backward": backward("sum"),
        "ours max backward": backward("max"),
        "torch index_add": median_ms(lambda: zeros.index_add(0, index, src), repeats),
        "torch scatter_reduce amax": median_ms(lambda: zeros.scatter_reduce(0, wide, src, "amax"), repeats),
        "torch embedding_bag (sorted beforehand)": median_ms(
            lambda: torch.nn.functional.embedding_bag(order, src, start, mode="sum"), repeats
        ),
        "torch index_select (sum's backward)": median_ms(lambda: zeros.index_select(0, index), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    bandwidth = copy_bandwidth(options.repeats)
    print(
        f"{_library.status()}; torch {torch.__version__}, {options.threads} threads, copy {bandwidth / 1e9:.1f} GB/s\n"
    )
    columns = [measure(*case, options.repeats, bandwidth) for case in CASES]
    print("| ms | " + " | ".join(f"{n // 1000}k x {c} -> {v // 1000}k" for n, c, v in CASES) + " |")
    print("|---" * (len(CASES) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
