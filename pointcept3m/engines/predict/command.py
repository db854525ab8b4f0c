"""`pointcept3m predict`: the classes of a scan from a file, as a coloured file with a legend."""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.engines.arguments import add_scan_arguments, join_axis, rgbd_options, scan_options

EPILOG = """\
SCAN is a .ply, .pcd, .las, .laz, .npy, .npz, .xyz, .txt, .csv, .asc or .pts file, a Pointcept scene folder (coord.npy, ...)
or a folder of posed RGB-D frames. What it does not say is guessed, and each guess is printed with the flag that overrides it.

  pointcept3m predict scan.ply --weight exp/rooms/semseg --out pred.ply
  pointcept3m predict scan.npy --weight model.pth --config configs/scannet/semseg.py --out pred.npz --mode vote
  pointcept3m predict scan.ply --weight exp/cua_o3d/words --labels "chair,table,plant"
"""


def build_parser(prog: str = "pointcept3m predict") -> argparse.ArgumentParser:
    """The command line; imports no torch."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Predicts the class of every point of a scan.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("scan", type=Path, metavar="SCAN", help="the scan, a file or a folder")
    add("--weight", required=True, metavar="W", help="a .pth or .safetensors file with its config inside, or a run folder")
    add("--out", type=Path, metavar="FILE", help="what to write: .ply, .npy, .npz, .las or .laz (<SCAN's name>.pred.ply, here)")
    add("--config", type=Path, metavar="FILE", help="config file, for weights that do not carry theirs")
    add("--labels", metavar="WORDS", help="the classes of a distilled model, words with commas between them or the name of a label set (its config's)")
    add("--overwrite", action="store_true", help="replace --out where it exists")
    add("--confidence", action="store_true", help="write the probability of each point's class too")
    add("--device", help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    add("--mode", default="fast", choices=["fast", "vote"], help="vote adds the augmented views of the config's test (%(default)s)")
    add("--fragments", type=int, metavar="N", help="the most turns through the points of a voxel (4; with --mode vote 64)")
    add("--max-points", type=int, default=400_000, metavar="N", help="voxels in one pass; bounds memory (%(default)s)")
    add("--overlap", type=float, default=1.0, metavar="M", help="metres by which the boxes of a large scan reach beyond a cut (%(default)s)")
    add("--seed", type=int, default=0, help="of the augmentations (%(default)s)")
    add_scan_arguments(parser)
    return parser


def predict_main(argv: Sequence[str] | None = None) -> int:
    """Predicts as the arguments say, prints what was assumed and a table of classes, writes the files; returns 0.

    Raises: what `check_output`, `read_cloud`, `load` and `Predictor.predict` raise; whether the result can be written is
        found out before anything is computed, and whether the scan can be read before the weight is loaded.
    """
    arguments = build_parser().parse_args(join_axis(argv))
    from pointcept3m.datasets.readers.cloud import check_rgbd, is_rgbd, read_cloud
    from pointcept3m.engines.predict.prediction import check_output
    from pointcept3m.engines.predict.predictor import find_weight, load
    from pointcept3m.structures.label_sets import LABEL_SETS, named_or_free
    from pointcept3m.utils.files import near_files

    scan = arguments.scan
    if not scan.exists():
        raise FileNotFoundError(f"{scan}: no such file or folder; {near_files(scan)}")
    if arguments.out is None:
        arguments.out = Path(f"{scan.resolve().name if scan.is_dir() else scan.stem}.pred.ply")
        print(f"writes {arguments.out} into this folder (--out)")
    out = check_output(arguments.out, arguments.overwrite)
    if out.resolve() == scan.resolve():
        raise ValueError(f"--out {out} is the scan itself; wanted another name")
    find_weight(arguments.weight)
    if arguments.labels is not None:
        named_or_free(arguments.labels)
    start = time.monotonic()
    rgbd = rgbd_options(arguments)
    if is_rgbd(scan):  # fusing takes minutes, so it waits until the weight is known to be good
        check_rgbd(scan, **rgbd)
        points = scan
    else:
        points = read_cloud(scan, arguments.columns)
    model = load(arguments.weight, arguments.config, arguments.device, arguments.labels)
    print(model)
    result = model.predict(
        points,
        mode=arguments.mode,
        max_points=arguments.max_points,
        overlap=arguments.overlap,
        fragments=arguments.fragments,
        seed=arguments.seed,
        columns=arguments.columns,
        rgbd=rgbd,
        **scan_options(arguments),
    )
    print(result.table())
    if arguments.labels is not None and arguments.labels not in LABEL_SETS:
        print("every point has the likeliest of these words, however unlikely: add words for all else (wall,floor,...), or use a label set")
    files = result.save(out, arguments.confidence)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform != "darwin" else 1 << 30)
    print(f"{', '.join(map(str, files))}: {len(result):,} point{'s' if len(result) > 1 else ''} in {time.monotonic() - start:.1f} s, {peak:.1f} GiB of memory at most")
    return 0
