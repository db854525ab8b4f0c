"""Transforms that arrange keys: copy, update, to tensor, and the last one, Collect."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.compose import DataDict, Transform, to_tensor


@TRANSFORMS.register_module()
class Copy(Transform):
    """Copies entries: `keys_dict` maps the key to copy to the new name."""

    def __init__(self, keys_dict: Mapping[str, str] | None = None) -> None:
        self.keys_dict = dict(keys_dict or {"coord": "origin_coord", "segment": "origin_segment"})
        self.reads = tuple(self.keys_dict)

    def apply(self, data_dict: DataDict) -> DataDict:
        for source, target in self.keys_dict.items():
            data_dict[target] = copy.deepcopy(data_dict[source])
        return data_dict


@TRANSFORMS.register_module()
class Update(Transform):
    """Sets entries to the values of `keys_dict` (Pointcept's `Add` was its old name)."""

    def __init__(self, keys_dict: Mapping[str, Any] | None = None) -> None:
        self.keys_dict = dict(keys_dict or {})

    def apply(self, data_dict: DataDict) -> DataDict:
        data_dict.update(copy.deepcopy(self.keys_dict))
        return data_dict


TRANSFORMS.register_module("Add", module=Update)


@TRANSFORMS.register_module()
class Constant(Transform):
    """Adds `key` [N, channels] float32, the same `value` everywhere: the input of networks that see shape alone.

    OpenScene and CUA-O3D feed three ones a point, and no colour. Put it right before `Collect`.
    """

    reads = ("coord",)

    def __init__(self, key: str = "ones", channels: int = 3, value: float = 1.0) -> None:
        self.key, self.channels, self.value = key, channels, value

    def apply(self, data_dict: DataDict) -> DataDict:
        data_dict[self.key] = np.full((len(data_dict["coord"]), self.channels), self.value, np.float32)
        return data_dict


@TRANSFORMS.register_module()
class ToTensor:
    """Arrays become tensors: floats float32, integers int64, bool stays. Lists and dicts are walked; text stays."""

    def __call__(self, data: Any) -> Any:
        if isinstance(data, (torch.Tensor, str)) or data is None:
            return data
        if isinstance(data, np.ndarray):
            return to_tensor(data) if data.dtype.kind in "fiub" else data
        if isinstance(data, Mapping):
            return {key: self(value) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return data if all(isinstance(v, (str, int, float)) for v in data) else [self(v) for v in data]
        if isinstance(data, (bool, int, np.integer)):
            return torch.tensor([int(data)])
        if isinstance(data, (float, np.floating)):
            return torch.tensor([float(data)])
        raise TypeError(f"ToTensor: cannot turn a {type(data).__name__} into a tensor")


@TRANSFORMS.register_module()
class Collect(Transform):
    """Keeps the keys that the model needs, as tensors, counts the points and builds the features.

    Args:
        keys: keys to keep.
        offset_keys_dict: new offset key -> the key whose rows it counts; {"offset": "coord"} by default.
        stack_keys: keys that batch as [B, ...] although the table of keys does not know them as one entry a view.
        xxx_keys: each such argument builds `xxx` by putting the columns of its keys side by side, e.g.
            feat_keys=("color", "normal") -> feat [N, 6].
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        offset_keys_dict: Mapping[str, str] | None = None,
        stack_keys: str | Sequence[str] = (),
        **feature_keys: Sequence[str],
    ) -> None:
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        self.offset_keys = {"offset": "coord"} if offset_keys_dict is None else dict(offset_keys_dict)
        self.stack_keys = (stack_keys,) if isinstance(stack_keys, str) else tuple(stack_keys)
        wrong = [name for name in feature_keys if not name.endswith("_keys")]
        if wrong:
            raise TypeError(f"Collect takes keys, offset_keys_dict, stack_keys and *_keys, not {', '.join(wrong)}")
        self.feature_keys = {
            name.removesuffix("_keys"): (names,) if isinstance(names, str) else tuple(names)
            for name, names in feature_keys.items()
        }

    def __call__(self, data_dict: DataDict) -> DataDict:
        feature_sources = [key for keys in self.feature_keys.values() for key in keys]
        self.require(data_dict, (*self.keys, *self.stack_keys, *self.offset_keys.values(), *feature_sources))
        result = {key: _as_tensor(data_dict[key]) for key in self.keys}
        for key in self.stack_keys:
            result[key] = _as_tensor(data_dict[key]).unsqueeze(0)
        for key, source in self.offset_keys.items():
            result[key] = torch.tensor([len(data_dict[source])])
        for name, keys in self.feature_keys.items():
            columns = [_as_tensor(data_dict[key]).float() for key in keys]
            result[name] = torch.cat([c[:, None] if c.ndim == 1 else c for c in columns], dim=1)
        return result


def _as_tensor(value: Any) -> Any:
    return to_tensor(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else value
