"""CrossOver on ScanNet, 3RScan, ARKitScenes and MultiScan together: scene and object level trained together (Eq. 4).

    sh tools/train.sh -c configs/crossover/all-joint.py -w exp/crossover/all-instance/model/model_best.pth
"""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="joint", data_root=["data/scannet", "data/scan3r", "data/arkitscenes", "data/multiscan"])
