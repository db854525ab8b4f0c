"""ScanNet, three teachers weighted by learned uncertainty, not de-meaned (Tables 6 and 9)."""

_base_ = ["scannet.py"]
_options_ = dict(demean=())
