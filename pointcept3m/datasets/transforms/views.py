"""Transforms that make further data of a scene: two views for contrastive learning, instance targets."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.compose import Compose, DataDict, Transform
from pointcept3m.ops.voxelize import group_keys


@TRANSFORMS.register_module()
class ContrastiveViewsGenerator(Transform):
    """Two augmented copies of a scene: `view1_x` and `view2_x` for every key x that the view transforms leave.

    `view_keys` are the per-point keys a view starts with; all of them are sampled together inside a view, copies of
    the raw coordinates included.
    """

    def __init__(
        self,
        view_keys: Sequence[str] = ("coord", "color", "normal", "origin_coord"),
        view_trans_cfg: Sequence[Any] | None = None,
    ) -> None:
        self.view_keys = self.reads = tuple(view_keys)
        self.view_transform = Compose(view_trans_cfg)

    def apply(self, data_dict: DataDict) -> DataDict:
        for number in (1, 2):
            view = {key: copy.deepcopy(data_dict[key]) for key in self.view_keys}
            view["index_valid_keys"] = list(self.view_keys)
            view = self.view_transform(view)
            view.pop("index_valid_keys")
            data_dict.update({f"view{number}_{key}": value for key, value in view.items()})
        return data_dict


@TRANSFORMS.register_module()
class InstanceParser(Transform):
    """Numbers the instances 0, 1, ... and adds what PointGroup learns from.

    Points of the classes `segment_ignore_index`, and points without an instance, get `instance_ignore_index`. Adds
    instance_centroid [N, 3] float32, the mean of the point's instance (`instance_ignore_index` for points without
    one), and bbox [I, 8] float32: box centre 3, size 3, angle (0), class counted without the ignored classes.
    """

    reads = ("coord", "segment", "instance")

    def __init__(self, segment_ignore_index: Sequence[int] = (-1, 0, 1), instance_ignore_index: int = -1) -> None:
        self.segment_ignore_index = tuple(segment_ignore_index)
        self.instance_ignore_index = instance_ignore_index

    def apply(self, data_dict: DataDict) -> DataDict:
        coord, segment = data_dict["coord"], data_dict["segment"].reshape(-1)
        raw = data_dict["instance"].reshape(-1)
        kept = ~np.isin(segment, self.segment_ignore_index) & (raw != self.instance_ignore_index)
        groups = group_keys(torch.from_numpy(raw[kept].astype(np.int64)))  # objects in the order of their ids
        order, start, number = (part.numpy() for part in groups)
        instance = np.full(len(coord), self.instance_ignore_index, dtype=np.int64)
        instance[kept] = number
        centroid = np.full((len(coord), 3), self.instance_ignore_index, dtype=np.float32)
        counts = np.diff(start)
        bbox = np.zeros((len(counts), 8), dtype=np.float32)
        if len(counts):
            ordered, first = coord[kept].take(order, axis=0).astype(np.float64), start[:-1]
            low, high = np.minimum.reduceat(ordered, first), np.maximum.reduceat(ordered, first)
            centroid[kept] = (np.add.reduceat(ordered, first) / counts[:, None]).astype(np.float32)[number]
            bbox[:, :3], bbox[:, 3:6] = (low + high) / 2, high - low
            bbox[:, 7] = self._class_without_ignored(segment[kept][order[first]])
        data_dict.update(instance=instance, instance_centroid=centroid, bbox=bbox)
        return data_dict

    def _class_without_ignored(self, segment: np.ndarray) -> np.ndarray:
        """Class numbers closed up over the ignored ones: with 0 and 1 ignored, 2 becomes 0."""
        ignored = np.array([s for s in self.segment_ignore_index if s >= 0])
        return segment - (segment[:, None] > ignored[None, :]).sum(axis=1)
