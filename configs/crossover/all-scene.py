"""CrossOver on ScanNet, 3RScan, ARKitScenes and MultiScan together: fusion of a scene's objects, with a frozen object level (Eq. 2).

    sh tools/train.sh -c configs/crossover/all-scene.py -w exp/crossover/all-instance/model/model_best.pth
"""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="scene", data_root=["data/scannet", "data/scan3r", "data/arkitscenes", "data/multiscan"])
