"""CrossOver on ScanNet: fusion of a scene's objects, with a frozen object level (Eq. 2).

    sh tools/train.sh -c configs/crossover/scannet-scene.py -w exp/crossover/scannet-instance/model/model_best.pth
"""

_base_ = ["../_base_/crossover.py"]
_options_ = dict(stage="scene", data_root="data/scannet")
