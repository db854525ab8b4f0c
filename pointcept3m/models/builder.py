"""The model registries. Importing `pointcept3m.models` fills them."""

from typing import Any

from pointcept3m.utils.registry import Registry

MODELS = Registry("models")
LOSSES = Registry("losses")
TEACHERS = Registry("teachers")
TEXT_ENCODERS = Registry("text encoders")
SHAPE_ENCODERS = Registry("shape encoders")


def build_model(cfg: Any):
    """The model that `cfg = dict(type=..., **arguments)` names."""
    return MODELS.build(cfg)
