"""ScanNet with 20 or 200 classes, as `tools/preprocess/scannet.py` (or Pointcept) wrote it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.scannet_labels import SCANNET20_IDS, SCANNET20_NAMES, SCANNET200_IDS, SCANNET200_NAMES

SCANNET_HINT = (
    "Get ScanNet from its owners and write it there with `python tools/preprocess/scannet.py` (docs/data.md), or run "
    "`pointcept3m demo`, which needs no data."
)


@DATASETS.register_module()
class ScanNetDataset(PointDataset):
    """ScanNet scenes with 20 classes."""

    segment_asset = "segment20"
    class_names = SCANNET20_NAMES
    class2id = SCANNET20_IDS  # the number that the benchmark's files have for each class
    hint = SCANNET_HINT

    def __init__(
        self, split: str | Sequence[str] = "train", data_root: str | Path = "data/scannet", **kwargs: Any
    ) -> None:
        super().__init__(split=split, data_root=data_root, **kwargs)


@DATASETS.register_module()
class ScanNet200Dataset(ScanNetDataset):
    """ScanNet scenes with 200 classes."""

    segment_asset = "segment200"
    class_names = SCANNET200_NAMES
    class2id = SCANNET200_IDS
