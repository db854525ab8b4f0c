"""ScanNet: PointGroup (GaussianCross, Table 4); weight=FILE starts from a pretrained backbone."""

_base_ = ["../_base_/insseg_indoor.py"]
