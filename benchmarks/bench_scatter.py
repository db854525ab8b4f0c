"""Scatter and segments: ours beside torch's (and torch_scatter's where it is installed), as Markdown tables.

    python benchmarks/bench_scatter.py [--threads 2] [--repeats 7] [--device cuda]

A case reduces N rows of C float32 channels to V bins, every bin with at least one row. Where the index is in random
order both sides have to find out which rows belong together; where rows stand in order, `segment_csr` is given where
each bin begins, and so is embedding_bag. "of limit" is the time that the bytes which must be moved take at the measured
bandwidth of a copy, divided by ours:

    bytes = 4 N C (rows) + 4 V C (bins) + 8 N (index) or 8 V (pointers); for max 4 V C more (winners);
    softmax 2 * 4 N C + 8 N

torch allocates every result anew, and so do we, while that copy writes to memory that is there: what a copy into new
memory takes is printed beside it.
"""

import argparse
from collections.abc import Callable

import measure
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pointcept3m.ops.scatter import scatter
from pointcept3m.ops.segment import segment_csr
from pointcept3m.ops.softmax import scatter_softmax

try:
    import torch_scatter
except ImportError:
    torch_scatter = None

CASES = ((1_000_000, 32, 250_000), (1_000_000, 64, 250_000), (200_000, 256, 60_000))
SLOW_PEERS = ("backward of max", "softmax")  # a second and more: two repeats
Run = Callable[[], object]


class Case:
    """One problem in random order and, the same, in order."""

    def __init__(self, num_rows: int, channels: int, num_bins: int, device: str) -> None:
        self.num_rows, self.channels, self.num_bins = num_rows, channels, num_bins
        index = torch.randint(0, num_bins, (num_rows,))
        index[:num_bins] = torch.arange(num_bins)
        self.index = index[torch.randperm(num_rows)].to(device)
        self.src = torch.randn(num_rows, channels, device=device)
        order = self.index.argsort(stable=True)
        self.sorted_index, self.sorted_src = self.index[order], self.src[order]
        self.places = torch.arange(num_rows, device=device)
        self.pointers = torch.searchsorted(self.sorted_index, torch.arange(num_bins + 1, device=device))
        self.zeros = self.src.new_zeros(num_bins, channels)

    def name(self) -> str:
        return f"{self.num_rows // 1000}k x {self.channels} -> {self.num_bins // 1000}k"

    def limit_ms(self, bandwidth: float, what: str, pointers: bool = False) -> float:
        rows, bins = 4 * self.num_rows * self.channels, 4 * self.num_bins * self.channels
        helper = 8 * (self.num_bins if pointers else self.num_rows)
        total = {"sum": rows + bins, "max": rows + 2 * bins, "softmax": 2 * rows}[what] + helper
        return 1e3 * total / bandwidth

    def ours(self, reduce: str, dtype: torch.dtype = torch.float32) -> Run:
        src = self.src.to(dtype)
        return lambda: scatter(src, self.index, 0, dim_size=self.num_bins, reduce=reduce)

    def backward(self, reduce: str) -> Run:
        leaf = self.src.clone().requires_grad_()
        out = scatter(leaf, self.index, 0, dim_size=self.num_bins, reduce=reduce)
        grad = torch.ones_like(out)
        return lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)

    def torch_backward(self, reduce: str) -> Run:
        leaf = self.src.clone().requires_grad_()
        spread = self.index[:, None].expand_as(leaf)
        out = self.zeros.scatter_reduce(0, spread, leaf, reduce, include_self=False)
        grad = torch.ones_like(out)
        return lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)

    def torch_softmax(self) -> Tensor:
        spread = self.index[:, None].expand_as(self.src)
        largest = self.zeros.scatter_reduce(0, spread, self.src, "amax", include_self=False)
        power = (self.src - largest[self.index]).exp()
        return power / self.zeros.index_add(0, self.index, power)[self.index]

    def bag(self, mode: str) -> Run:
        return lambda: embedding_bag(self.places, self.sorted_src, self.pointers[:-1], mode=mode)


def lines_of(case: Case) -> list[tuple[str, str, bool, Run, dict[str, Run]]]:
    """(what ours does, bytes as in, whether given pointers, ours, peers by name)."""
    spread = case.index[:, None].expand_as(case.src)
    zeros, index, src, bins = case.zeros, case.index, case.src, case.num_bins
    in_order = {"data": case.sorted_src, "offsets": case.pointers, "axis": 0}
    lines = [
        ("sum, random order", "sum", False, case.ours("sum"), {"index_add": lambda: zeros.index_add(0, index, src)}),
        ("mean, random order", "sum", False, case.ours("mean"),
         {"scatter_reduce": lambda: zeros.scatter_reduce(0, spread, src, "mean", include_self=False)}),
        ("max, random order", "max", False, case.ours("max"),
         {"scatter_reduce": lambda: zeros.scatter_reduce(0, spread, src, "amax", include_self=False)}),
        ("sum, sorted index", "sum", False,
         lambda: scatter(case.sorted_src, case.sorted_index, 0, dim_size=bins, reduce="sum"),
         {"embedding_bag": case.bag("sum")}),
        ("sum, pointers", "sum", True, lambda: segment_csr(case.sorted_src, case.pointers),
         {"embedding_bag": case.bag("sum"), "segment_reduce": lambda: torch.segment_reduce(reduce="sum", **in_order)}),
        ("mean, pointers", "sum", True, lambda: segment_csr(case.sorted_src, case.pointers, reduce="mean"),
         {"embedding_bag": case.bag("mean")}),
        ("max, pointers", "max", True, lambda: segment_csr(case.sorted_src, case.pointers, reduce="max"),
         {"segment_reduce": lambda: torch.segment_reduce(reduce="max", **in_order)}),
        ("backward of sum", "sum", False, case.backward("sum"), {"index_select": lambda: zeros.index_select(0, index)}),
        ("backward of max", "max", False, case.backward("max"), {"scatter_reduce": case.torch_backward("amax")}),
        ("softmax", "softmax", False, lambda: scatter_softmax(src, index, 0, bins), {"plain torch": case.torch_softmax}),
    ]  # fmt: skip
    if torch_scatter:
        for line, reduce in zip(lines, ("sum", "mean", "max"), strict=False):
            line[4]["torch_scatter"] = lambda r=reduce: torch_scatter.scatter(src, index, 0, dim_size=bins, reduce=r)
        lines[4][4]["torch_scatter"] = lambda: torch_scatter.segment_csr(case.sorted_src, case.pointers)
    return lines


def against_peers(options: argparse.Namespace, bandwidth: float) -> None:
    for sizes in CASES:
        case, rows = Case(*sizes, options.device), []
        for what, bytes_as, pointers, ours, peers in lines_of(case):
            repeats = min(options.repeats, 2) if what in SLOW_PEERS else options.repeats
            times = measure.compare({"ours": ours, **peers}, repeats, options.device)
            mine = times.pop("ours")
            limit = case.limit_ms(bandwidth, bytes_as, pointers)
            rows += [(what, mine, peer, time, time / mine, f"{100 * limit / mine:.0f} %") for peer, time in times.items()]
        print(case.name() + "\n")
        measure.table(("", "ours ms", "peer", "peer ms", "peer / ours", "of limit"), rows)


def growth(options: argparse.Namespace, bandwidth: float) -> None:
    """One size grows at a time; random order, four rows to a bin."""
    def row(label: str, case: Case) -> tuple:
        runs = {reduce: case.ours(reduce) for reduce in ("sum", "max")}
        runs["sum, bfloat16"] = case.ours("sum", torch.bfloat16)
        runs["backward of sum"] = case.backward("sum")
        times = measure.compare(runs, options.repeats, options.device)
        return (label, *times.values(), f"{100 * case.limit_ms(bandwidth, 'sum') / times['sum']:.0f} %")

    columns = ("", "sum ms", "max ms", "sum of bfloat16 ms", "backward of sum ms", "sum, of limit")
    rows = [row(f"N = {n}", Case(n, 32, n // 4, options.device)) for n in (10_000, 100_000, 1_000_000)]
    measure.table(columns, rows)
    measure.table(columns, [row(f"C = {c}", Case(200_000, c, 50_000, options.device)) for c in (1, 3, 16, 64, 256)])
    measure.table(columns, [row(f"V = {v}", Case(400_000, 32, v, options.device)) for v in (10, 1000, 400_000)])
    if options.device == "cuda":
        return
    rows, most = [], torch.get_num_threads()
    for threads in sorted({1, (most + 1) // 2, most}):
        torch.set_num_threads(threads)
        rows.append(row(f"threads = {threads}", Case(1_000_000, 32, 250_000, "cpu")))
    measure.table(columns, rows)


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    measure.start(options)
    bandwidth = measure.copy_bandwidth(options.device)
    source = torch.zeros(32_000_000, device=options.device)
    fresh = 2 * source.nbytes / measure.median_ms(source.clone, options.repeats, options.device) * 1e3
    print(f"copy {bandwidth / 1e9:.1f} GB/s, into new memory {fresh / 1e9:.1f} GB/s" + ("" if torch_scatter else "; torch_scatter is not installed") + "\n")
    against_peers(options, bandwidth)
    growth(options, bandwidth)


if __name__ == "__main__":
    main()
