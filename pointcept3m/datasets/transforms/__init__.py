"""Transforms of one sample. Importing this fills the TRANSFORMS registry."""

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms import collect, color, crop, geometry, sampling, targets, views
from pointcept3m.datasets.transforms.compose import Compose, Transform

__all__ = ["TRANSFORMS", "Compose", "Transform", "collect", "color", "crop", "geometry", "sampling", "targets", "views"]
