"""ScanNet, LSeg alone by L1 (Table 7)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg",), losses={"lseg": "l1"}, uncertainty=None)
