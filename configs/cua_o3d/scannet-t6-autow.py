"""ScanNet, three teachers with free weights, which collapse: the paper reports NaN, and so may this run (Table 6, AutoW)."""

_base_ = ["scannet.py"]
_options_ = dict(demean=(), uncertainty={"kind": "auto_weight"})
