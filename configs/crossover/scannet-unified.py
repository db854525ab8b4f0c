"""CrossOver on ScanNet: unified encoders around a frozen object level (Eq. 3; Fig. 6, Tables 2 and 3).

    sh tools/train.sh -c configs/crossover/scannet-unified.py -w exp/crossover/scannet-scene/model/model_last.pth
"""

_base_ = ["../_base_/crossover.py"]
_options_ = dict(stage="unified", data_root="data/scannet")
