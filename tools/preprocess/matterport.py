"""Turns a Matterport3D download into scene folders, one a region: points, labels of 21, 40, 80 and 160 classes, RGB-D frames.

    python tools/preprocess/matterport.py --raw-root /data/matterport/v1 --output-root data/matterport --workers 8

A run that was stopped continues where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_matterport import Settings, fill_region, jobs_of
from pointcept3m.datasets.preprocess_scenes import SPLITS, run_tool


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--raw-root", "--dataset_root", type=Path, required=True, help="the folder with <building>/region_segmentations/ (or scans/<building>/ ...)")
    add("--output-root", "--output_root", type=Path, required=True, help="writes <output-root>/<split>/<building>_region<n>/, e.g. data/matterport")
    add("--category-mapping", type=Path, help="category_mapping.tsv of Matterport3D's repository (looked for in <raw-root> and <raw-root>/metadata)")
    add("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="which splits (all)")
    add("--image-width", type=int, default=640, help="of the pictures written, at most; 0: as they are (640)")
    add("--nearest", type=int, default=100, help="pictures of a test region in which none was taken (100)")
    add("--no-frames", action="store_true", help="points only")
    add("--skip-broken", action="store_true", help="go on past regions that cannot be read, and list them at the end")
    add("--workers", "--num_workers", type=int, default=2, help="processes (2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a region was skipped as broken."""
    args = build_parser().parse_args(arguments)
    settings = Settings(not args.no_frames, args.image_width, args.nearest)
    return run_tool(fill_region, lambda: jobs_of(args.raw_root, args.output_root, args.splits, args.category_mapping), settings, args)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
