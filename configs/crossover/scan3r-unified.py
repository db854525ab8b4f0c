"""CrossOver on 3RScan: unified encoders around a frozen object level (Eq. 3; Fig. 6, Tables 2 and 3).

    sh tools/train.sh -c configs/crossover/scan3r-unified.py -w exp/crossover/scan3r-scene/model/model_last.pth
"""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="unified")
