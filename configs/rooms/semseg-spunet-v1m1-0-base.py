"""Semantic segmentation of generated rooms, for a CPU: the recipe that every other semseg config here changes in a line or two.

From scratch as it stands; from a pretraining with weight=exp/gaussiancross/rooms/model/model_last.pth, whose backbone is taken.
The network and its input are those of configs/gaussiancross/rooms.py. 192 steps, about a minute on one core. Training ends with
the validation; `sh tools/test.sh -d rooms -n NAME` votes over four rotations.
"""

_base_ = ["../_base_/rooms.py"]

epoch = 12
eval_epoch = 2

grid_size = 0.06

model = dict(
    type="DefaultSegmentorV2",
    num_classes=19,
    criteria=[
        dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1),
        dict(type="LovaszLoss", mode="multiclass", loss_weight=1.0, ignore_index=-1),
    ],
)

normalize = dict(type="NormalizeColor", mode="minus_one_one")
feat_keys = ("color", "normal")

data = dict(
    num_classes=19,
    ignore_index=-1,
    names="{{ _base_.class_names }}",
    train=dict(
        type="RoomsDataset",
        split="train",
        data_root="{{ _base_.data_root }}",
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=0.2),
            dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5),
            dict(type="RandomScale", scale=[0.9, 1.1]),
            dict(type="RandomFlip", p=0.5),
            dict(type="RandomJitter", sigma=0.005, clip=0.02),
            dict(type="ChromaticAutoContrast", p=0.2, blend_factor=None),
            dict(type="ChromaticTranslation", p=0.95, ratio=0.05),
            dict(type="ChromaticJitter", p=0.95, std=0.05),
            dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
            dict(type="SphereCrop", point_max=16000, mode="random"),
            dict(type="CenterShift", apply_z=False),
            normalize,
            dict(type="ToTensor"),
            dict(type="Collect", keys=("coord", "grid_coord", "segment", "name"), feat_keys=feat_keys),
        ],
    ),
    val=dict(
        type="RoomsDataset",
        split="val",
        data_root="{{ _base_.data_root }}",
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="Copy", keys_dict={"segment": "origin_segment"}),
            dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True, return_inverse=True),
            dict(type="CenterShift", apply_z=False),
            normalize,
            dict(type="ToTensor"),
            dict(
                type="Collect",
                keys=("coord", "grid_coord", "segment", "origin_segment", "inverse", "name"),
                feat_keys=feat_keys,
            ),
        ],
    ),
    test=dict(
        type="RoomsDataset",
        split="val",
        data_root="{{ _base_.data_root }}",
        transform=[dict(type="CenterShift", apply_z=True), normalize],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size=grid_size, mode="test", return_grid_coord=True),
            crop=None,
            post_transform=[
                dict(type="CenterShift", apply_z=False),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=feat_keys),
            ],
            aug_transform=[
                [dict(type="RandomRotateTargetAngle", angle=[quarter / 2], axis="z", center=[0, 0, 0], p=1)]
                for quarter in range(4)
            ],
        ),
    ),
)

hooks = [
    dict(type="CheckpointLoader", part="backbone"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="SemSegEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(type="SemSegTester", verbose=False)
