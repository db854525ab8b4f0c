"""Chooses few scenes and few labelled points, for training with limited labels where there are no official lists.

    python tools/preprocess/limited.py --data-root data/scannet
    python tools/preprocess/limited.py --data-root data/rooms --scenes 5 20 --points 20 --seed 1

writes <data-root>/tasks/scenes/{1,5,10,20}.txt, which a data set takes as `lr_file`, and
<data-root>/tasks/points/points{20,50,100,200}, which it takes as `la_file`. The same seed gives the same lists; larger
ones hold the smaller.

Scenes are drawn at random, but the first are those that bring the most classes, until every class is there. Points of a
scene are drawn at random, after one of each class (--uniform: without that). ScanNet's Data Efficient benchmark has
lists of its own, whose points were chosen by k-means on pretrained features: scores on these lists compare with each
other, and not with the benchmark's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcept3m.cli import run_for_user
from pointcept3m.datasets import PointDataset, build_dataset
from pointcept3m.datasets.limited import num_scenes, order_points, order_scenes, write_names, write_rows

KINDS = ("ScanNetDataset", "ScanNet200Dataset", "S3DISDataset", "RoomsDataset", "PointDataset")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-root", type=Path, required=True, help="the folder of the data set")
    add("--dataset", choices=KINDS, help="how its labels and scenes are called (a guess by its folders, printed)")
    add("--split", nargs="+", help="the splits to choose from (train; of S3DIS all areas but Area_5)")
    add("--scenes", type=float, nargs="*", default=[1, 5, 10, 20], metavar="PERCENT", help="shares of the scenes (1 5 10 20)")
    add("--points", type=positive, nargs="*", default=[20, 50, 100, 200], metavar="N", help="points a scene (20 50 100 200)")
    add("--uniform", action="store_true", help="draw points without taking one of each class first")
    add("--seed", type=int, default=0, help="(0)")
    add("--output", type=Path, help="where to write scenes/ and points/ (<data-root>/tasks)")
    add("--overwrite", action="store_true", help="replace lists that are there already")
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def guess_dataset(root: Path) -> str:
    """Which data set lies in `root`, by the names of its folders and files."""
    if (root / "Area_1").is_dir():
        return "S3DISDataset"
    scene = next((path for path in sorted(root.glob("*/*")) if (path / "coord.npy").is_file()), root)
    return "RoomsDataset" if (scene / "segment.npy").is_file() else "ScanNetDataset"


def labels(dataset: PointDataset, number: int) -> np.ndarray:
    """The labels of a scene, -1 where there is none. Raises FileNotFoundError where it has no file of them."""
    scene = dataset.scene(number)
    return scene.load(dataset.segment_asset)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the lists and says what they hold."""
    args = build_parser().parse_args(arguments)
    for line in write_lists(args):
        print(line)
    return 0


def write_lists(args: argparse.Namespace) -> list[str]:
    """Writes what the arguments ask for; returns lines about it."""
    output = args.output or args.data_root / "tasks"
    lists = {percent: output / "scenes" / f"{percent:g}.txt" for percent in args.scenes}
    points = {number: output / "points" / f"points{number}" for number in args.points}
    there = [str(path) for path in (*lists.values(), *points.values()) if path.exists()]
    if there and not args.overwrite:
        raise FileExistsError(f"{there[0]} is there already; --overwrite replaces it (official lists would be lost)")
    kind = args.dataset or guess_dataset(args.data_root)
    said = [] if args.dataset else [f"data set: {kind} (guessed; --dataset overrides)"]
    known = {} if args.split is None else {"split": args.split}
    dataset = build_dataset(dict(type=kind, data_root=str(args.data_root), **known))
    names = [dataset.get_data_name(number) for number in range(len(dataset))]
    orders, classes = {}, {}
    for number, name in enumerate(names):
        segment = labels(dataset, number)
        classes[name] = set(np.unique(segment[segment >= 0]).tolist())
        orders[name] = order_points(segment, name, args.seed, cover=not args.uniform)[: max(points, default=0)].copy()
    every = set().union(*classes.values())
    order = order_scenes(classes, args.seed)
    for percent, path in lists.items():
        chosen = order[: num_scenes(percent, len(names))]
        write_names(path, chosen)
        seen = set().union(*(classes[name] for name in chosen))
        said.append(f"{path}: {len(chosen)} of {len(names)} scenes, {len(seen)} of {len(every)} classes")
    for number, path in points.items():
        rows = {name: found[:number] for name, found in orders.items()}
        write_rows(path, rows)
        short = sum(len(found) < number for found in rows.values())
        fewer = f", {short} scenes have fewer" if short else ""
        said.append(f"{path}: {number} points in each of {len(names)} scenes{fewer}")
    return said


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
