"""Semantic segmentation of scanned rooms with SpUNet, in the settings of GaussianCross's released configurations.

From scratch as it stands; with weight=FILE the backbone comes from there. A recipe says in `_options_` which of the
variables below it changes.
"""

from pointcept3m.datasets.scannet_labels import SCANNET20_NAMES, SCANNET200_NAMES

_base_ = ["default_runtime.py"]

dataset_type = "ScanNetDataset"
data_root = "data/scannet"
class_names = SCANNET200_NAMES if dataset_type == "ScanNet200Dataset" else SCANNET20_NAMES
grid_size = 0.02  # metres
point_max = 102400  # voxels that a training sample keeps
elastic = True  # whether space is bent
lr = 0.005
# GaussianCross's range, and that of its weights; Pointcept's own configs feed mode="zero_one" since 1.6.0.
normalize = dict(type="NormalizeColor", mode="minus_one_one")

batch_size = 32
num_worker = 64
mix_prob = 0.8
enable_amp = True
epoch = 800
eval_epoch = 100

model = dict(
    type="DefaultSegmentor",
    backbone=dict(
        type="SpUNet-v1m1",
        in_channels=6,
        num_classes=len(class_names),
        channels=(32, 64, 128, 256, 256, 128, 96, 96),
        layers=(2, 3, 4, 6, 2, 2, 2, 2),
    ),
    criteria=[
        dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1),
        dict(type="LovaszLoss", mode="multiclass", loss_weight=1.0, ignore_index=-1),
    ],
)

# Pointcept's own recipe: SGD, lr 0.05, Nesterov momentum 0.9, weight decay 1e-4, cross-entropy alone, batch 12.
optimizer = dict(type="AdamW", lr=lr, weight_decay=0.05)
scheduler = dict(type="OneCycleLR", max_lr=lr, pct_start=0.05, anneal_strategy="cos", div_factor=10.0, final_div_factor=1000.0)

feat_keys = ("color", "normal")
voxelize = dict(type="GridSample", grid_size=grid_size, return_grid_coord=True)
labelled = dict(
    type=dataset_type,
    split="train",
    data_root=data_root,
    transform=[
        dict(type="CenterShift", apply_z=True),
        dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=0.2),
        dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
        dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5),
        dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5),
        dict(type="RandomScale", scale=[0.9, 1.1]),
        dict(type="RandomFlip", p=0.5),
        dict(type="RandomJitter", sigma=0.005, clip=0.02),
        *([dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4], [0.8, 1.6]])] if elastic else []),
        dict(type="ChromaticAutoContrast", p=0.2, blend_factor=None),
        dict(type="ChromaticTranslation", p=0.95, ratio=0.05),
        dict(type="ChromaticJitter", p=0.95, std=0.05),
        dict(**voxelize, mode="train"),
        dict(type="SphereCrop", point_max=point_max, mode="random"),
        dict(type="CenterShift", apply_z=False),
        normalize,
        dict(type="ToTensor"),
        dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=feat_keys),
    ],
)
# Scored on every raw point, as Pointcept does; the released configurations score ScanNet's voxels.
val = dict(
    type=dataset_type,
    split="val",
    data_root=data_root,
    transform=[
        dict(type="CenterShift", apply_z=True),
        dict(type="Copy", keys_dict=dict(segment="origin_segment")),
        dict(**voxelize, mode="train", return_inverse=True),
        dict(type="CenterShift", apply_z=False),
        normalize,
        dict(type="ToTensor"),
        dict(type="Collect", keys=("coord", "grid_coord", "segment", "origin_segment", "inverse"), feat_keys=feat_keys),
    ],
)
# 13 looks at every point: four rotations of three sizes, and a mirror image.
voted = dict(
    type=dataset_type,
    split="val",
    data_root=data_root,
    transform=[dict(type="CenterShift", apply_z=True), normalize],
    test_mode=True,
    test_cfg=dict(
        voxelize=dict(**voxelize, mode="test"),
        crop=None,
        post_transform=[
            dict(type="CenterShift", apply_z=False),
            dict(type="ToTensor"),
            dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=feat_keys),
        ],
        aug_transform=[
            *[
                [
                    dict(type="RandomRotateTargetAngle", angle=[turn], axis="z", center=[0, 0, 0], p=1),
                    dict(type="RandomScale", scale=[size, size]),
                ]
                for size in (1, 0.95, 1.05)
                for turn in (0, 1 / 2, 1, 3 / 2)
            ],
            [dict(type="RandomFlip", p=1)],
        ],
    ),
)
data = dict(num_classes=len(class_names), ignore_index=-1, names=class_names, train=labelled, val=val, test=voted)

hooks = [
    # The backbone of a pretraining; its classifier, where it has one, may be of other classes. Anything else must fit.
    dict(type="CheckpointLoader", part="backbone", allow_partial=("backbone.final",)),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter", interval=50),
    dict(type="SemSegEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=False),
]
