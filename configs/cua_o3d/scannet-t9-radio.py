"""ScanNet, a fourth teacher, AM-RADIO (Table 9)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg", "dinov2", "sd", "radio"), demean=(), uncertainty=None)
