"""Matterport3D with 21, 40, 80 or 160 classes, as `tools/preprocess/matterport.py` wrote it: a scene is a region of a building."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.preprocess_matterport import CLASS_COUNTS
from pointcept3m.structures.label_sets import label_set


@DATASETS.register_module()
class MatterportDataset(PointDataset):
    """Regions of Matterport3D.

    Args:
        num_classes: 21 (ScanNet's 20 and ceiling), or the 40, 80 or 160 most frequent NYU classes. `class_names` are theirs.
    """

    hint = (
        "Get Matterport3D from its owners and write it there with `python tools/preprocess/matterport.py` (docs/data.md), or "
        "run `pointcept3m demo`, which needs no data."
    )

    def __init__(
        self, split: str | Sequence[str] = "train", data_root: str | Path = "data/matterport", num_classes: int = 21, **kwargs: Any
    ) -> None:
        if num_classes not in CLASS_COUNTS:
            raise ValueError(f"num_classes must be 21, 40, 80 or 160, got {num_classes!r}")
        self.class_names = label_set(f"matterport{num_classes}").names
        self.segment_asset = f"segment{num_classes}"
        super().__init__(split=split, data_root=data_root, **kwargs)
