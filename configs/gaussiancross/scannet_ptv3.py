"""GaussianCross on ScanNet with the Point Transformer V3 of configs/scannet/semseg-pt-v3m1-0-base.py; rates are ours."""

_base_ = ["scannet.py", "../_base_/ptv3.py"]

model = dict(backbone="{{ _base_.backbone }}", backbone_out_channels=64)

param_dicts = [dict(keyword="block", lr=2e-4)]
scheduler = dict(max_lr=[2e-3, 2e-4])
