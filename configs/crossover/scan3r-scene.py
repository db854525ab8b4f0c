"""CrossOver on 3RScan: fusion of a scene's objects, with a frozen object level (Eq. 2).

    sh tools/train.sh -c configs/crossover/scan3r-scene.py -w exp/crossover/scan3r-instance/model/model_best.pth
"""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="scene")
