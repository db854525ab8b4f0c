"""Limited labels: the files that name few scenes (`lr_file`) or few labelled points (`la_file`), read and applied.

Both are ScanNet's Data Efficient benchmark's, as Pointcept reads them: a text file with one scene name a line, and a
torch file of a dict {scene name: row numbers}. Every `PointDataset` takes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.utils.files import atomic_write, near_files
from pointcept3m.utils.registry import near_names
from pointcept3m.utils.seed import mix_seed
from pointcept3m.utils.torch_files import load_plain


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
    table = load_plain(path)
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


def order_scenes(classes: Mapping[str, Iterable[int]], seed: int = 0) -> list[str]:
    """The scenes of `classes` (the classes each one has) in the order in which they are labelled, so that every share
    of them holds the smaller shares.

    At random, but for the first ones: as long as classes are missing, the next scene is one that adds the most of them.
    Scenes without any label come last.
    """
    rng = np.random.default_rng(mix_seed(seed, "scenes"))
    names = sorted(classes)
    waiting = [names[row] for row in rng.permutation(len(names))]
    waiting.sort(key=lambda name: not set(classes[name]))
    missing = set().union(*(classes[name] for name in waiting)) if waiting else set()
    first: list[str] = []
    while missing:
        best = max(waiting, key=lambda name: len(missing.intersection(classes[name])))  # the first of equal ones
        waiting.remove(best)
        missing -= set(classes[best])
        first.append(best)
    return first + waiting


def num_scenes(percent: float, total: int) -> int:
    """How many scenes `percent` of `total` are, at least 1: of ScanNet's 1201 they are 12, 60, 120 and 240 for 1, 5, 10
    and 20 %, as in the benchmark."""
    if not 0 < percent <= 100:
        raise ValueError(f"a share of scenes must lie in (0, 100] percent, got {percent}")
    return max(1, round(total * percent / 100))


def order_points(segment: NDArray, name: str, seed: int = 0, cover: bool = True) -> NDArray[np.int64]:
    """The labelled rows (>= 0) of a scene in the order in which they are annotated, so that more points hold the fewer.

    Uniformly at random; with `cover` one random point of each class that the scene has stands before, in a random
    order of the classes. `seed` and the scene's name decide, not what other scenes there are.
    """
    rng = np.random.default_rng(mix_seed(seed, "points", name))
    rows = rng.permutation(np.flatnonzero(segment >= 0))
    if not cover:
        return rows
    _, first = np.unique(segment[rows], return_index=True)  # where each class comes first
    # shuffled anew: in the old order, what is left begins with points of the frequent classes
    return np.concatenate([rows[rng.permutation(first)], rng.permutation(np.delete(rows, first))])


def write_rows(path: str | Path, rows: Mapping[str, NDArray[np.int64]]) -> None:
    """Writes an `la_file`: a torch file {scene: int64 tensor}, which `torch.load` opens with its safe defaults."""
    table = {name: torch.from_numpy(np.sort(value)) for name, value in rows.items()}
    atomic_write(path, lambda stream: torch.save(table, stream))


def write_names(path: str | Path, names: Iterable[str]) -> None:
    """Writes an `lr_file`."""
    text = "".join(f"{name}\n" for name in names)
    atomic_write(path, lambda stream: stream.write(text.encode()))
