"""CrossOver on ScanNet: scene and object level trained together (Eq. 4).

    sh tools/train.sh -c configs/crossover/scannet-joint.py -w exp/crossover/scannet-instance/model/model_best.pth
"""

_base_ = ["../_base_/crossover.py"]
_options_ = dict(stage="joint", data_root="data/scannet")
