"""ScanNet, three teachers, DINOv2 by cosine (Table 8)."""

_base_ = ["scannet.py"]
_options_ = dict(losses={}, demean=(), uncertainty=None)
