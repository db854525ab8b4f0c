"""Turns a 3RScan download into scene folders: points, objects with masks and referrals, RGB-D frames, what moved between scans.

    python tools/preprocess/scan3r.py --raw-root /data/3RScan --output-root data/scan3r \\
        --referrals ssg_ref_rel2_template.json --workers 8

A run that was stopped continues where it stopped, and torchrun shares the scans out to processes and machines.
docs/crossover_data.md has more.
"""

import sys
from collections.abc import Sequence

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_objects import ObjectSettings, chosen_lists, chosen_settings, object_parser
from pointcept3m.datasets.preprocess_scan3r import fill_scan, jobs_of
from pointcept3m.datasets.preprocess_scenes import run_tool


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a scene was skipped as broken."""
    parser = object_parser(__doc__, "the folder with 3RScan.json (or files/3RScan.json) and <scan>/ or scans/<scan>/", "data/scan3r")
    args = parser.parse_args(arguments)
    settings = ObjectSettings(**chosen_settings(args))
    return run_tool(fill_scan, lambda: jobs_of(args.raw_root, args.output_root, args.splits, settings, chosen_lists(args)), settings, args)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
