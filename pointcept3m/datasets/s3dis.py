"""S3DIS as `tools/preprocess/s3dis.py` (or Pointcept) wrote it: <data_root>/Area_1/<room>/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS

S3DIS_CLASSES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board", "clutter",
)  # fmt: skip


@DATASETS.register_module()
class S3DISDataset(PointDataset):
    """Rooms of Stanford's 3D Indoor Spaces with 13 classes; names are "<area>-<room>", since areas share room names."""

    hint = (
        "Get S3DIS from its owners and write it there with `python tools/preprocess/s3dis.py` (docs/data.md), or run "
        "`pointcept3m demo`, which needs no data."
    )

    def __init__(
        self,
        split: str | Sequence[str] = ("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"),
        data_root: str | Path = "data/s3dis",
        **kwargs: Any,
    ) -> None:
        super().__init__(split=split, data_root=data_root, **kwargs)

    def scene_name(self, folder: Path) -> str:
        return f"{folder.parent.name}-{folder.name}"
