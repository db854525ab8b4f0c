"""Fuses a folder of posed RGB-D frames into a scene folder that pretraining reads.

    python tools/preprocess/rgbd.py --input FOLDER --output data/rgbd/train/NAME --voxel 0.02 --holdout 8

The cloud is made of the training frames only: every --holdout-th frame is kept out, to be rendered and compared later.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.fusion import (
    AXES,
    DepthFrame,
    FusedCloud,
    FusionSettings,
    choose_up,
    fuse_frames,
    rotation_to_z,
)
from pointcept3m.datasets.readers.rgbd import KINDS, FrameRecord, RGBDFolder, open_rgbd
from pointcept3m.engines.arguments import join_axis
from pointcept3m.structures.images import read_color, write_depth
from pointcept3m.structures.scene import heldout


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="the folder of frames")
    parser.add_argument(
        "--output", type=Path, required=True, help="the scene folder to write, e.g. data/rgbd/train/office"
    )
    parser.add_argument(
        "--kind", default="auto", choices=["auto", *KINDS], help="what the folder is (auto: by its files)"
    )
    parser.add_argument("--voxel", type=float, default=0.02, help="metres between points (0.02)")
    parser.add_argument("--holdout", type=int, default=8, help="every n-th frame stays out of the cloud; 0: none (8)")
    parser.add_argument("--max-depth", type=float, default=4.0, help="metres beyond which depth is not believed (4)")
    parser.add_argument("--min-depth", type=float, default=0.3, help="metres below which depth is not believed (0.3)")
    parser.add_argument("--max-frames", type=int, default=0, help="use this many frames, evenly spaced; 0: all")
    parser.add_argument(
        "--up-axis", default="auto", choices=["auto", "camera", *AXES], help="what is up in the poses' world"
    )
    parser.add_argument("--depth-units", type=float, help="depth image units in a metre (1000; TUM 5000)")
    parser.add_argument(
        "--intrinsic", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="overrides the folder's"
    )
    parser.add_argument("--skip-bad-frames", action="store_true", help="leave out frames whose pose is not finite")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads, fuses, writes; prints every guess with the flag that overrides it."""
    args = build_parser().parse_args(join_axis(arguments))
    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.output} exists; pass --overwrite to replace it")
    if args.output.exists() and not (args.output / "fusion.json").is_file():
        raise FileExistsError(f"{args.output} is no scene that this script wrote (no fusion.json), so it is not replaced")
    settings = FusionSettings(voxel=args.voxel, min_depth=args.min_depth, max_depth=args.max_depth)
    folder = open_rgbd(
        args.input, args.kind, args.intrinsic, args.depth_units, "skip" if args.skip_bad_frames else "raise"
    )
    frames = _spaced(folder.frames, args.max_frames)
    held = set(heldout((frame.name for frame in frames), args.holdout))
    fused = [frame for frame in frames if frame.name not in held]
    units = f"{folder.units_per_metre:g} depth units a metre (--depth-units)"
    print(f"{args.input}: {folder.kind} folder (--kind), {len(folder.frames)} frames, {units}")
    if folder.dropped:
        print(f"left out {len(folder.dropped)} frames with a bad pose: {', '.join(folder.dropped)}")
    print(f"fusing {len(fused)} frames at {args.voxel} m, {len(held)} held out (--holdout)")
    cloud = fuse_frames(read_frames(folder, fused), settings, _Progress(len(fused)))
    up, reason = choose_up(folder, cloud, args.up_axis)
    print(f"up is ({up[0]:.3f}, {up[1]:.3f}, {up[2]:.3f}): {reason}; --up-axis x|y|z|-x|-y|-z|camera overrides")
    rotation = rotation_to_z(up)
    partial = args.output.with_name(args.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_cloud(partial, cloud, rotation)
    write_frames(partial, folder, frames, rotation)
    record = {
        "source": args.input.name, "kind": folder.kind, "voxel": args.voxel, "holdout": args.holdout,
        "max_depth": args.max_depth, "frames": len(frames), "heldout": sorted(held), "up": up.tolist(),
    }  # fmt: skip
    (partial / "fusion.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(args.output, ignore_errors=True)
    partial.rename(args.output)
    extent = np.ptp(np.load(args.output / "coord.npy", allow_pickle=False), axis=0)
    size = " x ".join(f"{length:.2f}" for length in extent)
    print(f"{args.output}: {len(cloud.coord)} points over {size} m, {len(frames)} frames")
    return 0


def _spaced(frames: Sequence[FrameRecord], most: int) -> list[FrameRecord]:
    """At most `most` of the frames, evenly spaced; all for 0."""
    if most <= 0 or len(frames) <= most:
        return list(frames)
    return [frames[int(row)] for row in (np.arange(most) + 0.5) * len(frames) / most]


def read_frames(folder: RGBDFolder, frames: Sequence[FrameRecord]) -> Iterator[DepthFrame]:
    """The frames, decoded one at a time."""
    for frame in frames:
        color, depth = folder.read(frame)
        yield DepthFrame(color, depth, folder.color_intrinsic, folder.depth_intrinsic, frame.pose)


def write_cloud(root: Path, cloud: FusedCloud, rotation: NDArray[np.float64]) -> None:
    """coord, color, normal as `.npy`, turned by `rotation`."""
    root.mkdir(parents=True)
    np.save(root / "coord.npy", (cloud.coord @ rotation.T).astype(np.float32))
    np.save(root / "color.npy", cloud.color)
    np.save(root / "normal.npy", (cloud.normal @ rotation.T).astype(np.float32))


def write_frames(root: Path, folder: RGBDFolder, frames: Sequence[FrameRecord], rotation: NDArray[np.float64]) -> None:
    """color/ depth/ pose/ intrinsic/ in the scene layout; JPEGs are copied as they are, the rest is converted."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (root / name).mkdir()
    turn = np.eye(4)
    turn[:3, :3] = rotation
    for frame in frames:
        _, depth = folder.read(frame)
        if frame.color.suffix in (".jpg", ".jpeg"):
            shutil.copyfile(frame.color, root / "color" / f"{frame.name}.jpg")
        else:
            Image.fromarray(read_color(frame.color)).save(root / "color" / f"{frame.name}.jpg", quality=95)
        write_depth(root / "depth" / f"{frame.name}.png", depth)
        np.savetxt(root / "pose" / f"{frame.name}.txt", turn @ frame.pose, fmt="%.9g")
    for name, intrinsic in (("color", folder.color_intrinsic), ("depth", folder.depth_intrinsic)):
        np.savetxt(root / "intrinsic" / f"intrinsic_{name}.txt", intrinsic, fmt="%.9g")


class _Progress:
    """A line with the time left, at most every two seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.start, self.last = total, time.monotonic(), time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last > 2 or done == self.total:
            self.last = now
            left = (now - self.start) / done * (self.total - done)
            print(f"  {done}/{self.total} frames, {left:.0f} s left", flush=True)


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
