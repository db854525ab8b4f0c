"""ScanNet, linear probe on four heads side by side, AM-RADIO among them (Table 10)."""

_base_ = ["../_base_/cua_o3d_probe.py"]
_options_ = dict(teachers=("lseg", "dinov2", "sd", "radio"), demean=())

weight = "exp/cua_o3d/scannet-t9-radio_unc/model/model_last.pth"
