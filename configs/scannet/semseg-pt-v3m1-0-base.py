"""ScanNet, 20 classes: Point Transformer V3 in Pointcept's size and recipe; weight=FILE starts from a pretrained one."""

_base_ = ["../_base_/semseg_indoor.py", "../_base_/ptv3.py"]
_options_ = dict(lr=0.006)

batch_size = 12
num_worker = 24

model = dict(
    type="DefaultSegmentorV2",
    num_classes=20,
    backbone_out_channels=64,
    backbone="{{ _base_.backbone }}",
)

# The blocks learn at a tenth of the rate.
param_dicts = [dict(keyword="block", lr=0.0006)]
scheduler = dict(max_lr=[0.006, 0.0006])
