"""A batch of point clouds as a dict with attributes, whose `offset` and `batch` always agree."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pointcept3m.utils.registry import near_names


def offset_to_counts(offset: Tensor) -> Tensor:
    """[B] cumulative ends -> [B] points of each scene."""
    return torch.diff(offset, prepend=offset.new_zeros(1))


def offset_to_batch(offset: Tensor) -> Tensor:
    """[B] cumulative ends -> [N] int64 number of the scene each point belongs to."""
    counts = offset_to_counts(offset)
    return torch.repeat_interleave(torch.arange(len(counts), device=offset.device), counts)


def batch_to_offset(batch: Tensor) -> Tensor:
    """[N] ascending scene numbers -> [B] int64 cumulative ends. Raises ValueError where they do not ascend."""
    if batch.numel() and bool((batch[1:] < batch[:-1]).any()):
        raise ValueError("batch must be sorted: the points of one scene lie together")
    return torch.cumsum(torch.bincount(batch.long()), dim=0)


class Point(dict):
    """Points of B scenes packed along the first axis; entries are also attributes (`point.feat`).

    Given `offset` or `batch`, the other is filled in.
    """

    def __init__(self, *args: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "offset" in self and "batch" not in self:
            self["batch"] = offset_to_batch(self["offset"])
        elif "batch" in self and "offset" not in self:
            self["offset"] = batch_to_offset(self["batch"])

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"Point has no {key!r}; {near_names(key, self)}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value
