"""Semantic segmentation of generated rooms with the Point Transformer V3 of configs/gaussiancross/rooms_ptv3.py.

`--options model.freeze_backbone=True weight=...` is its linear probe.
"""

_base_ = ["semseg-spunet-v1m1-0-base.py", "../_base_/rooms_ptv3.py"]

model = dict(backbone="{{ _base_.backbone }}")
