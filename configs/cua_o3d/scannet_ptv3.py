"""CUA-O3D on ScanNet with Point Transformer V3, which sees colours and normals, in the MinkUNet's place; its rates are ours."""

_base_ = ["scannet.py", "../_base_/ptv3.py"]
_options_ = dict(shape_alone=False)

model = dict(backbone="{{ _base_.backbone }}", backbone_out_channels=64)

optimizer = dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=0.05)
scheduler = dict(_delete_=True, type="OneCycleLR", max_lr=1e-3, pct_start=0.05, anneal_strategy="cos", div_factor=10.0, final_div_factor=1000.0)
param_dicts = [dict(keyword="uncertainty", lr=1e-3, weight_decay=0.0)]  # decay would draw sigma to softplus(0) = 0.69
