"""Semantic segmentation of generated rooms with the MinkUNet of configs/gaussiancross/rooms_minkunet.py.

`--options model.freeze_backbone=True weight=...` is its linear probe.
"""

_base_ = ["semseg-spunet-v1m1-0-base.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="MinkUNet14A",
        in_channels=6,
        out_channels=0,
        planes=(16, 32, 48, 64, 64, 48, 32, 32),
        init_dim=16,
    ),
)
