"""Makes pairs of overlapping frames of posed RGB-D recordings, what PointContrast is pretrained on.

    python tools/preprocess/pairs.py --input data/scannet/train data/scannet/val --output-root data/scannet_pair --workers 8
    python tools/preprocess/pairs.py --input data/rooms/train --output-root data/rooms_pair

Reads every kind of folder that tools/preprocess/rgbd.py reads, scenes that tools/preprocess/scannet.py wrote among them.
A run that was stopped continues with the scenes that are not finished.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_pairs import PairReport, PairSettings, preprocess_pairs


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    default = PairSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, help="folders of frames, or folders that hold some")
    add("--output-root", type=Path, required=True, help="writes <output-root>/<scene>/pcd/, e.g. data/scannet_pair")
    add(
        "--stride",
        type=int,
        default=default.stride,
        help=f"every n-th frame ({default.stride}; PointContrast: 25 of a raw recording)",
    )
    add(
        "--voxel",
        type=float,
        default=default.voxel,
        help=f"metres; one point of each cell is kept, 0 keeps all ({default.voxel})",
    )
    add(
        "--overlap-voxel",
        type=float,
        default=default.overlap_voxel,
        help=f"metres; the grid that overlap is measured on ({default.overlap_voxel})",
    )
    add(
        "--min-depth",
        type=float,
        default=default.min_depth,
        help=f"metres below which depth is not believed ({default.min_depth})",
    )
    add(
        "--max-depth",
        type=float,
        default=default.max_depth,
        help=f"metres beyond which depth is not believed ({default.max_depth})",
    )
    add("--workers", type=int, default=2, help="processes (2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr."""
    args = build_parser().parse_args(arguments)
    start = time.monotonic()

    def show(done: int, count: int, report: PairReport) -> None:
        left = (time.monotonic() - start) / done * (count - done)
        print(
            f"[{done}/{count}] {report.name}: {report.num_frames} frames ({report.num_empty} without depth), "
            f"{report.num_overlapping} of {report.num_pairs} pairs overlap by more than 30 % ({left:.0f} s left)",
            file=sys.stderr,
        )

    settings = PairSettings(args.stride, args.voxel, args.overlap_voxel, args.min_depth, args.max_depth)
    reports = preprocess_pairs(args.input, args.output_root, settings, args.workers, show)
    print(f"{len(reports)} scenes, {sum(r.num_overlapping for r in reports)} pairs in {args.output_root}")
    return 0


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
