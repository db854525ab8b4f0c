"""The dataset and transform registries. Importing `pointcept3m.datasets` fills them."""

from typing import Any

from pointcept3m.utils.registry import Registry

DATASETS = Registry("datasets")
TRANSFORMS = Registry("transforms")


def build_dataset(cfg: Any):
    """The dataset that `cfg = dict(type=..., **arguments)` names."""
    return DATASETS.build(cfg)
