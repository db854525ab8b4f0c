"""Splits a data set's scenes into two chunks for the protocol of missing modalities (CrossOver, Table 4).

    python tools/preprocess/chunks.py --data-root data/scannet

writes <data-root>/tasks/chunks/{25_75,50_50,75_25}/{point,cad}.txt, which CrossOverDataset takes as `chunks`: pairs of image and point
cloud are trained on in the first chunk, pairs of image and CAD model in the second, and no scene is in both. A hash of its name says
in which a scene is, whatever other scenes there are: everybody has the same lists, smaller chunks lie in larger ones, and shares
are met on average. The paper's own lists are not published.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.limited import write_names
from pointcept3m.utils.seed import mix_seed


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-root", type=Path, required=True, nargs="+", help="the folder of the data set, or several that are trained on together")
    add("--split", nargs="+", default=["train"], help="the splits to choose from (train)")
    add("--shares", type=share, nargs="+", default=[25, 50, 75], metavar="PERCENT", help="of the first modality (25 50 75)")
    add("--modalities", nargs=2, default=["point", "cad"], metavar="NAME", help="of the first and of the second chunk (point cad)")
    add("--seed", type=int, default=0, help="(0)")
    add("--output", type=Path, help="where to write (tasks/chunks in the first data root)")
    add("--overwrite", action="store_true", help="replace lists that are there already")
    return parser


def share(text: str) -> int:
    """A percentage that leaves something for both chunks."""
    number = int(text)
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f"must be from 1 to 99, got {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the lists and says how long they are."""
    args = build_parser().parse_args(arguments)
    folders = [root / split for root in args.data_root for split in args.split]
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing}: no such folder; --data-root and --split say where the scenes are")
    names = sorted(path.name for folder in folders for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise ValueError(f"{folders[0]}: {len(names)} scenes cannot be split into two chunks")
    place = {name: mix_seed(args.seed, "chunks", name) / 2**63 * 100 for name in names}  # 0 to 100
    output = args.output or args.data_root[0] / "tasks" / "chunks"
    for percent in args.shares:
        first = [name for name in names if place[name] < percent]
        second = [name for name in names if place[name] >= percent]
        for modality, chunk in zip(args.modalities, (first, second), strict=True):
            if not chunk:
                raise ValueError(f"{folders[0]}: {len(names)} scenes are too few: none falls into the chunk of {modality} of {percent} : {100 - percent}")
            path = output / f"{percent}_{100 - percent}" / f"{modality}.txt"
            if path.exists() and not args.overwrite:
                raise FileExistsError(f"{path} is there already; --overwrite replaces it")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_names(path, chunk)
            print(f"{path}: {len(chunk)} of {len(names)} scenes")
    return 0


if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
