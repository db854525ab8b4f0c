"""Turns a ScanNet download into scene folders: points, labels and posed RGB-D frames.

    python tools/preprocess/scannet.py --raw-root /data/scannet --output-root data/scannet --frame-stride 20 --workers 8

A run that was stopped continues where it stopped.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_scannet import SPLITS, SceneReport, Settings, preprocess_scannet


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--raw-root", "--dataset_root", type=Path, required=True, help="ScanNet's folder with scans/ and scannetv2-labels.combined.tsv")
    add("--output-root", "--output_root", type=Path, required=True, help="writes <output-root>/<split>/<scene>/, e.g. data/scannet")
    add("--frames-root", type=Path, help="writes frames to <frames-root>/<scene>/ (default: into the scene's own folder)")
    add("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="which splits (all)")
    add("--frame-stride", type=int, default=20, help="every n-th frame of the recording; 0: points only (20)")
    add("--num-frames", type=int, default=0, help="at most this many of those a scene, evenly spaced; 0: all (0)")
    add("--keep-color-size", action="store_true", help="keep colour pictures as recorded instead of resizing them to the depth's size")
    add("--no-label-images", action="store_true", help="leave ScanNet's 2D label pictures out")
    add("--skip-broken", action="store_true", help="go on past scenes that cannot be read, and list them at the end")
    add("--workers", "--num_workers", type=int, default=2, help="processes (2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a scene was skipped as broken."""
    args = build_parser().parse_args(arguments)
    settings = Settings(args.frame_stride, args.num_frames, args.keep_color_size, not args.no_label_images)
    start = time.monotonic()

    def show(done: int, count: int, report: SceneReport) -> None:
        left = (time.monotonic() - start) / done * (count - done)
        state = f"FAILED {report.error}" if report.error else f"{report.num_points} points, {report.num_frames} frames"
        print(f"[{done}/{count}] {report.split}/{report.name}: {state} ({left:.0f} s left)", file=sys.stderr)

    reports = preprocess_scannet(args.raw_root, args.output_root, settings, args.frames_root, args.splits, args.workers, args.skip_broken, show)
    print(summary(reports))
    return int(any(report.error for report in reports))


def summary(reports: Sequence[SceneReport]) -> str:
    """What a person wants to know at the end: counts, lost poses, labels that the table does not know, failures."""
    lines = [f"{len(reports)} scenes, {sum(r.num_points for r in reports)} points, {sum(r.num_frames for r in reports)} frames"]
    lost = sum(r.lost_poses for r in reports)
    if lost:
        lines.append(f"{lost} frames were passed over because their pose is not valid")
    unknown = sum((Counter(r.unknown_labels) for r in reports), Counter())
    lines += [f"label {name!r} is not in the label table: {count} points left unlabelled" for name, count in unknown.most_common()]
    missing = Counter(name for r in reports for name in r.missing)
    lines += [f"missing in {count} scenes: {name}" for name, count in missing.items()]
    lines += [f"skipped {r.name}: {r.error}" for r in reports if r.error]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
