"""Adds to preprocessed ScanNet scenes what CrossOver needs: objects, masks, CAD models, floorplans, referrals, kinds of rooms.

    python tools/preprocess/scannet.py --raw-root /data/scannet --output-root data/scannet --frame-stride 5
    python tools/preprocess/scannet_objects.py --raw-root /data/scannet --data-root data/scannet \\
        --scan2cad full_annotations.json --shapenet /data/ShapeNetCore.v2 --layouts /data/scenecad --referrals ssg_ref_rel2_template.json

All but the first two options may be left out: a scene then lacks what they say. A run that was stopped continues where it stopped,
and torchrun shares the scenes out to processes and machines. docs/crossover_data.md has more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_scannet_objects import LABELS, MASKS, PIECES, Settings, fill_scene, jobs_of
from pointcept3m.datasets.preprocess_scenes import SPLITS, run_tool


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--raw-root", "--dataset_root", type=Path, required=True, help="ScanNet's folder with scans/")
    add("--data-root", type=Path, required=True, help="the scenes that tools/preprocess/scannet.py wrote, <data-root>/<split>/<scene>/")
    add("--frames-root", type=Path, help="where frames lie as <frames-root>/<scene>/ (default: in the scene folders)")
    add("--splits", nargs="+", default=["train", "val"], choices=SPLITS, help="which splits (train val)")
    add("--scan2cad", default="", metavar="FILE", help="Scan2CAD's full_annotations.json; needs --shapenet")
    add("--shapenet", default="", metavar="DIR", help="the folder of ShapeNetCore.v2, with <category>/<id>/models/model_normalized.obj")
    add("--layouts", default="", metavar="DIR", help="SceneCAD's folder of <scan>.json, whose walls floorplans have")
    add("--referrals", default="", metavar="FILE", help="SceneVerse's ssg_ref_rel2_template.json, or 'template' for sentences made from the boxes")
    add("--masks", default="auto", choices=MASKS,
        help="official: ScanNet's _2d-instance-filt.zip; cast: rays against the mesh; auto: official where a scan has them, else cast (auto)")  # fmt: skip
    add("--labels", default="raw", choices=LABELS, help="objects' labels as annotated, or of NYU's 40 classes as in CrossOver's release (raw)")
    add("--cad-iou", type=float, default=0.0, help="a CAD model must overlap its object's box by more than this (0)")
    add("--cad-points", type=int, default=5000, help="points on a CAD model's surface (5000)")
    add("--skip-broken", action="store_true", help="go on past scenes that cannot be read, and list them at the end")
    add("--workers", "--num_workers", type=int, default=2, help="processes (2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a scene was skipped as broken."""
    args = build_parser().parse_args(arguments)
    scan2cad, shapenet, layouts = (str(Path(path).resolve()) if path else "" for path in (args.scan2cad, args.shapenet, args.layouts))
    referrals = args.referrals if args.referrals in ("", "template") else str(Path(args.referrals).resolve())
    settings = Settings(args.masks, args.labels, referrals, scan2cad, shapenet, layouts, args.cad_iou, args.cad_points)
    return run_tool(fill_scene, lambda: jobs_of(args.raw_root, args.data_root, args.splits, settings, args.frames_root), settings, args, PIECES)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
