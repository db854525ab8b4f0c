"""ScanNet, LSeg and Stable Diffusion (Table 6)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg", "sd"), demean=(), uncertainty=None)
