"""Prediction of a large scan: peak memory and seconds of `pointcept3m predict`, with the SpUNet of 39 million parameters.

    python benchmarks/bench_predict.py --scan data/rooms/train/* --points 2000000     rooms, side by side
    python benchmarks/bench_predict.py --scan scene0000_00.npz --points 2000000       copies of a scan, side by side

The weights are random: neither memory nor time depends on what they are. Each run is a process of its own, so that the
peak is that of the whole command, reading and writing included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from pointcept3m.datasets.readers.ply import write_ply  # noqa: E402

CONFIG = """
model = dict(
    type="DefaultSegmentor",
    backbone=dict(type="SpUNet-v1m1", in_channels=6, num_classes=20, channels=(32, 64, 128, 256, 256, 128, 96, 96), layers=(2, 3, 4, 6, 2, 2, 2, 2)),
    criteria=[dict(type="CrossEntropyLoss")],
)
data = dict(
    num_classes=20,
    test=dict(
        type="ScanNetDataset",
        transform=[dict(type="CenterShift", apply_z=True), dict(type="NormalizeColor", mode="zero_one")],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size=0.02, mode="test", return_grid_coord=True),
            post_transform=[dict(type="ToTensor"), dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color", "normal"))],
        ),
    ),
)
"""


def build_scan(sources: list[Path], points: int) -> tuple[np.ndarray, np.ndarray]:
    """(coord, color) of `points` points: the scans in turn, on a square grid of places."""
    parts, count = [], 0
    read = [read_source(path) for path in sources]
    while count < points:
        parts.append(read[len(parts) % len(read)])
        count += len(parts[-1][0])
    side = int(np.ceil(np.sqrt(len(parts))))
    pitch = max(np.ptp(coord[:, :2], axis=0).max() for coord, _ in parts) + 0.2
    moved = [coord + np.array([i % side, i // side, 0]) * pitch for i, (coord, _) in enumerate(parts)]
    return np.concatenate(moved)[:points].astype(np.float32), np.concatenate([color for _, color in parts])[:points]


def read_source(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A scan's points, with its corner at 0, and colours, grey where it has none."""
    from pointcept3m.datasets.readers.cloud import read_cloud

    cloud = read_cloud(path)
    return cloud.coord - cloud.coord.min(axis=0), cloud.color if cloud.color is not None else np.full(cloud.coord.shape, 127, np.uint8)


def measure(command: list[str]) -> tuple[float, float]:
    """(seconds, peak GiB) of a command, children not counted apart. Raises CalledProcessError where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, command)
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, nargs="+", required=True, help="scans to lay side by side, copied as often as needed")
    parser.add_argument("--points", type=int, default=2_000_000)
    parser.add_argument("--max-points", type=int, nargs="+", default=[400_000], help="voxels in one pass, several to compare")
    parser.add_argument("--fragments", type=int, default=1, help="turns through the points of a voxel (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "config.py").write_text(CONFIG)
        coord, color = build_scan(arguments.scan, arguments.points)
        write_ply(root / "scan.ply", coord, color)
        size = " x ".join(f"{length:.1f}" for length in np.ptp(coord, axis=0))
        print(f"{len(coord):,} points over {size} m, from {len(arguments.scan)} scan(s); {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
        write_weights(root)
        for most in arguments.max_points:
            command = [sys.executable, str(REPOSITORY / "tools/predict.py"), str(root / "scan.ply"), "--weight", str(root / "w.safetensors")]
            command += ["--out", str(root / "pred.ply"), "--overwrite", "--device", "cpu", "--unit", "m", "--up-axis", "z"]
            command += ["--max-points", str(most), "--fragments", str(arguments.fragments)]
            seconds, peak = measure(command)
            print(f"--max-points {most}: {seconds:.0f} s, {len(coord) / seconds:,.0f} points a second, peak {peak:.2f} GiB")


def write_weights(root: Path) -> None:
    """w.safetensors with config.py inside, in a process that ends: its memory is not the command's."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pointcept3m.engines.checkpoint import save_weights\n"
        "from pointcept3m.engines.defaults import fill_registries\n"
        "from pointcept3m.models import build_model\n"
        "from pointcept3m.utils.config import Config\n"
        "fill_registries()\n"
        "cfg = Config.fromfile(sys.argv[2] + '/config.py')\n"
        "save_weights(build_model(cfg.model), sys.argv[2] + '/w.safetensors', {'config': cfg.pretty_text})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(REPOSITORY), str(root)], check=True)


if __name__ == "__main__":
    main()
