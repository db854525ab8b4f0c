"""ScanNet, LSeg and OpenSeg, asked through LSeg's head (Table 11)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg", "openseg"), uncertainty=None)
