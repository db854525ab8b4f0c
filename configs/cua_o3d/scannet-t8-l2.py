"""ScanNet, three teachers, DINOv2 by L2 (Table 8)."""

_base_ = ["scannet.py"]
_options_ = dict(losses={"dinov2": "l2"}, demean=(), uncertainty=None)
