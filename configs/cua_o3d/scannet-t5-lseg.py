"""ScanNet, linear probe on the LSeg head (Table 5)."""

_base_ = ["../_base_/cua_o3d_probe.py"]
_options_ = dict(mode="single", probe_heads="lseg")
