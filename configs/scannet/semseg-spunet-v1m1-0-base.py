"""ScanNet, 20 classes: semantic segmentation from scratch (GaussianCross, Table 3, first row)."""

_base_ = ["../_base_/semseg_indoor.py"]
