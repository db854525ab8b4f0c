"""Sparse convolution and pooling: ours beside spconv (where it is installed) and plain torch, as Markdown tables.

    POINTCEPT3M_DATA=<folder> python benchmarks/bench_sparse_conv.py [--threads 2] [--repeats 7] [--device cuda]

The cloud is spconv's own benchmark, `spconv_cloud/benchmark-pc.npz` in POINTCEPT3M_DATA, voxelised at 0.1 m, in random
order; without it, a generated surface of about as many voxels. A submanifold kernel of 3 has P pairs on its N voxels.

    "of gemm":   2 P Cin Cout flop over the time, beside the rate of torch's own matrix product, at its best size
    "of bytes":  what must be moved at least, at the measured bandwidth of a copy, over the time:
                 convolution  s (N Cin + N Cout + K Cin Cout) + 8 P   (s bytes a number, K offsets)
                 pooling      s (N C + M C) + 8 P, and 4 M C winners for a maximum   (M outputs)

spconv's backward asks for a CUDA stream, so on a CPU there is none; with two threads its forward is sometimes wrong
there, but no faster. Last comes a small SpUNet on 30,000 voxels, with every rulebook made anew, as in training.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch

from pointcept3m import ops
from pointcept3m.models.backbones.spunet import SpUNet
from pointcept3m.ops.rulebook import Rulebook, _strided_twin, _submanifold_twin
from pointcept3m.ops.sparse_conv import _grad_weight_twin, _sparse_conv_twin
from pointcept3m.ops.sparse_pool import _max_twin, _mean_twin, sparse_pool

try:
    import spconv.pytorch as spconv
    from spconv.core import ConvAlgo
    from spconv.pytorch import functional as spconv_functional
    from spconv.pytorch import ops as spconv_ops
except ImportError:
    spconv = None

VOXEL = 0.1  # metres
DEMO = dict(in_channels=6, num_classes=0, channels=(16, 32, 48, 64, 64, 48, 32, 32), layers=(1,) * 8)
TWIN_REPEATS = 2  # plain torch is slow
Run = Callable[[], object]


def load_cloud() -> tuple[torch.Tensor, str]:
    """(int32 [N, 4] distinct voxels in random order, where they are from)."""
    root = os.environ.get("POINTCEPT3M_DATA")
    path = Path(root or ".") / "spconv_cloud" / "benchmark-pc.npz"
    if root and path.is_file():
        coord = torch.from_numpy(np.load(path, allow_pickle=False)["pc"][:, :3])
        name = path.name
    else:
        flat = torch.rand(400_000, 2) * 60
        coord = torch.cat([flat, (flat * 0.7).sin().sum(1, keepdim=True)], 1)
        name = f"a generated surface ({f'{path} is absent' if root else 'POINTCEPT3M_DATA is not set'})"
    cells = torch.unique(((coord - coord.amin(0)) / VOXEL).floor().int(), dim=0)
    cells = cells[torch.randperm(len(cells))]
    return torch.cat([torch.zeros(len(cells), 1, dtype=torch.int32), cells], 1).contiguous(), name


def grid_shape(coord: torch.Tensor) -> list[int]:
    return [size + size % 2 for size in (coord[:, 1:].amax(0) + 1).tolist()]


class Convolution:
    """A submanifold convolution with a kernel of 3 and everything that runs on it."""

    def __init__(self, coord: torch.Tensor, channels: int, dtype: torch.dtype = torch.float32) -> None:
        device = coord.device
        self.channels, self.rulebook = channels, ops.submanifold_rulebook(coord, 3)
        self.features, self.grad = (torch.randn(len(coord), channels, device=device).to(dtype) for _ in range(2))
        self.weight = torch.randn(channels, 27, channels, device=device).to(dtype)
        self.num_pairs = self.rulebook.pairs.size(1)

    def forward(self) -> torch.Tensor:
        return torch.ops.pointcept3m.sparse_conv(self.features, self.weight, *self.rulebook.tensors, False, False)

    def backward(self) -> None:
        torch.ops.pointcept3m.sparse_conv(self.grad, self.weight, *self.rulebook.tensors, True, True)
        torch.ops.pointcept3m.sparse_conv_grad_weight(self.features, self.grad, *self.rulebook.tensors, False)

    def torch_forward(self) -> torch.Tensor:
        return _sparse_conv_twin(self.features, self.weight, *self.rulebook.tensors, False, False)

    def torch_backward(self) -> None:
        _sparse_conv_twin(self.grad, self.weight, *self.rulebook.tensors, True, True)
        _grad_weight_twin(self.features, self.grad, *self.rulebook.tensors, False)

    def spconv_forward(self, coord: torch.Tensor) -> Run:
        conv = spconv.SubMConv3d(self.channels, self.channels, 3, bias=False, indice_key="k").to(coord.device)
        with torch.no_grad():
            known = conv(spconv.SparseConvTensor(self.features, coord, grid_shape(coord), 1))
            known = known.replace_feature(self.features)
        return torch.no_grad()(lambda: conv(known))

    def of_gemm(self, ms: float, rate: float) -> str:
        return percent(2 * self.num_pairs * self.channels**2 / rate, ms)

    def of_bytes(self, ms: float, bandwidth: float) -> str:
        size = self.features.element_size()
        moved = size * (2 * self.features.numel() + self.weight.numel()) + 8 * self.num_pairs
        return percent(moved / bandwidth, ms)


def percent(seconds: float, ms: float) -> str:
    return f"{100 * seconds / (ms / 1e3):.0f} %"


def bench_rulebooks(coord: torch.Tensor, options: argparse.Namespace) -> None:
    shape = grid_shape(coord)
    half = [size // 2 for size in shape]
    lines = [
        ("submanifold k=3", (3, 1, 1, True), lambda: ops.submanifold_rulebook(coord, 3),
         lambda: _submanifold_twin(coord, [3] * 3, [1] * 3)),
        ("submanifold k=5", (5, 1, 2, True), lambda: ops.submanifold_rulebook(coord, 5), None),
        ("strided k=2 s=2", (2, 2, 0, False), lambda: ops.strided_rulebook(coord, shape, 2, 2),
         lambda: _strided_twin(coord, [2] * 3, [2] * 3, [0] * 3, [1] * 3, half)),
        ("strided k=3 s=2", (3, 2, 1, False), lambda: ops.strided_rulebook(coord, shape, 3, 2, 1), None),
    ]  # fmt: skip
    rows = []
    for name, settings, ours, twin in lines:
        runs = {"ours": ours}
        if spconv:
            runs["spconv"] = lambda settings=settings: spconv_pairs(coord, shape, *settings)
        times = measure.compare(runs, options.repeats, options.device)
        mine, peer = times["ours"], times.get("spconv", torch.nan)
        other = measure.median_ms(twin, TWIN_REPEATS, options.device) if twin else torch.nan
        rows.append((name, mine, peer, peer / mine, other, other / mine))
    measure.table(("rulebook", "ours ms", "spconv ms", "spconv / ours", "torch ms", "torch / ours"), rows)


def spconv_pairs(coord: torch.Tensor, shape: list[int], size: int, stride: int, padding: int, subm: bool) -> tuple:
    """spconv's rulebook: (output coordinates, pairs, number of pairs of each offset)."""
    kernel, step, pad = [size] * 3, [stride] * 3, [padding] * 3
    return spconv_ops.get_indice_pairs(coord, 1, shape, ConvAlgo.Native, kernel, step, pad, [1] * 3, [0] * 3, subm)


def bench_convolution(coord: torch.Tensor, options: argparse.Namespace, rate: float, bandwidth: float) -> None:
    columns = ("submanifold k=3", "forward ms", "of gemm", "of bytes", "spconv ms", "spconv / ours", "torch / ours",
               "backward ms", "backward / forward", "torch / ours, backward")  # fmt: skip
    rows = []
    for channels in (32, 64, 128):
        case = Convolution(coord, channels)
        runs = {"forward": case.forward, "backward": case.backward}
        if spconv:
            runs["spconv"] = case.spconv_forward(coord)
        times = measure.compare(runs, options.repeats, options.device)
        ours, back, peer = times["forward"], times["backward"], times.get("spconv", torch.nan)
        twins = (case.torch_forward, case.torch_backward)
        plain = [measure.median_ms(run, TWIN_REPEATS, options.device) for run in twins]
        limits = case.of_gemm(ours, rate), case.of_bytes(ours, bandwidth)
        backward = back, back / ours, plain[1] / back
        rows.append((f"C = {channels}", ours, *limits, peer, peer / ours, plain[0] / ours, *backward))
    measure.table(columns, rows)


def bench_dtypes(coord: torch.Tensor, options: argparse.Namespace, bandwidth: float) -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        case = Convolution(coord, 64, dtype)
        times = measure.compare({"forward": case.forward, "backward": case.backward}, options.repeats, options.device)
        rows.append((str(dtype), *times.values(), case.of_bytes(times["forward"], bandwidth)))
    measure.table(("C = 64", "forward ms", "backward ms", "forward, of bytes"), rows)


def bench_growth(coord: torch.Tensor, options: argparse.Namespace, rate: float, bandwidth: float) -> None:
    def row(label: str, case: Convolution) -> tuple:
        times = measure.compare({"forward": case.forward, "backward": case.backward}, options.repeats, options.device)
        ours = times["forward"]
        return label, case.num_pairs, *times.values(), case.of_gemm(ours, rate), case.of_bytes(ours, bandwidth)

    columns = ("", "pairs", "forward ms", "backward ms", "of gemm", "of bytes")
    x = coord[:, 1].sort().values  # slabs of the cloud, so that its density stays
    slabs = [coord[coord[:, 1] <= x[int(share * (len(x) - 1))]].contiguous() for share in (0.08, 0.25, 1)]
    measure.table(columns, [row(f"N = {len(slab)}, C = 32", Convolution(slab, 32)) for slab in slabs])
    measure.table(columns, [row(f"C = {c}", Convolution(coord, c)) for c in (8, 16, 48, 96, 256)])
    if options.device == "cuda":
        return
    rows, most = [], torch.get_num_threads()
    for threads in sorted({1, (most + 1) // 2, most}):
        torch.set_num_threads(threads)
        rows.append(row(f"threads = {threads}, C = 64", Convolution(coord, 64)))
    measure.table(columns[:4], [r[:4] for r in rows])


def bench_pooling(coord: torch.Tensor, options: argparse.Namespace, bandwidth: float) -> None:
    shape, channels = grid_shape(coord), 64
    features = torch.randn(len(coord), channels, device=coord.device, requires_grad=True)
    rows = []
    for size, stride, padding in ((2, 2, 0), (3, 2, 1)):
        rulebook = ops.strided_rulebook(coord, shape, size, stride, padding)
        for reduce, twin in (("max", _max_twin), ("mean", _mean_twin)):
            runs = pooling_runs(features, rulebook, reduce)
            if spconv and reduce == "max":
                runs["spconv"] = spconv_pooling(features.detach(), coord, shape, rulebook, (size, stride, padding))
            times = measure.compare(runs, options.repeats, options.device)
            ours, peer = times["forward"], times.get("spconv", torch.nan)
            args = features.detach(), *rulebook.tensors, False
            plain = measure.median_ms(lambda twin=twin, args=args: twin(*args), TWIN_REPEATS, options.device)
            rows_out = rulebook.num_out * (2 if reduce == "max" else 1)
            moved = 4 * channels * (len(coord) + rows_out) + 8 * rulebook.pairs.size(1)
            rows.append((f"{reduce}, k={size} s={stride}", ours, percent(moved / bandwidth, ours), peer, peer / ours,
                         plain / ours, times["backward"]))  # fmt: skip
    columns = ("pooling, C = 64", "forward ms", "of bytes", "spconv ms", "spconv / ours", "torch / ours", "backward ms")
    measure.table(columns, rows)


def pooling_runs(features: torch.Tensor, rulebook: Rulebook, reduce: str) -> dict[str, Run]:
    out = sparse_pool(features, rulebook, reduce)
    grad = torch.randn_like(out)
    return {
        "forward": lambda: sparse_pool(features.detach(), rulebook, reduce),
        "backward": lambda: torch.autograd.grad(out, features, grad, retain_graph=True),
    }


def spconv_pooling(
    features: torch.Tensor, coord: torch.Tensor, shape: list[int], rulebook: Rulebook, settings: tuple[int, int, int]
) -> Run:
    """spconv's pooling alone, on pairs that it has found before."""
    out, pairs, number = spconv_pairs(coord, shape, *settings, False)
    assert out.shape[0] == rulebook.num_out
    return torch.no_grad()(lambda: spconv_functional.indice_maxpool(features, pairs, number, out.shape[0]))


def bench_spunet(options: argparse.Namespace) -> None:
    """Forward and backward with every rulebook made anew, as in training."""
    flat = torch.rand(200_000, 2) * 200
    surface = torch.cat([flat, 20 + 10 * (flat * 0.05).sin().sum(1, keepdim=True)], 1).int()
    cells = torch.unique(surface, dim=0)
    cells = cells[torch.randperm(len(cells))[:30_000]].long()
    batch = dict(grid_coord=cells, feat=torch.randn(len(cells), 6), offset=torch.tensor([len(cells)]))
    batch = {name: value.to(options.device) for name, value in batch.items()}
    model = SpUNet(**DEMO).to(options.device)

    def step() -> None:
        model(batch).square().mean().backward()

    with torch.no_grad():
        forward = measure.median_ms(lambda: model(batch), options.repeats, options.device)
    both = measure.median_ms(step, options.repeats, options.device)
    name = f"SpUNet {DEMO['channels']}, one block a stage, {len(cells):,} voxels"
    print(f"{name}: forward {forward:.0f} ms, step {both:.0f} ms")


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    measure.start(options)
    coord, name = load_cloud()
    coord = coord.to(options.device)
    rate, bandwidth = measure.gemm_rate(options.device), measure.copy_bandwidth(options.device)
    about_spconv = "" if spconv else "; spconv is not installed"
    limits = f"gemm {rate / 1e9:.0f} GF/s, copy {bandwidth / 1e9:.1f} GB/s"
    print(f"{len(coord):,} voxels of {name}; {limits}{about_spconv}\n")
    bench_rulebooks(coord, options)
    bench_convolution(coord, options, rate, bandwidth)
    bench_dtypes(coord, options, bandwidth)
    bench_growth(coord, options, rate, bandwidth)
    bench_pooling(coord, options, bandwidth)
    bench_spunet(options)


if __name__ == "__main__":
    main()
