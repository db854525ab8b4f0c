"""CrossOver on 3RScan: scene and object level trained together (Eq. 4).

    sh tools/train.sh -c configs/crossover/scan3r-joint.py -w exp/crossover/scan3r-instance/model/model_best.pth
"""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="joint")
