"""pointcept3m: pretraining, distillation and alignment of 3D scenes. Importing this imports no torch."""

__version__ = "0.1.0"
