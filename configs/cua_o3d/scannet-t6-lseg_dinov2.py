"""ScanNet, LSeg and DINOv2 (Tables 6 and 9)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg", "dinov2"), uncertainty=None)
