"""Trains the pocket shape encoder that the package ships, and writes weights and scores beside each other.

python tools/train_pocket_shape.py                       # some minutes on one core
python tools/train_pocket_shape.py --out /tmp/weights --rooms 20 --steps 100
"""

import argparse
import logging
from pathlib import Path

from pointcept3m.engines.pocket_shape import STEPS, make_pocket_shape
from pointcept3m.models.shapes.pocket import WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights and pocket_shape.json")
    parser.add_argument("--rooms", type=int, default=150, help="rooms whose furniture is trained on, seeds from 3 000 000")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    make_pocket_shape(**vars(options))


if __name__ == "__main__":
    main()
