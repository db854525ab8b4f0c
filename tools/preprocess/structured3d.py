"""Turns a Structured3D download into scene folders, one a room: points, objects with masks, pictures, floorplans, kinds of rooms.

    python tools/preprocess/structured3d.py --raw-root /data/Structured3D --output-root data/structured3d --referrals template --workers 8

A run that was stopped continues where it stopped, and torchrun shares the rooms out to processes and machines.
docs/crossover_data.md has more.
"""

import sys
from collections.abc import Sequence

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.preprocess_objects import chosen_lists, chosen_settings, object_parser
from pointcept3m.datasets.preprocess_scenes import run_tool
from pointcept3m.datasets.preprocess_structured3d import Settings, fill_room, jobs_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the preprocessing with progress on stderr; returns 1 where a room was skipped as broken."""
    parser = object_parser(__doc__, "the folder of scene_XXXXX/, unpacked", "data/structured3d", frame_stride=1, recorded=False)
    parser.add_argument("--panorama-views", type=int, default=8, help="pictures cut out of a room's panorama; 0: none (8)")
    parser.add_argument("--voxel", type=float, default=0.02, help="metres between fused points (0.02)")
    args = parser.parse_args(arguments)
    settings = Settings(**chosen_settings(args), panorama_views=args.panorama_views, voxel=args.voxel)
    return run_tool(fill_room, lambda: jobs_of(args.raw_root, args.output_root, args.splits, settings, chosen_lists(args)), settings, args)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
