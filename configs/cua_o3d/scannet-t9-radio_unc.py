"""ScanNet, four teachers with AM-RADIO, weighted by learned uncertainty (Table 9; the 4-head probe of Table 10 starts from it)."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg", "dinov2", "sd", "radio"), demean=())
