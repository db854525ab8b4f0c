"""Limited labels: the files that name few scenes (`lr_file`) or few labelled points (`la_file`), read and applied.

Both are ScanNet's Data Efficient benchmark's, as Pointcept reads them: a text file with one scene name a line, and a
torch file of a dict {scene name: row numbers}. Every `PointDataset` takes them.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names


def read_names(path: str | Path) -> list[str]:
    """The lines of a text file (`lr_file`) that are not empty. Raises FileNotFoundError, or ValueError for none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of scenes (lr_file); {near_files(path)}")
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: the list of scenes (lr_file) is empty")
    return names


def read_annotated_rows(path: str | Path) -> dict[str, NDArray[np.int64]]:
    """The rows with a label, by scene (`la_file`). Lists, tensors and plain numpy arrays of integers are read,
    nothing else.

    Raises: FileNotFoundError, or ValueError where the file is another one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of annotated points (la_file); {near_files(path)}")
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


def listed_scenes(by_name: Mapping[str, Path], names: Sequence[str], where: str) -> list[Path]:
    """The folders of `names` (of `lr_file`), in their order. Raises FileNotFoundError that names one not there."""
    missing = [name for name in names if name not in by_name]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} scenes of lr_file are not in {where}; first {missing[0]!r} "
            f"({near_names(missing[0], by_name)})"
        )
    return [by_name[name] for name in names]


def require_annotated(names: Iterable[str], rows: Mapping[str, NDArray]) -> None:
    """Raises KeyError where `rows` (of `la_file`) leaves out a scene of `names`."""
    missing = [name for name in names if name not in rows]
    if missing:
        raise KeyError(
            f"la_file leaves out {len(missing)} scenes of the split, first {missing[0]!r}; {near_names(missing[0], rows)}"
        )


def keep_annotated(data: dict[str, Any], rows: NDArray[np.int64], ignore_index: int) -> None:
    """Hides the labels of a raw sample but for `rows`, and adds `sampled_index`: those rows, ascending, each once.

    Raises: ValueError where a row is not one of the scene's.
    """
    count = len(data["coord"])
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        wrong = int(rows.min() if rows.min() < 0 else rows.max())
        raise ValueError(f"la_file names row {wrong} of {data['name']!r}, which has {count} points")
    rows = np.unique(rows)
    segment = np.full(count, ignore_index, dtype=np.int64)
    segment[rows] = data["segment"][rows]
    data["segment"], data["sampled_index"] = segment, rows
