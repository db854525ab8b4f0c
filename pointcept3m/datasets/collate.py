"""From samples to a batch: points packed along the first axis, views stacked, offsets added up."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from pointcept3m.ops.offsets import offset_to_counts
from pointcept3m.structures.keys import key_of, kind_of

Batch = dict[str, Any]


def collate_fn(samples: Sequence[Any]) -> Any:
    """A batch of samples, by the table of keys.

    per point, packed: concatenated · index: concatenated, each scene shifted by the points before it · offset:
    counts added up · per view: stacked to [B, M, ...] · text: listed · other tensors: concatenated along their first
    axis, as Pointcept does · numbers: a tensor [B].

    Raises: KeyError where the samples do not have the same keys; ValueError where views differ in number or size.
    """
    if not isinstance(samples, Sequence):
        raise TypeError(f"collate_fn wants a list of samples, got {type(samples).__name__}")
    if not samples:
        raise ValueError("collate_fn got an empty list of samples")
    if not isinstance(samples[0], Mapping):
        return _collate_value("", list(samples))
    keys = list(samples[0])
    for number, sample in enumerate(samples):
        if set(sample) != set(keys):
            odd = sorted(set(sample) ^ set(keys))
            raise KeyError(f"samples 0 and {number} of the batch differ in the keys {', '.join(odd)}")
    return {key: _collate_key(key, samples) for key in keys}


def _collate_key(key: str, samples: Sequence[Mapping[str, Any]]) -> Any:
    values = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in (s[key] for s in samples)]
    kind = kind_of(key)
    if not isinstance(values[0], Tensor):
        return _collate_value(key, values)
    if kind == "offset":
        return torch.cumsum(torch.cat([offset_to_counts(v) for v in values]), dim=0)
    if kind == "index":
        before = np.cumsum([0] + [_count_points(key, s) for s in samples[:-1]])
        return torch.cat([v + int(n) for v, n in zip(values, before, strict=True)])
    if kind == "per_view":
        led = values[0].ndim > len(key_of(key).shape)  # Collect(stack_keys=...) has put the leading 1 already
        shapes = {tuple(v.shape) for v in values}
        if len(shapes) > 1:
            raise ValueError(f"{key!r} cannot be stacked, its shapes differ between scenes: {sorted(shapes)}")
        return torch.cat(values) if led else torch.stack(values)
    if values[0].ndim == 0:
        return torch.stack(values)
    return torch.cat(values)


def _count_points(key: str, sample: Mapping[str, Any]) -> int:
    """How many points of `sample` the index `key` numbers: those of the same view, if it has a view's prefix."""
    prefix = next((p for p in ("view1_", "view2_") if key.startswith(p)), "")
    if prefix + "offset" in sample:
        return int(sample[prefix + "offset"][-1])
    if prefix + "coord" in sample:
        return len(sample[prefix + "coord"])
    raise KeyError(f"{key!r} numbers points, but the sample has neither {prefix}offset nor {prefix}coord")


def _collate_value(key: str, values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], (str, list, tuple)) or values[0] is None:
        return values
    if isinstance(values[0], Mapping):
        return collate_fn(values)
    return default_collate(values)


def point_collate_fn(samples: Sequence[Any], mix_prob: float = 0.0) -> Any:
    """`collate_fn`, and with probability `mix_prob` Mix3D (Nekrasov et al. 2021): neighbours become one scene.

    Scenes 0 and 1 merge, 2 and 3, ...; an odd last one stays alone. Points keep their order, so only the scene ends
    change; instance ids of the second scene are raised above those of the first, and names are joined by "+".
    """
    batch = collate_fn(samples)
    if mix_prob > 0 and isinstance(batch, dict) and random.random() < mix_prob:
        return mix_pairs(batch)
    return batch


def mix_pairs(batch: Batch) -> Batch:
    """Merges scenes 0 and 1, 2 and 3, ... of a batch. Raises ValueError where the batch has views."""
    scenes = len(batch["offset"])
    views = [key for key in batch if kind_of(key) == "per_view"]
    if views:
        raise ValueError(f"Mix3D cannot merge scenes that have views ({', '.join(views)}); set mix_prob = 0")
    if "instance" in batch:
        batch["instance"] = _separate_instances(batch["instance"], batch["offset"])
    ends = sorted({*range(1, scenes, 2), scenes - 1})
    for key, value in batch.items():
        if kind_of(key) == "offset" and len(value) == scenes:
            batch[key] = value[ends]
        elif kind_of(key) == "per_scene" and len(value) == scenes:
            pairs = [value[i : i + 2] for i in range(0, scenes, 2)]
            joined = key in ("name", "split") and isinstance(value, list)
            merged = ["+".join(dict.fromkeys(pair)) if joined else pair[0] for pair in pairs]
            batch[key] = torch.stack(merged) if isinstance(value, Tensor) else merged
    return batch


def _separate_instances(instance: Tensor, offset: Tensor) -> Tensor:
    """Raises the ids (>= 0) of every second scene above those of the scene before it."""
    instance = instance.clone()
    starts = [0, *offset[:-1].tolist()]
    for first in range(0, len(offset) - 1, 2):
        previous = instance[starts[first] : offset[first]]
        current = instance[starts[first + 1] : offset[first + 1]]
        raised = int(previous.max()) + 1 if len(previous) else 0
        current[current >= 0] += max(raised, 0)
    return instance
