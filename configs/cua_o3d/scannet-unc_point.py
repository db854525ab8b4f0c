"""ScanNet, noise scalars predicted for each point."""

_base_ = ["scannet.py"]
_options_ = dict(uncertainty={"kind": "point"})
