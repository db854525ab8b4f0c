"""ScanNet, 200 classes: semantic segmentation from scratch (GaussianCross, Table 3)."""

_base_ = ["../_base_/semseg_indoor.py"]
_options_ = dict(dataset_type="ScanNet200Dataset", point_max=100000)

find_unused_parameters = True
