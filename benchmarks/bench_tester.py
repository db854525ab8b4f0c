"""Testing: ours beside Pointcept's way of running the same fragments, the fast mode, and memory by batch size.

    POINTCEPT3M_DATA=<folder> python benchmarks/bench_tester.py [--threads 2] [--repeats 3] [--augmentations 1] [--rooms data/rooms]
    python benchmarks/bench_tester.py --memory

Scenes: ScanNet's scene0000_00 (81,369 points, 2 cm, POINTCEPT3M_DATA must hold it; normals are drawn) with the full-size
SpUNet-v1m1 of Pointcept's ScanNet config, and two generated rooms with the network and the grid of
configs/rooms/semseg-spunet-v1m1-0-base.py. Weights are random: they take the same time. Ours is SemSegTester on files on
disk; the peer (peer_tester.py: numpy, one fragment at a time, the convolutions spconv's) starts from arrays in memory. Both take
turns, in one process with the same number of threads. "Clock" is what a user waits for; "processor" is the time of all threads
together, in which other work on the machine shows less. Only the first `--augmentations` of the 13 are run: each is as long as
any other.

`--memory` starts a process for each row and gives its peak, less what it held before the first batch.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch

from pointcept3m.engines.testers import TESTERS
from pointcept3m.models.builder import build_model
from pointcept3m.utils.logger import get_root_logger

ANGLES = (0, 1 / 2, 1, 3 / 2)
PLAN = [(angle, scale, False) for scale in (1, 0.95, 1.05) for angle in ANGLES] + [(0, 1, True)]
FULL = dict(type="SpUNet-v1m1", in_channels=6, num_classes=20)
ROOMS = dict(FULL, base_channels=16, channels=(16, 32, 48, 64, 64, 48, 32, 32), layers=(1,) * 8)
CLASSES = 20
MEMORY_ROWS = [("test", 1), ("test", 2), ("test", 3), ("train", 1), ("train", 2), ("train", 4)]
TRAIN_POINTS = 30_000  # a crop, so that a training step of 4 fits into a small machine


def write_scan(folder: Path) -> Path:
    """scene0000_00 as a data set of one scene."""
    scene = folder / "val" / "scene0000_00"
    scene.mkdir(parents=True)
    with np.load(measure.data_folder("scannet_scene0000_00") / "scene0000_00.npz", allow_pickle=False) as arrays:
        normal = np.random.default_rng(0).normal(size=arrays["coord"].shape)
        np.save(scene / "coord.npy", arrays["coord"].astype(np.float32))
        np.save(scene / "color.npy", arrays["color"].astype(np.float32))
        np.save(scene / "normal.npy", (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32))
        np.save(scene / "segment.npy", (arrays["semantic_nyu40"] % CLASSES).astype(np.int16))
    return folder


def write_rooms(source: Path, folder: Path, number: int = 2) -> Path:
    """The first validation rooms of `source`."""
    names = ("coord", "color", "normal")
    for scene in sorted((source / "val").iterdir())[:number]:
        target = folder / "val" / scene.name
        target.mkdir(parents=True)
        arrays = {name: np.load(scene / f"{name}.npy", allow_pickle=False).astype(np.float32) for name in names}
        arrays["segment"] = np.zeros(len(arrays["coord"]), np.int16)
        for name, value in arrays.items():
            np.save(target / f"{name}.npy", value)
    return folder


def config(root: Path, backbone: dict, grid_size: float, augmentations: int) -> dict:
    """Pointcept's test of ScanNet on the scenes of `root`."""

    def transforms(angle: float, scale: float, flip: bool) -> list[dict]:
        turn = dict(type="RandomRotateTargetAngle", angle=[angle], axis="z", center=[0, 0, 0], p=1)
        steps = [dict(type="RandomFlip", p=1)] if flip else [turn]
        return steps + ([] if scale == 1 else [dict(type="RandomScale", scale=[scale, scale])])

    test = dict(
        type="DefaultDataset",
        split="val",
        data_root=str(root),
        transform=[dict(type="CenterShift", apply_z=True), dict(type="NormalizeColor")],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size=grid_size, hash_type="fnv", mode="test", return_grid_coord=True),
            post_transform=[
                dict(type="CenterShift", apply_z=False),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color", "normal")),
            ],
            aug_transform=[transforms(*step) for step in PLAN[:augmentations]],
        ),
    )
    model = dict(type="DefaultSegmentor", backbone=backbone, criteria=[dict(type="CrossEntropyLoss", ignore_index=-1)])
    names = [str(k) for k in range(CLASSES)]
    return dict(save_path=str(root / "exp"), num_worker=0, model=model, data=dict(num_classes=CLASSES, names=names, test=test))


def random_model(backbone: dict) -> torch.nn.Module:
    """In eval mode, with statistics that keep the features of all layers of one size, so that classes differ."""
    model = build_model(config(Path("."), backbone, 1, 1)["model"])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0
    model.train()
    cells = torch.unique(torch.randint(0, 20, (4000, 3)), dim=0)
    batch = dict(grid_coord=cells, feat=torch.rand(len(cells), 6), offset=torch.tensor([len(cells)]))
    with torch.no_grad():
        model.backbone(batch)
    return model.eval()


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(clock, processor) seconds."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def bench_speed(options: argparse.Namespace, folder: Path) -> None:
    rows, fast_rows = [], []
    cases = [("scene0000_00, full SpUNet-v1m1, 2 cm", write_scan(folder / "scan"), FULL, 0.02)]
    if (options.rooms / "val").is_dir():
        cases.append(("two rooms, thin SpUNet-v1m1, 6 cm", write_rooms(options.rooms, folder / "rooms"), ROOMS, 0.06))
    else:
        print(f"{options.rooms} holds no rooms, so there is no row of them (tools/preprocess/rooms.py makes them)\n")
    for name, root, backbone, grid_size in cases:
        model = random_model(backbone)
        cfg = config(root, backbone, grid_size, options.augmentations)
        vote, fast = (TESTERS.build(dict(type="SemSegTester", mode=mode), cfg=cfg, model=model) for mode in ("vote", "fast"))
        done = vote._pass("vote", vote.test_loader, lambda: None)
        runs = {"ours": vote.test, "fast": fast.test}
        if peer := peer_run(root, backbone, grid_size, model, PLAN[: options.augmentations]):
            runs["peer"] = peer
        times = {key: [] for key in runs}
        for _ in range(options.repeats):
            for key, run in runs.items():
                times[key].append(timed(run))
        middle = {key: [statistics.median(column) for column in zip(*taken, strict=True)] for key, taken in times.items()}
        vote.test()
        ours, theirs = middle["ours"], middle.get("peer", (torch.nan, torch.nan))
        same = agreement(root, peer) if peer else "-"
        rows.append((name, done.fragments, *ours, *theirs, theirs[0] / ours[0], theirs[1] / ours[1], same))
        whole = [value * len(PLAN) / options.augmentations for value in ours]
        fast_rows.append((name, *whole, *middle["fast"], *(a / b for a, b in zip(whole, middle["fast"], strict=True))))
    columns = ("the same fragments", "number", "ours s", "processor s", "Pointcept's way s", "processor s", "ratio", "of processor time",
               "same class")  # fmt: skip
    measure.table(columns, rows)
    vote = f"vote, {len(PLAN)} augmentations, reckoned from {options.augmentations}, s"
    columns = ("ours", vote, "processor s", "fast s", "processor s", "ratio", "of processor time")
    measure.table(columns, fast_rows)


def peer_run(root: Path, backbone: dict, grid_size: float, model: torch.nn.Module, plan: list) -> Callable[[], dict] | None:
    """Pointcept's way with the same weights, or None where spconv is not installed."""
    try:
        import spconv  # noqa: F401
    except ImportError:
        print("spconv is not installed, so there is no peer\n")
        return None
    import peer_tester

    theirs = build_model(config(root, dict(backbone, backend="spconv"), grid_size, 1)["model"]).eval()
    theirs.load_state_dict(model.state_dict())
    scenes = {
        scene.name: {name: np.load(scene / f"{name}.npy", allow_pickle=False) for name in peer_tester.ATTRIBUTES}
        for scene in sorted((root / "val").iterdir())
    }

    def run() -> dict[str, np.ndarray]:
        run.last = {name: peer_tester.predict(scene, plan, grid_size, theirs, CLASSES) for name, scene in scenes.items()}
        return run.last

    return run


def agreement(root: Path, peer: Callable[[], dict]) -> str:
    """The share of points with the same class, from our last files and the peer's last run."""
    ours = [np.load(root / "exp" / "result" / f"{name}_pred.npy", allow_pickle=False) for name in peer.last]
    theirs = np.concatenate(list(peer.last.values()))
    return f"{100 * (np.concatenate(ours) == theirs).mean():.2f} % of {len(theirs):,}, {len(np.unique(theirs))} classes"


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(kind: str, size: int, folder: Path) -> None:
    """Prints "points before peak" of one test or training step, in MiB."""
    root = write_scan(folder)
    model = random_model(FULL)
    before = peak_mib()
    if kind == "test":
        settings = dict(type="SemSegTester", fragment_batch_size=size)
        tester = TESTERS.build(settings, cfg=config(root, FULL, 0.02, 1), model=model)
        done = tester._pass("vote", tester.test_loader, lambda: None)
        print(done.most_points, before, peak_mib())
        return
    model.train()
    dataset = TESTERS.build(dict(type="SemSegTester"), cfg=config(root, FULL, 0.02, 1), model=model).test_loader.dataset.dataset
    fragment = dataset[0]["fragment_list"][0]
    near = fragment["coord"].square().sum(1).argsort()[:TRAIN_POINTS]
    cells, feat = fragment["grid_coord"][near], fragment["feat"][near]
    ends = torch.arange(1, size + 1) * len(near)
    segment = torch.randint(0, CLASSES, (size * len(near),))
    batch = dict(grid_coord=cells.repeat(size, 1), feat=feat.repeat(size, 1), offset=ends, segment=segment)
    model(batch)["loss"].backward()
    print(len(segment), before, peak_mib())


def bench_memory(options: argparse.Namespace) -> None:
    rows = []
    for kind, size in MEMORY_ROWS:
        command = [sys.executable, __file__, "--threads", str(options.threads), "--row", kind, str(size)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{kind} with batch size {size} failed:\n{done.stderr[-2000:]}")
        points, before, peak = map(float, done.stdout.split()[-3:])
        rows.append((f"{kind}, batch size {size}", f"{points:,.0f}", peak - before, 2**20 * (peak - before) / points / 1024, peak))
    measure.table(("full SpUNet-v1m1", "points in the batch", "MiB", "KiB a point", "peak of the process MiB"), rows)


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--augmentations", type=int, default=1, help="how many of the 13 are run")
    parser.add_argument("--rooms", type=Path, default=Path("data/rooms"), help="where tools/preprocess/rooms.py wrote rooms")
    parser.add_argument("--memory", action="store_true", help="peak memory by batch size in place of times")
    parser.add_argument("--row", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    get_root_logger().setLevel("ERROR")
    if options.row:
        torch.manual_seed(0)
        torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory() as folder:
            measure_memory(options.row[0], int(options.row[1]), Path(folder))
        return
    measure.start(options)
    if options.memory:
        bench_memory(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        bench_speed(options, Path(folder))


if __name__ == "__main__":
    main()
