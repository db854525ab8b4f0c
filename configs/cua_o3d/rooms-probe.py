"""Linear probe of the heads of configs/cua_o3d/rooms.py on rooms' labels (the miniature of Table 5).

    sh tools/train.sh -c configs/cua_o3d/rooms-probe.py -w exp/cua_o3d/words/model/model_last.pth mode=average
"""

_base_ = ["rooms.py"]

mode = "concat"  # "average", or "single" with one of the heads
probe_heads = None

epoch = 12
eval_epoch = 2

model = dict(
    _delete_=True,
    type="CUA-O3D-Probe",
    num_classes="{{ _base_.data.num_classes }}",
    backbone="{{ _base_.model.backbone }}",
    backbone_out_channels="{{ _base_.model.backbone_out_channels }}",
    heads="{{ _base_.model.heads }}",
    mode=mode,
    probe_heads=probe_heads,
    criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
)

# A single layer takes, and needs, a higher rate than a network.
optimizer = dict(lr=5e-2)
scheduler = dict(max_lr=5e-2)

data = dict(
    train=dict(
        _delete_=True,
        type="RoomsDataset",
        split="train",
        data_root="{{ _base_.data_root }}",
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
            dict(type="RandomScale", scale=[0.9, 1.1]),
            dict(type="RandomFlip", p=0.5),
            dict(type="GridSample", grid_size="{{ _base_.grid_size }}", return_grid_coord=True, mode="train"),
            dict(type="CenterShift", apply_z=False),
            dict(type="NormalizeColor", mode="minus_one_one"),
            dict(type="ToTensor"),
            dict(type="Collect", keys=("coord", "grid_coord", "segment", "name"), feat_keys=("color", "normal")),
        ],
    ),
    test=dict(
        _delete_=True,
        type="RoomsDataset",
        split="val",
        data_root="{{ _base_.data_root }}",
        transform=[dict(type="CenterShift", apply_z=True), dict(type="NormalizeColor", mode="minus_one_one")],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size="{{ _base_.grid_size }}", return_grid_coord=True, mode="test"),
            crop=None,
            post_transform=[
                dict(type="CenterShift", apply_z=False),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color", "normal")),
            ],
            aug_transform=[[dict(type="RandomRotateTargetAngle", angle=[quarter / 2], axis="z", center=[0, 0, 0], p=1)] for quarter in range(4)],
        ),
    ),
)

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="SemSegEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(_delete_=True, type="SemSegTester", verbose=False)
