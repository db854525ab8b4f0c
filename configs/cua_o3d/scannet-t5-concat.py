"""ScanNet, linear probe on the three heads side by side (Table 5, "3-heads concat")."""

_base_ = ["../_base_/cua_o3d_probe.py"]
