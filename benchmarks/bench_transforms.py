"""Data loading: the training transforms of Pointcept's ScanNet config beside Pointcept's own way, and the loader.

    python benchmarks/bench_transforms.py [--repeats 40] [--threads 1] [--step]

The sample is ScanNet's scene0000_00 (81,369 points; POINTCEPT3M_DATA must hold it, without normals there, so they are
drawn). The chain is the one of Pointcept's configs/scannet/semseg-spunet-v1m1-0-base.py. Ours and the peer
(peer_transforms.py, Pointcept's steps written anew) get copies of the same sample in turns, on one thread each. The first
table holds processor time, in which other work on the machine shows least; a row is the mean of that transform, as many are
drawn with a probability, and the totals below are medians.

Pointcept 1.7.0's `Collect` builds a tensor of the length of every single point and drops it; 1.6 did not. The total is
given with it and without it.

The second table is the way from the disk (the files lie in the page cache) to a batch, by the clock. `--step` adds a training step of
SpUNet-v1m1 at full width on one sample, which is what the loader has to keep up with.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import measure
import numpy as np
import peer_transforms

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.datasets.transforms import Compose
from pointcept3m.engines.loader import EpochBatchSampler, build_loader, shutdown_workers
from pointcept3m.models import build_model

TRANSFORM = [
    dict(type="CenterShift", apply_z=True),
    dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=0.2),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5),
    dict(type="RandomScale", scale=[0.9, 1.1]),
    dict(type="RandomFlip", p=0.5),
    dict(type="RandomJitter", sigma=0.005, clip=0.02),
    dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4], [0.8, 1.6]]),
    dict(type="ChromaticAutoContrast", p=0.2, blend_factor=None),
    dict(type="ChromaticTranslation", p=0.95, ratio=0.05),
    dict(type="ChromaticJitter", p=0.95, std=0.05),
    dict(type="GridSample", grid_size=0.02, hash_type="fnv", mode="train", return_grid_coord=True),
    dict(type="SphereCrop", point_max=102400, mode="random"),
    dict(type="CenterShift", apply_z=False),
    dict(type="NormalizeColor"),
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal")),
]


def scan() -> dict[str, np.ndarray]:
    """The scan as a data set hands it to the transforms."""
    path = measure.data_folder("scannet_scene0000_00") / "scene0000_00.npz"
    with np.load(path) as arrays:
        data = {
            "coord": arrays["coord"].astype(np.float32),
            "color": arrays["color"].astype(np.float32),
            "segment": arrays["semantic_nyu40"].astype(np.int64) % 20,
            "instance": arrays["instance"].astype(np.int64),
        }
    normal = np.random.default_rng(0).normal(size=data["coord"].shape)
    return {**data, "normal": (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32)}


def run_chain(steps: Sequence[Callable], sample: dict, times: list[list[float]]) -> None:
    """Runs a copy of `sample` through `steps` and notes the processor's seconds of each."""
    data = {key: value.copy() for key, value in sample.items()}
    taken = []
    for step in steps:
        start = time.process_time()
        data = step(data)
        taken.append(time.process_time() - start)
    times.append(taken)


def compare_chains(options: argparse.Namespace, sample: dict) -> None:
    chains = {
        "ours": Compose(TRANSFORM).transforms,
        "peer": [step for _, step in peer_transforms.chain()],
        "peer 1.6": [step for _, step in peer_transforms.chain(counts_rows=False)],
    }
    times: dict[str, list[list[float]]] = {name: [] for name in chains}
    for turn in range(options.repeats + 2):
        if turn == 2:
            times = {name: [] for name in chains}
        for name, steps in chains.items():
            run_chain(steps, sample, times[name])
    means = {name: 1e3 * np.mean(taken, axis=0) for name, taken in times.items()}
    rows = [
        [name, float(means["ours"][row]), float(means["peer"][row]), float(means["peer"][row] / means["ours"][row])]
        for row, (name, _) in enumerate(peer_transforms.chain())
    ]
    total = {name: 1e3 * float(np.median(np.sum(taken, axis=1))) for name, taken in times.items()}
    rows.append(["**whole chain, median**", total["ours"], total["peer"], total["peer"] / total["ours"]])
    rows.append(["with the Collect of 1.6", total["ours"], total["peer 1.6"], total["peer 1.6"] / total["ours"]])
    print(f"{options.repeats} samples of {len(sample['coord']):,} points\n")
    measure.table(["transform", "ours ms", "Pointcept's way ms", "ratio"], rows)


def write_scene(folder: Path, sample: dict) -> None:
    scene = folder / "train" / "scene0000_00"
    scene.mkdir(parents=True)
    for key, value in sample.items():
        kind = np.uint8 if key == "color" else value.dtype
        np.save(scene / f"{'segment20' if key == 'segment' else key}.npy", value.astype(kind))


def measure_loader(options: argparse.Namespace, sample: dict) -> None:
    """Prints the way from disk to batch."""
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder), sample)
        cfg = dict(type="ScanNetDataset", data_root=folder, transform=TRANSFORM, loop=2 * options.repeats + 20)
        dataset = build_dataset(cfg)
        pair = [dataset[0], dataset[1]]
        runs = {
            "files read and checked": lambda: dataset.get_data(0),
            "files read, checked, transformed": lambda: dataset[0],
            "two such samples put into a batch": lambda: collate_fn(pair),
        }
        times = measure.compare(runs, options.repeats)
        times["two such samples put into a batch"] /= 2
        sampler = EpochBatchSampler(len(dataset), batch_size=2)
        loader = build_loader(dataset, sampler, collate_fn, seed=0, num_worker=1)
        seconds = batch_seconds(loader, options.repeats)
        times["a loader with one worker, batches of two"] = 1e3 * statistics.median(seconds) / 2
    measure.table(["way", "ms a sample", "samples/s"], [[name, taken, 1e3 / taken] for name, taken in times.items()])


def batch_seconds(loader: Iterable, count: int) -> list[float]:
    """Seconds from batch to batch of a loader that nobody keeps waiting, without the first four."""
    marks = []
    for _ in loader:
        marks.append(time.perf_counter())
        if len(marks) > count + 4:
            break
    shutdown_workers(loader)
    return np.diff(marks)[4:].tolist()


def measure_step(sample: dict) -> None:
    """Prints the processor time of a training step on one sample: the network of the config, cross entropy, backward."""
    backbone = dict(type="SpUNet-v1m1", in_channels=6, num_classes=20)
    criteria = [dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)]
    model = build_model(dict(type="DefaultSegmentor", backbone=backbone, criteria=criteria)).train()
    batch = collate_fn([Compose(TRANSFORM)({**sample, "name": "scene0000_00"})])
    taken = []
    for _ in range(3):
        start = time.process_time()
        model(dict(batch))["loss"].backward()
        taken.append(1e3 * (time.process_time() - start))
    best = min(taken[1:])
    measure.table(["training step of SpUNet-v1m1", "ms", "samples/s"], [["one scene, CPU, one thread", best, 1e3 / best]])


def main() -> None:
    parser = measure.parser(__doc__, repeats=40)
    parser.add_argument("--step", action="store_true", help="also a training step of SpUNet-v1m1")
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    measure.start(options)
    sample = scan()
    compare_chains(options, sample)
    measure_loader(options, sample)
    if options.step:
        measure_step(sample)


if __name__ == "__main__":
    main()
