"""Generated rooms as a labelled point data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.structures.class_names import ROOMS_NAMES

ROOMS_HINT = (
    "Rooms are generated, not downloaded: `python tools/preprocess/rooms.py --output-root data/rooms --train 32 --val 6` "
    "makes them, and `pointcept3m demo` makes some and trains on them."
)
MODALITIES_HINT = (
    "Generated rooms have all modalities: `python tools/preprocess/rooms.py --output-root data/rooms_modalities --train 250 --val 40 "
    "--modalities --rescans 1 --rescan-splits val` makes them, `python tools/preprocess/modalities.py` their features (docs/crossover.md); "
    "`pointcept3m demo` needs neither."
)


@DATASETS.register_module()
class RoomsDataset(PointDataset):
    """Generated rooms with their classes and instances."""

    class_names = ROOMS_NAMES  # of segment.npy
    hint = ROOMS_HINT

    def __init__(
        self, split: str | Sequence[str] = "train", data_root: str | Path = "data/rooms", **kwargs: Any
    ) -> None:
        super().__init__(split=split, data_root=data_root, **kwargs)
