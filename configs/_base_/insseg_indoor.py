"""Instance segmentation of scanned rooms with PointGroup on SpUNet, in the settings of GaussianCross's configurations.

From scratch as it stands; with weight=FILE the backbone comes from there. A recipe says in `_options_` which of the
variables below it changes.
"""

from pointcept3m.datasets.scannet_labels import SCANNET20_NAMES, SCANNET200_NAMES

_base_ = ["default_runtime.py"]

dataset_type = "ScanNetDataset"
data_root = "data/scannet"
class_names = SCANNET200_NAMES if dataset_type == "ScanNet200Dataset" else SCANNET20_NAMES
segment_ignore_index = (-1, 0, 1)  # wall and floor have no instances
grid_size = 0.02  # metres
lr = 0.006
# GaussianCross's range, and that of its weights; Pointcept's own configs feed mode="zero_one" since 1.6.0.
normalize = dict(type="NormalizeColor", mode="minus_one_one")

batch_size = 12
num_worker = 24
mix_prob = 0
enable_amp = True
epoch = 800
eval_epoch = 100

model = dict(
    type="PG-v1m1",
    backbone=dict(
        type="SpUNet-v1m1",
        in_channels=6,
        num_classes=0,
        channels=(32, 64, 128, 256, 256, 128, 96, 96),
        layers=(2, 3, 4, 6, 2, 2, 2, 2),
    ),
    backbone_out_channels=96,
    semantic_num_classes=len(class_names),
    semantic_ignore_index=-1,
    segment_ignore_index=segment_ignore_index,
    instance_ignore_index=-1,
    cluster_thresh=1.5,
    cluster_closed_points=300,
    cluster_propose_points=100,
    cluster_min_points=50,
    voxel_size=grid_size,
)

# Pointcept's own recipe: SGD, lr 0.1, Nesterov momentum 0.9, weight decay 1e-4, PolyLR.
optimizer = dict(type="AdamW", lr=lr, weight_decay=0.05)
scheduler = dict(type="OneCycleLR", max_lr=lr, pct_start=0.05, anneal_strategy="cos", div_factor=10.0, final_div_factor=1000.0)

feat_keys = ("color", "normal")
keys = ("coord", "grid_coord", "segment", "instance", "instance_centroid", "bbox")
parser = dict(type="InstanceParser", segment_ignore_index=segment_ignore_index, instance_ignore_index=-1)
voxelize = dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True)
labelled = dict(
    type=dataset_type,
    split="train",
    data_root=data_root,
    transform=[
        dict(type="CenterShift", apply_z=True),
        dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=0.5),
        dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
        dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5),
        dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5),
        dict(type="RandomScale", scale=[0.9, 1.1]),
        dict(type="RandomFlip", p=0.5),
        dict(type="RandomJitter", sigma=0.005, clip=0.02),
        dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4], [0.8, 1.6]]),
        dict(type="ChromaticAutoContrast", p=0.2, blend_factor=None),
        dict(type="ChromaticTranslation", p=0.95, ratio=0.1),
        dict(type="ChromaticJitter", p=0.95, std=0.05),
        voxelize,
        dict(type="SphereCrop", sample_rate=0.8, mode="random"),
        normalize,
        parser,
        dict(type="ToTensor"),
        dict(type="Collect", keys=keys, feat_keys=feat_keys),
    ],
)
# Scored on every raw point, which takes the prediction of its voxel.
heldout = dict(
    type=dataset_type,
    split="val",
    data_root=data_root,
    transform=[
        dict(type="CenterShift", apply_z=True),
        dict(type="Copy", keys_dict=dict(segment="origin_segment", instance="origin_instance")),
        dict(**voxelize, return_inverse=True),
        dict(type="CenterShift", apply_z=False),
        normalize,
        parser,
        dict(type="ToTensor"),
        dict(type="Collect", keys=(*keys, "name", "origin_segment", "origin_instance", "inverse"), feat_keys=feat_keys),
    ],
)
data = dict(num_classes=len(class_names), ignore_index=-1, names=class_names, train=labelled, val=heldout, test=heldout)

hooks = [
    dict(type="CheckpointLoader", part="backbone"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter", interval=50),
    dict(type="InsSegEvaluator", segment_ignore_index=segment_ignore_index, instance_ignore_index=-1),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=False),
]
test = dict(type="InsSegTester", segment_ignore_index=segment_ignore_index, instance_ignore_index=-1, verbose=False)
