"""CrossOver on ScanNet, 3RScan, ARKitScenes and MultiScan together: the object level, Instance CrossOver (Eq. 1; Fig. 4, Table 1)."""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="instance", data_root=["data/scannet", "data/scan3r", "data/arkitscenes", "data/multiscan"])
