"""Generates furnished rooms: RGB-D frames, scanned points and labels; nothing to download.

    python tools/preprocess/rooms.py --output-root data/rooms --train 100 --val 20 --workers 2
    python tools/preprocess/rooms.py --output-root data/rooms_modalities --train 250 --val 40 --modalities --rescans 1 --rescan-splits val
    python tools/preprocess/rooms.py --output-root data/raw --train 4 --val 2 --raw-scannet

The same numbers give the same files. With --modalities rooms are of a kind (bedroom, kitchen, ...) and come with objects, CAD
models, masks, floorplan and referrals, as CrossOver needs them. With --raw-scannet the rooms are written as a ScanNet download
instead, on which tools/preprocess/scannet.py runs.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.rooms import write_raw_scannet, write_rooms
from pointcept3m.datasets.rooms.layout import SPLITS


def _share(entry: str) -> tuple[str, float]:
    name, _, share = entry.partition(":")
    try:
        return name, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"wanted modality:share, as cad:0.2, got {entry!r}") from error


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
    add("--modalities", action="store_true", help="rooms of a kind, with objects, CAD models, masks, floorplan and referrals")
    add("--rescans", type=int, default=0, help="further scans of every room with things moved; needs --modalities (0)")
    add("--rescan-splits", nargs="+", choices=SPLITS, metavar="SPLIT", default=SPLITS, help="splits whose rooms get them (all)")
    add("--drop", nargs="+", type=_share, default=[], metavar="MODALITY:SHARE", help="scans without image, point, cad, text or floorplan: cad:0.2 (none)")
    add("--raw-scannet", action="store_true", help="write a ScanNet download instead of scene folders")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the rooms with progress on stderr."""
    args = build_parser().parse_args(arguments)
    counts = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    if not counts:
        sys.exit("error: nothing to do: ask for rooms with --train, --val or --test")
    if args.raw_scannet and (args.modalities or args.rescans):
        sys.exit("error: --raw-scannet writes what ScanNet has; --modalities and --rescans go without it")
    if args.raw_scannet:
        seeds = {split: range(args.first_seed, args.first_seed + count) for split, count in counts.items()}
        size = tuple(args.size)
        folders = write_raw_scannet(args.output_root, seeds, args.num_frames, size, (size[0] * 2 + 2, size[1] * 2 + 4))
        print(f"{len(folders)} scenes as raw ScanNet in {args.output_root}")
        return 0
    rescans = {split: args.rescans if split in args.rescan_splits else 0 for split in counts}
    for split, count in counts.items():
        start = time.monotonic()

        def show(done: int, total: int, split: str = split, start: float = start) -> None:
            left = (time.monotonic() - start) / done * (total - done)
            print(f"[{done}/{total}] {split} ({left:.0f} s left)", file=sys.stderr)

        settings = dict(workers=args.workers, modalities=args.modalities, rescans=rescans[split], drop=dict(args.drop))
        write_rooms(args.output_root, split, count, args.first_seed, args.num_frames, tuple(args.size), progress=show, **settings)
    scans = sum(count * (1 + rescans[split]) for split, count in counts.items())
    print(f"{scans} {'scans of rooms' if args.rescans else 'rooms'} in {args.output_root}")
    return 0


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
