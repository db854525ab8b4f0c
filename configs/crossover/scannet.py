"""CrossOver on ScanNet: Instance Baseline, then object level, fusion and unified encoders, and the tables of all (Fig. 4 and 6, Table 2).

    python tools/preprocess/modalities.py --data-root data/scannet --split train val --recipe paper
    sh tools/train.sh -c configs/crossover/scannet.py
"""

_base_ = ["../_base_/crossover_staged.py"]
_options_ = dict(family="scannet")
