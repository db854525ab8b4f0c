"""CrossOver on 3RScan, the object level with all pairs of modalities aligned, not with the image alone (supplementary)."""

_base_ = ["../_base_/crossover_scan3r.py"]
_options_ = dict(stage="instance", pairs="all")
