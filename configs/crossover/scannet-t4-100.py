"""CrossOver on ScanNet, all image-point and image-CAD pairs: P->M was never trained (Table 4, last row)."""

_base_ = ["../_base_/crossover.py"]
_options_ = dict(stage="instance", data_root="data/scannet", drop=dict(text=1.0))
