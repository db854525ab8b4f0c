"""ScanNet, LSeg alone by L2 (Table 7)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg",), losses={"lseg": "l2"}, uncertainty=None)
