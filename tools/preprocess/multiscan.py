"""Turns a MultiScan download into scene folders: points, objects with masks and referrals, posed pictures.

    python tools/preprocess/multiscan.py --raw-root /data/MultiScan --output-root data/multiscan \\
        --referrals ssg_ref_rel2_template.json --workers 8

Pictures are read from <scan>/sequence/, which this fills from a scan's video:

    mkdir SCAN/sequence && ffmpeg -i SCAN/SCAN.mp4 -vf 'select=not(mod(n\\,10))' -vsync 0 -q:v 2 -start_number 0 SCAN/sequence/%06d.jpg

A run that was stopped continues where it stopped, and torchrun shares the scans out to processes and machines.
docs/crossover_data.md has more.
"""

import sys
from collections.abc import Sequence

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_multiscan import Settings, fill_scan, jobs_of
from pointcept3m.datasets.preprocess_objects import chosen_lists, chosen_settings, object_parser
from pointcept3m.datasets.preprocess_scenes import run_tool


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a scene was skipped as broken."""
    parser = object_parser(__doc__, "the folder with scans_split.csv and scene_00000_00/ ... (or scenes/)", "data/multiscan", frame_stride=1)
    parser.add_argument("--sequence-stride", type=int, default=10, help="picture k of sequence/ is frame k * n of the video (10)")
    args = parser.parse_args(arguments)
    settings = Settings(**chosen_settings(args), sequence_stride=args.sequence_stride)
    return run_tool(fill_scan, lambda: jobs_of(args.raw_root, args.output_root, args.splits, settings, chosen_lists(args)), settings, args)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
