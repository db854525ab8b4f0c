"""Sparse convolution: our kernels beside plain torch and spconv, medians in milliseconds, as Markdown tables.

    POINTCEPT3M_DATA=<folder> python benchmarks/bench_sparse_conv.py [--threads 2] [--repeats 7]

The cloud is spconv's own benchmark, `spconv_cloud/benchmark-pc.npz` in POINTCEPT3M_DATA, voxelised at 0.1 m;
without it, a generated surface of about as many voxels. Last comes a small SpUNet on 30,000 voxels.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pointcept3m import ops
from pointcept3m.models.backbones.spunet import SpUNet
from pointcept3m.ops import _library
from pointcept3m.ops.rulebook import _submanifold_twin
from pointcept3m.ops.sparse_conv import _grad_weight_twin, _sparse_conv_twin

VOXEL = 0.1  # metres
DEMO = dict(in_channels=6, num_classes=0, channels=(16, 32, 48, 64, 64, 48, 32, 32), layers=(1,) * 8)


def median_ms(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


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


def bench_rulebooks(coord: torch.Tensor, repeats: int) -> None:
    shape = (coord[:, 1:].amax(0) + 1).tolist()
    shape = [s + s % 2 for s in shape]
    rows = {
        "submanifold k=3, ours": lambda: ops.submanifold_rulebook(coord, 3),
        "submanifold k=3, plain torch": lambda: _submanifold_twin(coord, [3] * 3, [1] * 3),
        "submanifold k=5, ours": lambda: ops.submanifold_rulebook(coord, 5),
        "strided k=2 s=2, ours": lambda: ops.strided_rulebook(coord, shape, 2, 2),
    }
    print("| rulebook | ms |\n|---|---|")
    for name, run in rows.items():
        print(f"| {name} | {median_ms(run, repeats):.1f} |")


def bench_convolution(coord: torch.Tensor, channels: int, repeats: int) -> list[float]:
    """[ours forward, backward, torch forward, backward, ours GF/s forward]."""
    rulebook = ops.submanifold_rulebook(coord, 3)
    features = torch.randn(len(coord), channels, requires_grad=True)
    weight = torch.randn(channels, 3, 3, 3, channels, requires_grad=True)
    values, flat = features.detach(), weight.detach().reshape(channels, 27, channels)
    args = rulebook.pairs, rulebook.start, rulebook.rank_in, rulebook.rank_out
    out = ops.sparse_conv(features, weight, rulebook)
    grad = torch.randn_like(out)

    def torch_backward() -> None:
        _sparse_conv_twin(grad, flat, *args, True, True)
        _grad_weight_twin(values, grad, *args, False)

    forward = median_ms(lambda: torch.ops.pointcept3m.sparse_conv(values, flat, *args, False, False), repeats)
    return [
        forward,
        median_ms(lambda: torch.autograd.grad(out, (features, weight), grad, retain_graph=True), repeats),
        median_ms(lambda: _sparse_conv_twin(values, flat, *args, False, False), repeats),
        median_ms(torch_backward, repeats),
        2e-6 * rulebook.pairs.size(1) * channels**2 / forward,
    ]


def bench_spunet(repeats: int) -> None:
    """Forward and backward with every rulebook made anew, as in training."""
    flat = torch.rand(200_000, 2) * 200
    surface = torch.cat([flat, 20 + 10 * (flat * 0.05).sin().sum(1, keepdim=True)], 1).int()
    cells = torch.unique(surface, dim=0)
    cells = cells[torch.randperm(len(cells))[:30_000]].long()
    batch = dict(grid_coord=cells, feat=torch.randn(len(cells), 6), offset=torch.tensor([len(cells)]))
    model = SpUNet(**DEMO)

    def step() -> None:
        model(batch).square().mean().backward()

    with torch.no_grad():
        forward = median_ms(lambda: model(batch), repeats)
    print(
        f"\nSpUNet {DEMO['channels']}, one block a stage, {len(cells):,} voxels: forward {forward:.0f} ms, step {median_ms(step, repeats):.0f} ms"
    )


def bench_spconv(coord: torch.Tensor, repeats: int) -> None:
    """spconv forward; its backward asks for a CUDA stream, so on a CPU there is none."""
    try:
        import spconv.pytorch as spconv
    except ImportError:
        print("\nspconv is not installed.")
        return
    print("\n| spconv | rulebook + forward | forward |\n|---|---|---|")
    shape = (coord[:, 1:].amax(0) + 1).tolist()
    for channels in (32, 64):
        features = torch.randn(len(coord), channels)
        conv = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key="k")
        fresh = spconv.SparseConvTensor(features, coord, shape, 1)
        with torch.no_grad():
            both = median_ms(lambda conv=conv, fresh=fresh: conv(fresh), repeats)
            known = conv(fresh).replace_feature(features)
            alone = median_ms(lambda conv=conv, known=known: conv(known), repeats)
        print(f"| C={channels} | {both:.1f} | {alone:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    coord, name = load_cloud()
    print(
        f"{_library.status()}; torch {torch.__version__}, {options.threads} threads; {len(coord):,} voxels of {name}\n"
    )
    bench_rulebooks(coord, options.repeats)
    print(
        "\n| submanifold k=3 | ours fwd | ours bwd | torch fwd | torch bwd | ours GF/s fwd |\n|---|---|---|---|---|---|"
    )
    for channels in (32, 64, 128):
        print(
            f"| C={channels} | "
            + " | ".join(f"{x:.1f}" for x in bench_convolution(coord, channels, options.repeats))
            + " |"
        )
    bench_spconv(coord, options.repeats)
    bench_spunet(options.repeats)


if __name__ == "__main__":
    main()
