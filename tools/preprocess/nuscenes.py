"""Turns nuScenes with nuScenes-lidarseg into scene folders, one a key frame: the lidar's sweep, labels, six posed pictures.

    python tools/preprocess/nuscenes.py --raw-root /data/nuscenes --output-root data/nuscenes --splits val --workers 8

A run that was stopped continues where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_nuscenes import VERSIONS, Settings, fill_sample, jobs_of
from pointcept3m.datasets.preprocess_scenes import SPLITS, run_tool


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--raw-root", "--dataset_root", type=Path, required=True, help="the folder with samples/, lidarseg/ and v1.0-trainval/")
    add("--output-root", "--output_root", type=Path, required=True, help="writes <output-root>/<split>/scene-XXXX_<key frame>/, e.g. data/nuscenes")
    add("--version", choices=VERSIONS, help="which tables (those that are there)")
    add("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="which splits (all)")
    add("--stride", type=int, default=1, help="every n-th key frame of a scene (1)")
    add("--image-width", type=int, default=800, help="of the pictures written, at most; 0: as they are (800)")
    add("--no-frames", action="store_true", help="points only")
    add("--skip-broken", action="store_true", help="go on past key frames that cannot be read, and list them at the end")
    add("--workers", "--num_workers", type=int, default=2, help="processes (2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a key frame was skipped as broken."""
    args = build_parser().parse_args(arguments)
    print(f"reading the tables of {args.raw_root} (a minute, and some gigabytes of memory, for v1.0-trainval)", file=sys.stderr)
    settings = Settings(not args.no_frames, args.image_width)
    return run_tool(fill_sample, lambda: jobs_of(args.raw_root, args.output_root, args.version, args.splits, args.stride), settings, args)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
