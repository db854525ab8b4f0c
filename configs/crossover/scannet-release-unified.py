"""CrossOver on ScanNet as released: fusion and unified encoders in one stage, around a frozen object level (Eq. 2 and 3).

    sh tools/train.sh -c configs/crossover/scannet-release-unified.py -w exp/crossover/scannet-release-instance/model/model_best.pth
"""

_base_ = ["../_base_/crossover_release.py"]
_options_ = dict(stage="unified", data_root="data/scannet")
