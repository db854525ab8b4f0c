"""Shape encoders: frozen networks that turn an object's points into one vector."""

from pointcept3m.models.shapes.base import ShapeEncoder, sample_points, unit_sphere
from pointcept3m.models.shapes.i2pmae import I2PMAE
from pointcept3m.models.shapes.pocket import PocketShape

__all__ = ["I2PMAE", "PocketShape", "ShapeEncoder", "sample_points", "unit_sphere"]
