"""Rasterizer on gsplat's garden scene: ours beside the best plain-torch renderer, our twin, and gsplat on a GPU.

    POINTCEPT3M_DATA=<folder of real data> python benchmarks/bench_rasterize.py --threads 2

View 0 of `gsplat_garden/test_garden.npz`, 648x420, points within 2 m of the centre, random shapes as in gsplat's
tests (seed 42). "op" is compositing of projected Gaussians (depth sort, tiles, blending); "whole" is `rasterization`
with colour, depth and D features. The peer is benchmarks/peer_torch_renderer.py, with autograd as its backward.

Limits. P: (pixel, Gaussian) pairs that count; H, W: the image; G: Gaussians seen. Forward 2 P D flop, backward 4 P D
(gradients of features, and one scalar product a pair), against the rate of a float32 matrix product. Bytes:
forward 4 H W D written and 4 G D read, backward 4 H W D read and 8 G D, against the bandwidth of a copy.
Memory: an image takes 4 H W (D + 2) bytes, gradients 4 G (D + 6); nothing is kept for a pair.
"""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import peer_torch_renderer
import torch

from pointcept3m import ops
from pointcept3m.ops import gaussian_projection as projection
from pointcept3m.ops import rasterize_to_pixels as pixels

Gaussians = list[torch.Tensor]  # means, quats, scales, opacities
Camera = tuple[torch.Tensor, torch.Tensor, int, int]  # viewmats, Ks, width, height
SETTINGS = (0.01, 1e10, 0.0, 0.3, False)  # planes, least radius, blur, antialiasing: gsplat's defaults


def load_garden(scale: float, device: str = "cpu") -> tuple[Gaussians, Camera]:
    """Means, quats, scales (up to 0.02 `scale` m), opacities; and viewmats, Ks, width, height of view 0."""
    data = np.load(measure.data_folder("gsplat_garden") / "test_garden.npz", allow_pickle=False)
    means = torch.from_numpy(data["means3d"])
    means = means[(means.abs() < 2).all(1)]
    count, generator = len(means), torch.Generator().manual_seed(42)
    quats = torch.randn(count, 4, generator=generator)
    scales = torch.rand(count, 3, generator=generator) * 0.02 * scale
    opacities = torch.rand(count, generator=generator)
    camera = [torch.from_numpy(data[name])[:1].to(device) for name in ("viewmats", "Ks")]
    return [t.to(device) for t in (means, quats, scales, opacities)], (*camera, int(data["width"]), int(data["height"]))


def project(gaussians: Gaussians, camera: Camera) -> projection.Projection:
    """The Gaussians on the image of the camera, with gsplat's default settings."""
    return projection.project_gaussians(*gaussians, *camera, *SETTINGS)


def op_inputs(gaussians: Gaussians, camera: Camera, dim: int) -> tuple:
    """Arguments of `rasterize_to_pixels` with `dim` random features."""
    seen = project(gaussians, camera)
    channels = torch.randn(len(gaussians[0]), dim, generator=torch.Generator().manual_seed(0)).to(seen.means2d.device)
    own = seen.depths.unsqueeze(-1)[..., :0]
    return (seen.means2d, seen.conics, seen.opacities, seen.depths, own, channels, *camera[2:])


def op_runs(inputs: tuple) -> dict[str, Callable[[], object]]:
    """Our forward and our backward."""
    outputs = pixels.rasterize_to_pixels(*inputs)
    above = [torch.randn_like(t) for t in outputs[:3]]
    saved = (*above, *inputs[:3], *inputs[4:6], *outputs[2:])
    backward = torch.ops.pointcept3m.rasterize_to_pixels_backward
    return {"forward": lambda: pixels.rasterize_to_pixels(*inputs), "backward": lambda: backward(*saved)}


def peer_runs(inputs: tuple) -> dict[str, Callable[[], object]]:
    """The plain-torch peer: forward without autograd, and forward with backward."""
    means2d, conics, opacities, depths, _, channels, width, height = inputs
    leaves = [t.clone().requires_grad_() for t in (means2d[0], conics[0], opacities[0], channels)]

    def render():
        return peer_torch_renderer.render(*leaves[:3], depths[0], leaves[3], width, height)

    above = [torch.randn(height, width, channels.shape[1]), torch.randn(height, width)]

    def train():
        torch.autograd.grad(render(), [leaves[0], leaves[1], leaves[3]], above)

    return {"forward": torch.no_grad()(render), "forward + backward": train}


def count_pairs(inputs: tuple) -> int:
    """(Pixel, Gaussian) pairs that count: the weights of the twin that are not 0."""
    means2d, conics, opacities, depths, *_, width, height = inputs
    order, total = pixels._depth_order(opacities, depths), 0
    for tile in pixels._tiles(means2d, conics, opacities, order, width, height):
        start = means2d.new_ones((tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start))
        for places in pixels._chunks(tile):
            index = order[0, places].long()
            weights = pixels._weights(means2d[0, index], conics[0, index], opacities[0, index], tile, start)
            total, start = total + int((weights.alpha > 0).sum()), weights.end
    return total


def print_peers(options: argparse.Namespace) -> None:
    rows = []
    for scale in options.scales:
        inputs = op_inputs(*load_garden(scale), 64)
        ours, twins = measure.compare(op_runs(inputs), options.repeats), [float("nan")] * 2
        peers = measure.compare(peer_runs(inputs), options.peer_repeats)
        if options.twin:
            outputs = pixels.rasterize_to_pixels(*inputs)
            saved = (*(torch.randn_like(t) for t in outputs[:3]), *inputs[:3], *inputs[4:6], *outputs[2:])
            twins[0] = measure.median_ms(lambda i=inputs: pixels.rasterize_to_pixels_twin(*i), 1)
            twins[1] = twins[0] + measure.median_ms(lambda s=saved: pixels.rasterize_to_pixels_backward_twin(*s), 1)
        both = {"forward": ours["forward"], "forward + backward": sum(ours.values())}
        for (name, mine), twin in zip(both.items(), twins, strict=True):
            rows.append([f"x{scale:g}", name, mine, peers[name], f"{peers[name] / mine:.1f}x", twin])
    measure.table(["scales", "op, D = 64", "ours ms", "plain-torch peer ms", "ratio", "twin ms"], rows)


def print_limits(options: argparse.Namespace) -> None:
    gemm, copy, rows = measure.gemm_rate(options.device), measure.copy_bandwidth(options.device), []
    for scale in options.scales:
        gaussians, camera = load_garden(scale, options.device)
        pairs = count_pairs(op_inputs(gaussians, camera, 0))
        for dim in options.channels:
            inputs = op_inputs(gaussians, camera, dim)
            taken = measure.compare(op_runs(inputs), options.repeats, options.device)
            seen, image = int((inputs[2] > 0).sum()), camera[2] * camera[3]
            forward, backward = taken["forward"] / 1e3, taken["backward"] / 1e3
            share = [2 * pairs * dim / forward / gemm, 4 * pairs * dim / backward / gemm,
                     4 * dim * (image + seen) / forward / copy, 4 * dim * (image + 2 * seen) / backward / copy]  # fmt: skip
            percent = [f"{100 * value:.0f} %" for value in share]
            rows.append([f"x{scale:g}", dim, taken["forward"], taken["backward"], backward / forward, *percent])
        print(f"scales x{scale:g}: P = {pairs / 1e6:.2f} M pairs, G = {seen} seen; "
              f"matrix product {gemm / 1e9:.0f} Gflop/s, copy {copy / 1e9:.1f} GB/s")  # fmt: skip
    print()
    columns = ["scales", "D", "forward ms", "backward ms", "backward / forward"]
    measure.table([*columns, "flop: forward", "backward", "bytes: forward", "backward"], rows)


def print_growth(options: argparse.Namespace) -> None:
    gaussians, camera = load_garden(1.0)
    rows, count = [], len(gaussians[0])
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    for part in (8, 4, 2, 1):
        taken = measure.compare(op_runs(op_inputs([t[chosen[: count // part]] for t in gaussians], camera, 64)), options.repeats)
        rows.append([count // part, *taken.values()])
    measure.table(["G, D = 64", "forward ms", "backward ms"], rows)
    rows, inputs = [], op_inputs(gaussians, camera, 64)
    for threads in sorted({1, *(2**i for i in range(1, 9) if 2**i < (os.cpu_count() or 1)), os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        rows.append([threads, *measure.compare(op_runs(inputs), options.repeats).values()])
    torch.set_num_threads(options.threads)
    measure.table(["threads, D = 64", "forward ms", "backward ms"], rows)


def print_projection(options: argparse.Namespace) -> None:
    gaussians, camera = load_garden(1.0, options.device)
    leaves = [t.clone().requires_grad_() for t in (*gaussians, *camera[:2])]
    rows = []
    for name, run in (("ours", projection.project_gaussians), ("twin", projection.project_gaussians_twin)):
        above = [torch.randn_like(t) for t in run(*leaves, *camera[2:], *SETTINGS)[:4]]

        def forward(run=run):
            return run(*leaves, *camera[2:], *SETTINGS)[:4]

        runs = {"forward": torch.no_grad()(forward), "both": lambda f=forward, a=above: torch.autograd.grad(f(), leaves, a)}
        rows.append([name, *measure.compare(runs, options.repeats, options.device).values()])
    rows.append(["ratio", *(f"{twin / mine:.1f}x" for mine, twin in zip(rows[0][1:], rows[1][1:], strict=True))])
    measure.table([f"projection, G = {len(leaves[0])}", "forward ms", "forward + backward ms"], rows)


def whole_runs(dim: int, device: str, backend: str) -> dict[str, Callable[[], object]]:
    """`rasterization` with colour, depth and features, and its backward."""
    gaussians, (viewmats, Ks, width, height) = load_garden(1.0, device)
    generator = torch.Generator().manual_seed(0)
    values = [torch.rand(len(gaussians[0]), size, generator=generator).to(device) for size in (3, dim)]
    leaves = [t.clone().requires_grad_() for t in (*gaussians, values[0], viewmats)]
    features = values[1].requires_grad_() if dim else None

    def render():
        color, alpha, meta = ops.rasterization(
            *leaves, Ks, width, height, render_mode="RGB+D", features=features, backend=backend
        )
        return [color, alpha] + ([meta["features"]] if dim else [])

    above = [torch.randn_like(t) for t in render()]
    wanted = leaves + ([features] if dim else [])
    return {"forward": torch.no_grad()(render), "both": lambda: torch.autograd.grad(render(), wanted, above)}


def print_whole(options: argparse.Namespace) -> None:
    rows, backends = [], ["native"]
    if options.device == "cuda":
        try:
            import gsplat  # noqa: F401

            backends.append("gsplat")
        except ImportError:
            print("gsplat is not installed: no comparison with it\n")
    for dim in (0, 64, 128, 512) if options.device == "cuda" else (0, 64):
        for backend in backends:
            taken = measure.compare(whole_runs(dim, options.device, backend), options.repeats, options.device)
            rows.append([dim, backend, *taken.values()])
    measure.table(["colour + depth + D", "backend", "forward ms", "forward + backward ms"], rows)


def print_memory() -> None:
    """Peak of resident memory above what inputs take, by /proc: Linux only."""
    status = Path("/proc/self/status")
    if not status.is_file():
        print("peak memory is measured on Linux only\n")
        return
    rows = []
    for scale, dim in ((0.1, 64), (1.0, 64), (1.0, 512)):
        inputs = op_inputs(*load_garden(scale), dim)
        image, count = inputs[6] * inputs[7], inputs[2].numel()
        for name, run in op_runs(inputs).items():
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
            before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
            run()
            peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
            result = 4 * image * (dim + 2) if name == "forward" else 4 * count * (dim + 6)
            rows.append([f"x{scale:g}", dim, name, (peak - before) / 1024, result / 2**20])
    measure.table(["scales", "D", "pass", "peak MiB", "of which result (formula) MiB"], rows)


def main() -> None:
    """Prints Markdown tables."""
    parser = measure.parser(__doc__, repeats=5)
    parser.add_argument("--peer-repeats", type=int, default=1, help="runs of the plain-torch peer, which takes seconds")
    parser.add_argument("--twin", action="store_true", help="also time the twin once, which takes tens of seconds")
    parser.add_argument("--channels", type=int, nargs="+", default=[3, 16, 64, 128, 256, 512])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.1], help="factors on the size of the Gaussians")
    options = parser.parse_args()
    measure.start(options)
    if options.device == "cpu":
        print_memory()
        print_peers(options)
    print_limits(options)
    if options.device == "cpu":
        print_growth(options)
    print_projection(options)
    print_whole(options)


if __name__ == "__main__":
    main()
