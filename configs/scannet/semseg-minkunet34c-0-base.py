"""ScanNet, 20 classes: MinkUNet34C (Choy et al. 2019), which gives class scores itself; weight=FILE starts from a pretrained one."""

_base_ = ["../_base_/semseg_indoor.py"]

model = dict(backbone=dict(_delete_=True, type="MinkUNet34C", in_channels=6, out_channels=20))
