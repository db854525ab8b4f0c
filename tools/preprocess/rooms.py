"""Generates furnished rooms: RGB-D frames, scanned points and labels; nothing to download.

    python tools/preprocess/rooms.py --output-root data/rooms --train 100 --val 20 --workers 2
    python tools/preprocess/rooms.py --output-root data/raw --train 4 --val 2 --raw-scannet

The same numbers give the same files. With --raw-scannet the rooms are written as a ScanNet download instead, on which
tools/preprocess/scannet.py runs.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.rooms import write_raw_scannet, write_rooms
from pointcept3m.datasets.rooms.layout import SPLITS


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output-root", type=Path, required=True, help="writes <output-root>/<split>/<room>/")
    for split in SPLITS:
        add(f"--{split}", type=int, default=0, help=f"number of {split} rooms (0)")
    add("--first-seed", type=int, default=0, help="seed of the first room of each split (0)")
    add("--num-frames", type=int, default=24, help="RGB-D frames a room (24)")
    add("--size", type=int, nargs=2, default=(120, 160), metavar=("H", "W"), help="size of the frames (120 160)")
    add("--workers", type=int, default=2, help="processes (2)")
    add("--raw-scannet", action="store_true", help="write a ScanNet download instead of scene folders")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the rooms with progress on stderr."""
    args = build_parser().parse_args(arguments)
    counts = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    if not counts:
        sys.exit("error: nothing to do: ask for rooms with --train, --val or --test")
    if args.raw_scannet:
        seeds = {split: range(args.first_seed, args.first_seed + count) for split, count in counts.items()}
        size = tuple(args.size)
        folders = write_raw_scannet(args.output_root, seeds, args.num_frames, size, (size[0] * 2 + 2, size[1] * 2 + 4))
        print(f"{len(folders)} scenes as raw ScanNet in {args.output_root}")
        return 0
    for split, count in counts.items():
        start = time.monotonic()

        def show(done: int, total: int, split: str = split, start: float = start) -> None:
            left = (time.monotonic() - start) / done * (total - done)
            print(f"[{done}/{total}] {split} ({left:.0f} s left)", file=sys.stderr)

        write_rooms(args.output_root, split, count, args.first_seed, args.num_frames, tuple(args.size), args.workers, progress=show)
    print(f"{sum(counts.values())} rooms in {args.output_root}")
    return 0


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
