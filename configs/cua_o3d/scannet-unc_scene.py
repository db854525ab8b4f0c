"""ScanNet, the paper's words taken literally: the model predicts the noise scalars, for each scene."""

_base_ = ["scannet.py"]
_options_ = dict(uncertainty={"kind": "scene"})
