"""Fuses the features of 2D teachers onto the points of scenes, through their posed RGB-D frames.

    python tools/preprocess/fuse_features.py --data-root data/rooms --split train val --teacher text geometric diffusion
    python tools/preprocess/fuse_features.py --data-root data/scannet --split train --teacher lseg dinov2 sd \\
        --weight lseg=weights/demo_e200.ckpt dinov2=weights/dinov2_vitl14.safetensors --feature-root data/features --every 1

Writes <scene>/features/<teacher>.safetensors, or <feature-root>/<teacher>/<split>/<scene>.safetensors. A run that was
stopped continues where it stopped. `torchrun --nproc-per-node 4 tools/preprocess/fuse_features.py ...` shares the scenes
out to processes and GPUs, of several machines too. docs/features.md has more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user

PRESETS = "text, sentence, geometric, diffusion (shipped); lseg, dinov2, sd, radio, siglip, clip (need weights)"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-root", type=Path, required=True, help="the data set: <data-root>/<split>/<scene>/")
    add("--split", nargs="+", default=["train", "val"], help="which splits (train val)")
    add("--scenes", nargs="+", help="only scenes of these names")
    add("--frames-root", type=Path, help="where frames lie as <frames-root>/<scene>/ (default: in the scene folders)")
    add("--teacher", nargs="+", required=True, metavar="T",
        help=f"a preset: {PRESETS}; NAME=PRESET; \"NAME=dict(type='TimmTeacher', ...)\"; or a .py file of such dicts")  # fmt: skip
    add("--weight", nargs="+", action="extend", default=[], metavar="NAME=PATH", help="weight files of teachers")
    add("--download", action="store_true", help="fetch weights that are not given from their hub")
    add("--feature-root", type=Path, help="where features go (default: features/ in each scene folder)")
    add("--storage", default="pca", choices=["pca", "int8", "float16"], help="how values are stored (pca)")
    add("--components", type=int, help="of the PCA (3/16 of the channels, at least 64)")
    add("--every", type=int, default=1, help="every n-th frame (1)")
    add("--frames-per-scene", type=int, default=0, help="at most this many of those, evenly spaced; 0: all (0)")
    add("--holdout", type=int, default=0, help="leave every n-th frame out, as training on views does; 0: none (0)")
    add("--dataset", help="whose depth test to use: scannet, matterport, replica, nuscenes, rooms (guessed from --data-root)")
    add("--tolerance", type=float, help="a point is visible where |depth - z| <= TOLERANCE * depth (by data set)")
    add("--no-depth", action="store_true", help="frames have no depth: all that lies before a camera is visible (nuscenes)")
    add("--depth-side", type=int, help="longer side in pixels at which depth is tested (by data set; smaller frames as they are)")
    add("--border", type=int, help="pixels at the border that do not count, at that size (10)")
    add("--color-side", type=int, help="longer side of the pictures that teachers get (640, or --depth-side if that is more)")
    add("--sampling", default="bilinear", choices=["bilinear", "nearest"], help="of the teachers' maps (bilinear)")
    add("--skip-bad-frames", action="store_true", help="leave out frames without a pose or depth, or whose pose is not finite")
    add("--skip-broken", action="store_true", help="go on past scenes that cannot be fused, and list them at the end")
    add("--overwrite", action="store_true", help="fuse anew what is there already")
    add("--batch", type=int, default=8, help="frames a teacher sees at once (8)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 (a GPU where there is one)")
    add("--workers", type=int, default=0, help="processes on this machine (0: in this one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuses with progress on stderr and a table at the end; returns 1 where a scene failed or none has features."""
    args = build_parser().parse_args(arguments)
    from pointcept3m.engines import fusion
    from pointcept3m.utils import comm
    from pointcept3m.utils.logger import get_root_logger

    name, defaults = fusion.guess_dataset(args.data_root, args.dataset)
    settings = fusion.ViewSettings(
        tolerance=defaults.tolerance if args.tolerance is None else args.tolerance,
        side=defaults.side if args.depth_side is None else args.depth_side,
        border=defaults.border if args.border is None else args.border,
        every=args.every, frames_per_scene=args.frames_per_scene, holdout=args.holdout,
        color_side=args.color_side or max(640, args.depth_side or defaults.side),
        sampling=args.sampling, depth=defaults.depth and not args.no_depth, skip_bad_frames=args.skip_bad_frames,
    )  # fmt: skip
    device = fusion.choose_device(args.device)
    job = fusion.Job(
        teachers=fusion.teacher_configs(args.teacher, args.weight, args.download, name), settings=settings, frames_root=args.frames_root,
        output=fusion.Output(args.feature_root, args.storage, args.components, args.overwrite), batch=args.batch, device=device,
        skip_broken=args.skip_broken,
    )  # fmt: skip
    comm.init_process_group(deadline=1800)
    try:
        logger = get_root_logger()
        folders = fusion.find_scenes(args.data_root, args.split, args.scenes)
        test = f"tolerance {settings.tolerance:g}" if settings.depth else "no depth"
        logger.info("%d scenes, teachers %s, on %s", len(folders), ", ".join(job.teachers), device)
        logger.info("depth test of %s (--dataset): %s, at %d pixels, border %d", name, test, settings.side, settings.border)
        reports = fusion.fuse_scenes(folders, job, args.workers)
        if comm.is_main_process():
            print(fusion.summary(reports))
        return int(any(report.error for report in reports) or not any(report.teachers for report in reports))
    finally:
        comm.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
