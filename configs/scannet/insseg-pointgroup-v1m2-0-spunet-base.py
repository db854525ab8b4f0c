"""ScanNet: PointGroup with the criteria of semantic segmentation; weight=FILE starts from a pretrained backbone."""

_base_ = ["../_base_/insseg_indoor.py"]

model = dict(
    type="PG-v1m2",
    criteria=[
        dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1),
        dict(type="LovaszLoss", mode="multiclass", loss_weight=1.0, ignore_index=-1),
    ],
)
