"""What runs on generated rooms share: a SpUNet that one CPU core trains in minutes, its optimizer, the names of the classes."""

from pointcept3m.datasets.rooms import ROOMS_CLASSES

_base_ = ["default_runtime.py"]

data_root = "data/rooms"
class_names = ROOMS_CLASSES

batch_size = 2
num_worker = 1
seed = 0
clip_grad = 1.0

model = dict(
    backbone=dict(
        type="SpUNet-v1m1",
        in_channels=6,
        num_classes=0,
        base_channels=16,
        channels=(16, 32, 48, 64, 64, 48, 32, 32),
        layers=(1, 1, 1, 1, 1, 1, 1, 1),
    ),
    backbone_out_channels=32,
)
optimizer = dict(type="AdamW", lr=6e-3, weight_decay=0.05)
scheduler = dict(type="OneCycleLR", max_lr=6e-3, pct_start=0.1, anneal_strategy="cos", div_factor=10.0, final_div_factor=100.0)
