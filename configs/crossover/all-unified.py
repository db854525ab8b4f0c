"""CrossOver on ScanNet, 3RScan, ARKitScenes and MultiScan together: unified encoders around a frozen object level (Eq. 3; Fig. 6, Tables 2 and 3).

    sh tools/train.sh -c configs/crossover/all-unified.py -w exp/crossover/all-scene/model/model_last.pth
"""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="unified", data_root=["data/scannet", "data/scan3r", "data/arkitscenes", "data/multiscan"])
