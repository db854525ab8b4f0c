"""ScanNet with 20 or 200 classes, as `tools/preprocess/scannet.py` (or Pointcept) wrote it."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.transforms.compose import DataDict
from pointcept3m.utils.registry import near_names

SCANNET_HINT = (
    "Get ScanNet from its owners and write it there with `python tools/preprocess/scannet.py` (docs/data.md), or run "
    "`pointcept3m demo`, which needs no data."
)


@DATASETS.register_module()
class ScanNetDataset(PointDataset):
    """ScanNet scenes with 20 classes.

    Args:
        lr_file: a text file of scene names: only those scenes are used (ScanNet's limited reconstructions).
        la_file: a torch file {scene name: rows that carry a label}: other labels are hidden (limited annotations),
            and the rows stand in `sampled_index`.
        **kwargs: as PointDataset.
    """

    segment_asset = "segment20"
    hint = SCANNET_HINT

    def __init__(
        self,
        split: str | Sequence[str] = "train",
        data_root: str | Path = "data/scannet",
        lr_file: str | Path | None = None,
        la_file: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self.lr_names = None if lr_file is None else read_names(Path(lr_file))
        self.la_rows = None if la_file is None else read_annotated_rows(Path(la_file))
        super().__init__(split=split, data_root=data_root, **kwargs)

    def get_data_list(self) -> list[Path]:
        folders = super().get_data_list()
        if self.lr_names is None:
            return folders
        by_name = {folder.name: folder for folder in folders}
        missing = [name for name in self.lr_names if name not in by_name]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} scenes of lr_file are not in {self.data_root}, split {self.split}; first {missing[0]!r}"
            )
        return [by_name[name] for name in self.lr_names]

    def get_data(self, idx: int) -> DataDict:
        data = super().get_data(idx)
        if self.la_rows is not None:
            name = data["name"]
            if name not in self.la_rows:
                raise KeyError(f"la_file has no scene {name!r}; {near_names(name, self.la_rows)}")
            rows = self.la_rows[name]
            if len(rows) and (rows.min() < 0 or rows.max() >= len(data["coord"])):
                raise ValueError(f"la_file names row {rows.max()} of {name!r}, which has {len(data['coord'])} points")
            hidden = np.ones(len(data["coord"]), dtype=bool)
            hidden[rows] = False
            data["segment"] = np.where(hidden, self.ignore_index, data["segment"])
            data["sampled_index"] = rows
        return data


@DATASETS.register_module()
class ScanNet200Dataset(ScanNetDataset):
    """ScanNet scenes with 200 classes."""

    segment_asset = "segment200"


def read_names(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of scenes (lr_file)")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_annotated_rows(path: Path) -> dict[str, np.ndarray]:
    """The rows with a label, by scene. Lists, tensors and plain numpy arrays of integers are read, nothing else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of annotated points (la_file)")
    # what numpy needs to rebuild an array of numbers; no other global may run while the file is read
    rebuild = np.empty(0).__reduce__()[0]
    old_name = (rebuild, "numpy.core.multiarray._reconstruct")  # as numpy 1 wrote it
    numpy_parts = [rebuild, old_name, np.ndarray, np.dtype, np.dtypes.Int64DType, np.dtypes.Int32DType]
    with torch.serialization.safe_globals(numpy_parts):
        try:
            table = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path}: not a plain torch file of row numbers ({error})") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: wanted a dict of scene names, got {type(table).__name__}")
    return {str(name): np.asarray(rows, dtype=np.int64).reshape(-1) for name, rows in table.items()}
