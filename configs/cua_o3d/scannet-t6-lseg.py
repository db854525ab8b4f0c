"""ScanNet, LSeg alone: the baseline, OpenScene (Tables 6, 7, 9 and 11, first rows)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg",), uncertainty=None)
