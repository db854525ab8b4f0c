"""3D backbones. Importing this package registers them in MODELS."""

from pointcept3m.models.backbones.spunet import SpUNet

__all__ = ["SpUNet"]
