"""Memory and time of one CUA-O3D distillation step, against the released code's way.

    POINTCEPT3M_DATA=... python benchmarks/bench_distill.py --threads 2 [--repeats 3] [--scenes 2] [--num-points 20000]

The release applies every head to every voxel and then takes the supervised rows; ours takes the rows first and computes a
head's outputs a chunk at a time. Both are timed with the network, losses and optimizer of configs/cua_o3d/scannet.py
(MinkUNet18A, 512 + 1024 + 3200 channels, float32 here) on copies of ScanNet's scene0000_00 at 2 cm, with random targets. Each
runs in a process of its own, which prints the largest resident memory beyond what it had before the step; on a GPU the
allocator's peak. The two give the same losses, which is checked.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from measure import data_folder, parser, start, table

from pointcept3m.datasets import collate_fn
from pointcept3m.datasets.transforms.sampling import find_voxels
from pointcept3m.engines.defaults import fill_registries, with_defaults
from pointcept3m.models import build_model
from pointcept3m.models.cua_o3d.losses import de_mean
from pointcept3m.structures.scene import Scene
from pointcept3m.utils.config import Config
from pointcept3m.utils.optimizer import build_optimizer

CONFIG = Path(__file__).resolve().parents[1] / "configs/cua_o3d/scannet.py"
WAYS = ("ours", "release")


def make_batch(options, dims: dict[str, int]) -> dict:
    """`scenes` copies of a real scan on the 2 cm grid, each with `num_points` supervised voxels."""
    if options.scene:
        coord = Scene(options.scene).load("coord")
    else:
        coord = np.load(data_folder("scannet_scene0000_00") / "scene0000_00.npz")["coord"].astype(np.float32)
    voxels = find_voxels(coord, 0.02)
    cells = voxels.grid_coord[voxels.order[voxels.start[:-1]]]
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(options.scenes):
        number = len(cells)
        rows = torch.randperm(number, generator=generator)[: options.num_points].sort().values
        sample = dict(grid_coord=cells, coord=cells.float() * 0.02, feat=torch.ones(number, 3),
                      offset=torch.tensor([number]), target_index=rows)  # fmt: skip
        for name, dim in dims.items():
            sample[f"target_{name}"] = torch.randn(len(rows), dim, generator=generator)
        samples.append(sample)
    return collate_fn(samples)


def release_forward(model, batch: dict) -> dict:
    """Heads on every voxel, then the supervised rows; the losses and their sum are those of the model."""
    feature = model.point_features(batch)
    outputs = {name: model.heads[name](feature) for name in model.teachers}
    losses = {}
    for name, output in outputs.items():
        criterion, demean = model.losses[name]
        target = batch[f"target_{name}"]
        losses[name] = criterion(output[batch["target_index"]], de_mean(target) if demean else target)
    total, _ = model.uncertainty(losses, feature, batch["target_index"], batch["offset"])
    return {"loss": total, **{f"{name}_loss": loss.mean() for name, loss in losses.items()}}


def peak(device: str) -> float:
    """Bytes."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_one(options) -> None:
    """One way in this process; prints a line of JSON."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    fill_registries()
    cfg = with_defaults(Config.fromfile(CONFIG))
    model = build_model(cfg.model).to(options.device).train()
    optimizer = build_optimizer(cfg.optimizer, model)
    batch = {key: value.to(options.device) if torch.is_tensor(value) else value for key, value in make_batch(options, model.dims).items()}
    forward = model if options.way == "ours" else lambda given: release_forward(model, given)
    before, seconds, losses = peak(options.device), [], {}
    for _ in range(options.repeats + 1):
        begin = time.perf_counter()
        output = forward(batch)
        output["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses = losses or {name: value.item() for name, value in output.items() if "loss" in name}
        seconds.append(time.perf_counter() - begin)
    result = dict(seconds=statistics.median(seconds[1:]), peak=peak(options.device) - before, losses=losses, voxels=int(batch["offset"][-1]))
    print("RESULT " + json.dumps(result))


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--scenes", type=int, default=2, help="scenes in a batch (%(default)s, the paper's)")
    options.add_argument("--num-points", type=int, default=20_000, help="supervised voxels of a scene (%(default)s, the paper's)")
    options.add_argument("--scene", type=Path, help="a scene folder in place of scene0000_00")
    options.add_argument("--way", choices=WAYS, help="measure this one in this process")
    options = options.parse_args()
    if options.way:
        measure_one(options)
        return
    start(options)
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise SystemExit(f"{way} did not finish ({done.returncode}):\n{done.stderr[-2000:]}")
        found[way] = json.loads(lines[0].removeprefix("RESULT "))
    for name, value in found["ours"]["losses"].items():
        if abs(value - found["release"]["losses"][name]) > 1e-3 * abs(value):
            raise SystemExit(f"{name} differs: {found}")
    print(f"{options.scenes} scenes, {found['ours']['voxels']:,} voxels, {options.num_points:,} supervised a scene\n")
    rows = [[way, each["peak"] / 2**30, each["seconds"]] for way, each in found.items()]
    rows.append(["ratio", found["ours"]["peak"] / found["release"]["peak"], found["ours"]["seconds"] / found["release"]["seconds"]])
    table(["way", "peak beyond the start, GiB", "seconds a step"], rows)


if __name__ == "__main__":
    main()
