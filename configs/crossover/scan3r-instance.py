"""CrossOver on 3RScan: the object level, Instance CrossOver (Eq. 1; Fig. 4, Table 1)."""

_base_ = ["../_base_/crossover.py"]
_options_ = dict(stage="instance", data_root="data/scan3r")
