"""Trains the pocket teachers that the package ships, and writes weights and scores beside each other.

python tools/train_pocket_teachers.py                    # all four, some minutes on two cores; "sentence" needs pointcept3m[text]
python tools/train_pocket_teachers.py --kinds text --out /tmp/weights
"""

import argparse
import logging
from pathlib import Path

from pointcept3m.engines.pocket import TRAINERS
from pointcept3m.engines.pocket_scores import make_pocket_teachers
from pointcept3m.models.teachers.pocket import WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(TRAINERS), choices=list(TRAINERS), help="which to train")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights and pocket.json")
    parser.add_argument("--rooms", type=int, default=200, help="rooms to train on, seeds from 1 000 000")
    parser.add_argument("--frames", type=int, default=10, help="frames of each room")
    parser.add_argument("--steps", type=int, help="training steps; each kind has its own default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    make_pocket_teachers(**vars(options))


if __name__ == "__main__":
    main()
