"""Semantic segmentation of generated rooms with the MinkUNet of configs/gaussiancross/rooms_minkunet.py.

`--options model.freeze_backbone=True weight=...` is its linear probe.
"""

_base_ = ["semseg-spunet-v1m1-0-base.py", "../_base_/rooms_minkunet.py"]

model = dict(backbone="{{ _base_.backbone }}")
