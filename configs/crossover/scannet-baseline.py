"""CrossOver on ScanNet: Instance Baseline: heads alone (Fig. 4 and 6, Tables 2 and 3)."""

_base_ = ["../_base_/crossover.py"]
_options_ = dict(stage="baseline", data_root="data/scannet")
