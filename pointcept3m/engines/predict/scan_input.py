"""What a config does to a scan before its network sees it: the test's transforms, or else the validation's, taken apart.

Whatever concerns labels is left out, since a scan to predict has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.collect import Collect, Copy
from pointcept3m.datasets.transforms.compose import Compose, DataDict
from pointcept3m.datasets.transforms.dialect import explicit_section
from pointcept3m.datasets.transforms.sampling import GridSample, find_voxels
from pointcept3m.ops.voxelize import Voxels
from pointcept3m.utils.registry import near_names

LABELS = ("segment", "instance", "instance_centroid", "bbox", "inverse", "sampled_index", "superpoint")
POINT_KEYS = ("color", "normal")  # what can be read off a scan, or be put in its place
LABEL_TRANSFORMS = ("InstanceParser", "CropBoundary", "ShufflePoint")


@dataclass
class ScanInput:
    """The steps from a scan to batches of a network.

    prepare: done to the whole scan once. voxelize: a GridSample in test mode. augmentations: chains, each of which
    makes another view of the scan for votes. finish: done to each fragment; ends with Collect, and keeps `index`.
    """

    section: str
    prepare: Compose
    voxelize: GridSample
    augmentations: list[Compose]
    finish: Compose

    @property
    def needs(self) -> list[str]:
        """Those of POINT_KEYS that a scan must have."""
        steps = [*self.prepare.transforms, self.voxelize, *self.finish.transforms]
        used = {key for step in steps for key in _reads(step)}
        return [key for key in POINT_KEYS if key in used]

    def voxels(self, sample: DataDict) -> Voxels:
        """The voxels of `sample` on the network's grid."""
        return find_voxels(np.asarray(sample["coord"]), self.voxelize.grid_size)

    def fragments(self, sample: DataDict, voxels: Voxels, most: int) -> Iterator[DataDict]:
        """At most `most` batches' worth of `sample`, one for each turn through its voxels; `index` are rows of it."""
        as_tensors = any(isinstance(value, torch.Tensor) for value in sample.values())
        if as_tensors:
            sample = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}
        for part in self.voxelize.fragments(sample, voxels, most):
            if as_tensors:
                part = {key: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v for key, v in part.items()}
            yield self.finish(part)


def scan_input(cfg: Mapping[str, Any]) -> ScanInput:
    """The steps that `cfg.data.test` takes, or `cfg.data.val` where that is not cut into fragments.

    Raises: KeyError or ValueError where the config does not say how points become a network's input.
    """
    data = cfg.get("data") or {}
    sections = {name: explicit_section(data[name]) for name in ("test", "val") if isinstance(data.get(name), Mapping) and data[name]}
    if not sections:
        raise KeyError(f"config: data has neither test nor val, which say how points become input; {near_names('test', data)}")
    for name, section in sections.items():
        test_cfg = section.get("test_cfg") or {}
        if test_cfg.get("voxelize"):
            return _from_test(name, section, test_cfg)
    for name, section in sections.items():
        steps = list(section.get("transform") or ())
        cut = next((i for i, step in enumerate(steps) if step.get("type") == "GridSample"), None)
        if cut is not None:
            return _build(name, steps[:cut], steps[cut], [[]], steps[cut + 1 :])
    raise ValueError(f"config: no GridSample in data.{' or data.'.join(sections)}, so it does not say how points become voxels")


def _from_test(name: str, section: Mapping[str, Any], test_cfg: Mapping[str, Any]) -> ScanInput:
    if test_cfg.get("crop"):
        raise ValueError(f"config: data.{name}.test_cfg.crop would leave points without a prediction; set it to None")
    augmentations = test_cfg.get("aug_transform") or [[]]
    return _build(name, section.get("transform") or (), test_cfg["voxelize"], augmentations, test_cfg.get("post_transform") or ())


def _build(name: str, prepare: Sequence[Any], voxelize: Mapping[str, Any], augmentations: Sequence[Any], finish: Sequence[Any]) -> ScanInput:
    grid = {**voxelize, "mode": "test", "return_inverse": False}
    chain = Compose(_without_labels(finish))
    if not chain.transforms or not isinstance(chain.transforms[-1], Collect):
        raise ValueError(f"config: the transforms of data.{name} must end with Collect")
    collect = chain.transforms[-1]
    collect.keys = tuple(dict.fromkeys([*collect.keys, "index"]))
    return ScanInput(
        name, Compose(_without_labels(prepare)), TRANSFORMS.build(grid), [Compose(_without_labels(chain)) for chain in augmentations], chain
    )


def _without_labels(steps: Sequence[Any]) -> list[dict[str, Any]]:
    """The chain without what needs labels or belongs to training."""
    kept = []
    for step in steps:
        step = dict(step)
        if step.get("type") in LABEL_TRANSFORMS:
            continue
        if step.get("type") == "Copy":
            pairs = step.get("keys_dict") or Copy().keys_dict
            step["keys_dict"] = {old: new for old, new in pairs.items() if not _is_label(old) and not new.startswith("origin_")}
            if not step["keys_dict"]:
                continue
        if step.get("type") == "Collect":
            keys = step["keys"]
            step["keys"] = [key for key in ([keys] if isinstance(keys, str) else keys) if not _is_label(key)]
            if step.get("offset_keys_dict"):
                step["offset_keys_dict"] = {new: old for new, old in step["offset_keys_dict"].items() if not _is_label(old)}
        kept.append(step)
    return kept


def _is_label(key: str) -> bool:
    return key in LABELS or key.startswith("origin_") or key == "name"


def _reads(step: Any) -> list[str]:
    if isinstance(step, Collect):
        return [*step.keys, *(key for keys in step.feature_keys.values() for key in keys)]
    return list(getattr(step, "reads", ()))
