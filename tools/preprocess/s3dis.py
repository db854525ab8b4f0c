"""Turns an S3DIS download (Stanford3dDataset_v1.2, or _Aligned_Version) into scene folders.

    python tools/preprocess/s3dis.py --raw-root /data/Stanford3dDataset_v1.2_Aligned_Version --output-root data/s3dis --workers 8
    python tools/preprocess/s3dis.py --raw-root /data/Stanford3dDataset_v1.2 --output-root data/s3dis --align-angle --workers 8

Normals are estimated from the points. (Pointcept's --parse_normal takes them from the meshes of 2D-3D-S, another download
of 200 GB; that is not supported.) Bytes that spoil a line are mended and named. A run that was stopped continues.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_s3dis import RoomReport, Settings, preprocess_s3dis
from pointcept3m.datasets.s3dis import S3DIS_CLASSES


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--raw-root", "--dataset_root", type=Path, required=True, help="the folder with Area_1 .. Area_6")
    add("--output-root", "--output_root", type=Path, required=True, help="writes <output-root>/Area_1/<room>/, e.g. data/s3dis")
    add("--areas", nargs="+", default=[], metavar="Area_1", help="which areas (all)")
    add("--align-angle", "--align_angle", action="store_true", help="turn each room by its angle (Area_1_alignmentAngle.txt)")
    add("--normals", choices=("estimate", "none"), default="estimate", help="from the points, or no normal.npy (estimate)")
    add("--skip-broken", action="store_true", help="go on past rooms that cannot be read, and list them at the end")
    add("--workers", "--num_workers", type=int, default=2, help="processes (2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a room was skipped as broken."""
    args = build_parser().parse_args(arguments)
    start = time.monotonic()

    def show(done: int, count: int, report: RoomReport) -> None:
        left = (time.monotonic() - start) / done * (count - done)
        state = f"FAILED {report.error}" if report.error else f"{report.num_points} points, {report.num_objects} objects"
        print(f"[{done}/{count}] {report.area}/{report.name}: {state} ({left:.0f} s left)", file=sys.stderr)

    if args.align_angle and "aligned" in args.raw_root.name.lower():
        print(f"warning: {args.raw_root.name} seems to be the aligned version; --align-angle turns its rooms once more", file=sys.stderr)
    settings = Settings(args.align_angle, args.normals == "estimate")
    reports = preprocess_s3dis(args.raw_root, args.output_root, settings, args.areas, args.workers, args.skip_broken, show)
    print(summary(reports))
    return int(any(report.error for report in reports))


def summary(reports: Sequence[RoomReport]) -> str:
    """Rooms by area, points by class, and everything that was mended, left out or failed."""
    good = [report for report in reports if not report.error]
    rooms = Counter(report.area for report in good)
    by_area = ", ".join(f"{area} {count}" for area, count in sorted(rooms.items()))
    total = sum(report.num_points for report in good)
    lines = [f"{len(good)} rooms ({by_area}), {sum(r.num_objects for r in good)} objects, {total} points"]
    points = np.sum([report.class_points for report in good], axis=0, dtype=np.int64) if good else []
    lines += [f"  {name:9}{count:>12}  {100 * count / total:5.1f} %" for name, count in zip(S3DIS_CLASSES, points, strict=False)]
    lines += [f"{report.area}/{report.name}: {note}" for report in good for note in report.notes]
    lines += [f"skipped {report.area}/{report.name}: {report.error}" for report in reports if report.error]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
