"""CrossOver on ScanNet as released: the object level (Eq. 1)."""

_base_ = ["../_base_/crossover_release.py"]
_options_ = dict(stage="instance", data_root="data/scannet", start=None)
