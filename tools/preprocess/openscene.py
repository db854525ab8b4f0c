"""Turns OpenScene's preprocessed data (its download_dataset.sh) into scene folders, point for point, so that its features fit.

    python tools/preprocess/openscene.py --points scannet_3d --frames scannet_2d --output-root data/scannet
    python tools/preprocess/openscene.py --points matterport_3d matterport_3d_40 matterport_3d_80 matterport_3d_160 \\
        --frames matterport_2d --output-root data/matterport --workers 8
    python tools/preprocess/openscene.py --points nuscenes_3d --frames nuscenes_2d --output-root data/nuscenes --normals none

Without --frames, points only. A run that was stopped continues where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_openscene import SOURCES, Settings, fill_scene, guess_dataset, jobs_of
from pointcept3m.datasets.preprocess_scenes import SPLITS, run_tool


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--points", type=Path, nargs="+", required=True, help="the folder of .pth files; further ones add labels to its scenes")
    add("--frames", type=Path, help="the folder of pictures, e.g. scannet_2d")
    add("--output-root", type=Path, required=True, help="writes <output-root>/<split>/<scene>/, e.g. data/scannet")
    add("--dataset", choices=tuple(SOURCES), help="what the points are (by the folder's name)")
    add("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="which splits (all that are there)")
    add("--normals", choices=("estimate", "none"), default="estimate", help="from the points, or no normal.npy (estimate)")
    add("--nearest", type=int, default=100, help="pictures of a test region of Matterport3D in which none was taken (100)")
    add("--skip-broken", action="store_true", help="go on past scenes that cannot be read, and list them at the end")
    add("--workers", type=int, default=2, help="processes (2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts with progress on stderr; returns 1 where a scene was skipped as broken."""
    args = build_parser().parse_args(arguments)
    dataset = args.dataset or guess_dataset(args.points[0])
    jobs = jobs_of(args.points, args.output_root, args.frames, args.splits, dataset)
    print(f"{args.points[0]}: {len(jobs)} scenes of {dataset} (--dataset)")
    settings = Settings(dataset, args.normals == "estimate", args.nearest)
    return run_tool(fill_scene, lambda: jobs, settings, args)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
