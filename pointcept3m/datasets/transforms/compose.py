"""The frame of every transform: what it reads, both config dialects, and the chain.

Transforms compute in numpy. Where a sample holds torch tensors (GaussianCross configs put `ToTensor` first), they are
viewed as numpy for the transform and come back as tensors, so the two dialects give the same numbers.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.dialect import explicit_modes
from pointcept3m.utils.registry import near_names

DataDict = dict[str, Any]


class Transform:
    """A change of one sample. Subclasses write `apply` and name in `reads` the keys they cannot do without."""

    reads: tuple[str, ...] = ()

    def __call__(self, data_dict: DataDict) -> DataDict | list[DataDict]:
        """Applies the transform. Raises KeyError naming transform, key and the keys present."""
        self.require(data_dict, self.reads)
        if not any(isinstance(value, torch.Tensor) for value in data_dict.values()):
            return self.apply(data_dict)
        for key, value in data_dict.items():
            if isinstance(value, torch.Tensor):
                data_dict[key] = value.numpy()
        result = self.apply(data_dict)
        return [_tensors(part) for part in result] if isinstance(result, list) else _tensors(result)

    def apply(self, data_dict: DataDict) -> DataDict | list[DataDict]:
        """The change itself, on numpy arrays; may change `data_dict` in place."""
        raise NotImplementedError

    def require(self, data_dict: DataDict, keys: Sequence[str]) -> None:
        """Raises KeyError where one of `keys` is absent."""
        for key in keys:
            if key not in data_dict:
                raise KeyError(
                    f"{type(self).__name__} needs the key {key!r}; the sample has {', '.join(sorted(data_dict))} "
                    f"({near_names(key, data_dict)})"
                )


def _tensors(data_dict: DataDict) -> DataDict:
    """Arrays as tensors; floats as float32, since a tensor sample is about to be batched."""
    return {
        key: to_tensor(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else value
        for key, value in data_dict.items()
    }


def to_tensor(value: np.ndarray) -> torch.Tensor:
    """An array as a tensor: floats to float32, integers to int64, bool kept."""
    kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[value.dtype.kind]
    array = np.ascontiguousarray(value, dtype=kind)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def chance(probability: float) -> bool:
    """True with `probability`, drawn from the worker's generator."""
    return random.random() < probability


class Compose:
    """A chain of transforms, built from their configs. `GridSample` in test mode may turn one sample into several.

    tensors: whether samples come as tensors, from a chain with `ToTensor`; `self.tensors` says whether they leave so.
    A bare `NormalizeColor` after `ToTensor` means -1..1, and 0..1 before (see `dialect`).
    """

    def __init__(self, cfg: Sequence[Any] | None = None, tensors: bool = False) -> None:
        chain, self.tensors = explicit_modes(cfg or (), tensors)
        self.transforms = [TRANSFORMS.build(c) if isinstance(c, dict) else c for c in chain]

    def __call__(self, data_dict: DataDict) -> Any:
        for transform in self.transforms:
            data_dict = transform(data_dict)
        return data_dict

    def __repr__(self) -> str:
        return f"Compose([{', '.join(type(t).__name__ for t in self.transforms)}])"
