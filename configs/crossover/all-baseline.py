"""CrossOver on ScanNet, 3RScan, ARKitScenes and MultiScan together: Instance Baseline: heads alone (Fig. 4 and 6, Tables 2 and 3)."""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="baseline", data_root=["data/scannet", "data/scan3r", "data/arkitscenes", "data/multiscan"])
