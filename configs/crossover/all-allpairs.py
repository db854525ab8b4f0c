"""CrossOver on ScanNet, 3RScan, ARKitScenes and MultiScan together, the object level with all pairs of modalities aligned, not with the image alone (supplementary)."""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="instance", pairs="all", data_root=["data/scannet", "data/scan3r", "data/arkitscenes", "data/multiscan"])
