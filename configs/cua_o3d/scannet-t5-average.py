"""ScanNet, a linear probe a head, logits averaged (Table 5, "3-heads average")."""

_base_ = ["../_base_/cua_o3d_probe.py"]
_options_ = dict(mode="average")
