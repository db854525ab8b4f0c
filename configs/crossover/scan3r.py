"""CrossOver on 3RScan: Instance Baseline, then object level, fusion and unified encoders, and the tables of all (Fig. 4, Tables 1 and 3).

    python tools/preprocess/modalities.py --data-root data/scan3r --split train val --recipe paper
    sh tools/train.sh -c configs/crossover/scan3r.py
"""

_base_ = ["../_base_/crossover_staged.py"]
_options_ = dict(family="scan3r")
