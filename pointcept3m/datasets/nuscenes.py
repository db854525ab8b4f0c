"""nuScenes with the 16 classes of its lidarseg challenge, as `tools/preprocess/nuscenes.py` wrote it: a scene is a key frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.structures.label_sets import label_set


@DATASETS.register_module()
class NuScenesDataset(PointDataset):
    """Sweeps of the lidar with `strength`, without colour and normals."""

    class_names = label_set("nuscenes16").names
    hint = (
        "Get nuScenes and nuScenes-lidarseg from their owners and write them there with `python tools/preprocess/nuscenes.py` "
        "(docs/data.md), or run `pointcept3m demo`, which needs no data."
    )

    def __init__(
        self, split: str | Sequence[str] = "train", data_root: str | Path = "data/nuscenes", **kwargs: Any
    ) -> None:
        super().__init__(split=split, data_root=data_root, **kwargs)
