"""ScanNet, LSeg, DINOv2 and Stable Diffusion without uncertainty (Tables 6, 8 and 9)."""

_base_ = ["scannet.py"]
_options_ = dict(demean=(), uncertainty=None)
