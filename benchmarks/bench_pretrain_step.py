"""Time and memory of one GaussianCross training step, split by part.

    python benchmarks/bench_pretrain_step.py -c configs/gaussiancross/rooms.py --steps 10 [--options a.b=c ...]

Prints a markdown table of medians: data (one batch in this process), backbone, scatter, 3D CNN, heads, rasterizer,
teacher, projection and losses, backward, optimizer (clipping included). One step is one batch of `batch_size` with an
update after it, under the config's `enable_amp`, `amp_dtype` and `clip_grad`. Peak memory is the process's on a CPU, the allocator's on a GPU.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.engines import step
from pointcept3m.engines.defaults import default_config_parser, fill_registries, import_custom, with_defaults
from pointcept3m.engines.loader import to_device
from pointcept3m.models import build_model
from pointcept3m.models.gaussiancross import model as gaussiancross
from pointcept3m.utils.optimizer import build_optimizer


class Stopwatch:
    """Seconds by part; on a GPU every reading waits for the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.step: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str):
        start = self.now()
        yield
        self.step[name] += self.now() - start

    def wrap(self, name: str, function):
        """`function`, with the time it takes added to the part `name`."""

        def timed(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    def end_step(self) -> None:
        for name, value in self.step.items():
            self.seconds[name].append(value)
        self.step.clear()


def watch(model: torch.nn.Module, watch: Stopwatch) -> None:
    """Times the model's parts; what is left of `forward` is projection and losses."""
    model.backbone.forward = watch.wrap("backbone", model.backbone.forward)
    model.volume_encoder.forward = watch.wrap("3D CNN", model.volume_encoder.forward)
    model.gaussian_head.forward = watch.wrap("heads", model.gaussian_head.forward)
    model.teach = watch.wrap("teacher", model.teach)
    gaussiancross.scatter_to_volume = watch.wrap("scatter", gaussiancross.scatter_to_volume)
    gaussiancross.splat = watch.wrap("rasterizer", gaussiancross.splat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config-file", default="configs/gaussiancross/rooms.py")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--options", nargs="+", default=[])
    args = parser.parse_args()
    cfg = with_defaults(default_config_parser(args.config_file, args.options))
    fill_registries()
    import_custom(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = step.Precision(cfg.enable_amp, cfg.amp_dtype, device)
    torch.manual_seed(0)
    model = build_model(cfg.model).to(device).train()
    optimizer = build_optimizer(cfg.optimizer, model, cfg.param_dicts)
    clock = Stopwatch(device)
    watch(model, clock)
    loader = DataLoader(build_dataset(cfg.data.train), cfg.batch_size, shuffle=True, collate_fn=collate_fn, drop_last=True)
    num_gaussians, done = [], 0
    while done < args.steps + args.warmup:
        batches = iter(loader)
        while done < args.steps + args.warmup:
            with clock.part("data"):
                batch = next(batches, None)
            if batch is None:
                clock.step.clear()
                break
            batch = to_device(batch, device)
            with clock.part("forward"), precision.autocast():
                output = model(batch)
            with clock.part("backward"):
                step.backward(output["loss"], 1, precision.scaler)
            with clock.part("optimizer"):
                step.update(model, optimizer, None, precision.scaler, cfg.clip_grad, f"step {done}")
            num_gaussians.append(output["num_gaussians"].item())
            done += 1
            if done == args.warmup:
                clock.step.clear()
                clock.seconds.clear()
            clock.end_step()
    report(clock, device, args, precision, num_gaussians)


def report(
    clock: Stopwatch, device: torch.device, args: argparse.Namespace, precision: step.Precision, num_gaussians: list[float]
) -> None:
    """Prints the table of medians."""
    medians = {name: statistics.median(values) for name, values in clock.seconds.items()}
    inside = ("backbone", "scatter", "3D CNN", "heads", "rasterizer", "teacher")
    # Step by step, since a difference of medians can be negative.
    parts = [clock.seconds[name] for name in inside if name in clock.seconds]
    rest = [whole - sum(step) for whole, *step in zip(clock.seconds["forward"], *parts, strict=True)]
    medians["projection and losses"] = statistics.median(rest)
    total = medians["data"] + medians["forward"] + medians["backward"] + medians["optimizer"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.config_file}, {args.steps} steps, {name}, torch {torch.__version__}, "
          f"{str(precision.dtype).removeprefix('torch.')}, "
          f"{statistics.median(num_gaussians):.0f} Gaussians a scene\n")  # fmt: skip
    print("| part | ms | share |\n|---|---|---|")
    for part in ("data", *inside, "projection and losses", "backward", "optimizer"):
        print(f"| {part} | {medians.get(part, 0.0) * 1e3:.0f} | {medians.get(part, 0.0) / total:.0%} |")
    print(f"| one step | {total * 1e3:.0f} | 100% |")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak memory: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
