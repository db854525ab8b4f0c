"""CrossOver on ScanNet, 3RScan, ARKitScenes and MultiScan together: Instance Baseline, then object level, fusion and unified encoders, and the tables of all (the paper's own models: Tables 1 to 3 are of one trained on all data sets).

    sh tools/train.sh -c configs/crossover/all.py
"""

_base_ = ["../_base_/crossover_staged.py"]
_options_ = dict(family="all")
