"""CrossOver on 3RScan: Instance Baseline: heads alone (Fig. 4 and 6, Tables 2 and 3)."""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="baseline")
