"""Rasterizer on gsplat's garden scene: milliseconds of our kernel and of its plain-torch twin, forward and backward.

    POINTCEPT3M_DATA=<folder of real data> python benchmarks/bench_rasterize.py --threads 2

View 0 of `gsplat_garden/test_garden.npz`, 648x420, points within 2 m of the centre, random shapes as in gsplat's
tests (seed 42). What is timed is the op on projected Gaussians: depth sort, binning, compositing; projection apart.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pointcept3m.ops import _library
from pointcept3m.ops.gaussian_projection import Projection, project_gaussians
from pointcept3m.ops.rasterize_to_pixels import (
    rasterize_to_pixels,
    rasterize_to_pixels_backward_twin,
    rasterize_to_pixels_twin,
)


def load_garden(scale: float) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor, int, int]]:
    """Means, quats, scales (up to 0.02 `scale` m), opacities; and viewmats, Ks, width, height of view 0."""
    root = os.environ.get("POINTCEPT3M_DATA")
    if not root:
        raise SystemExit("POINTCEPT3M_DATA is not set; it must name the folder that holds gsplat_garden/test_garden.npz")
    path = Path(root) / "gsplat_garden" / "test_garden.npz"
    if not path.is_file():
        raise SystemExit(f"{path} is absent; POINTCEPT3M_DATA must name the folder that holds gsplat_garden/")
    data = np.load(path, allow_pickle=False)
    means = torch.from_numpy(data["means3d"])
    means = means[(means.abs() < 2).all(1)]
    count, generator = len(means), torch.Generator().manual_seed(42)
    quats = torch.randn(count, 4, generator=generator)
    scales = torch.rand(count, 3, generator=generator) * 0.02 * scale
    opacities = torch.rand(count, generator=generator)
    camera = torch.from_numpy(data["viewmats"])[:1], torch.from_numpy(data["Ks"])[:1], int(data["width"]), int(data["height"])
    return [means, quats, scales, opacities], camera


def project(gaussians: list[torch.Tensor], camera: tuple[torch.Tensor, torch.Tensor, int, int]) -> Projection:
    """The Gaussians on the image of the camera, with gsplat's default settings."""
    return project_gaussians(*gaussians, *camera, 0.01, 1e10, 0.0, 0.3, antialiased=False)


def median_ms(call: Callable[[], object], repeats: int, warm: bool = True) -> float:
    """Median wall time of a call in milliseconds; with `warm`, after one that does not count."""
    if warm:
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    """Prints one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9, help="calls of ours")
    parser.add_argument("--twin-repeats", type=int, default=1, help="calls of the twin, which takes seconds; 0: none")
    parser.add_argument("--channels", type=int, nargs="+", default=[3, 64])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.1], help="factor on the size of the Gaussians")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backward = torch.ops.pointcept3m.rasterize_to_pixels_backward
    print(f"torch {torch.__version__}, {options.threads} threads, {_library.status()}\n")
    print("| scales | D | pass | ours ms | torch twin ms | ratio |\n|---|---|---|---|---|---|")
    for scale in options.scales:
        gaussians, camera = load_garden(scale)
        seen = project(gaussians, camera)
        fields, own = (seen.means2d, seen.conics, seen.opacities), seen.depths.unsqueeze(-1)[..., :0]
        for dim in options.channels:
            channels = torch.randn(len(gaussians[0]), dim, generator=torch.Generator().manual_seed(0))
            inputs = (*fields, seen.depths, own, channels, *camera[2:])
            outputs = rasterize_to_pixels(*inputs)
            above = [torch.randn_like(t) for t in outputs[:3]]
            backward_inputs = (*above, *fields, own, channels, *outputs[2:])
            ours = [
                median_ms(lambda i=inputs: rasterize_to_pixels(*i), options.repeats),
                median_ms(lambda i=backward_inputs: backward(*i), options.repeats),
            ]
            twin = [math.nan, math.nan]
            if options.twin_repeats:
                twin = [
                    median_ms(lambda i=inputs: rasterize_to_pixels_twin(*i), options.twin_repeats, warm=False),
                    median_ms(lambda i=backward_inputs: rasterize_to_pixels_backward_twin(*i), options.twin_repeats, warm=False),
                ]
            for name, mine, theirs in (("forward", ours[0], twin[0]), ("forward + backward", sum(ours), sum(twin))):
                peer = f"{theirs:.0f} | {theirs / mine:.0f}x" if theirs == theirs else "- | -"
                print(f"| x{scale:g} | {dim} | {name} | {mine:.1f} | {peer} |", flush=True)


if __name__ == "__main__":
    main()
