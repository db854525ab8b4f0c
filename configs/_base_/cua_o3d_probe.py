"""Linear probe of a distilled model on ScanNet's labels (CUA-O3D Sec. 4.6, Table 5), in the released code's settings.

weight=FILE names the distillation whose backbone and heads are frozen, batch-norm statistics included (the released code lets
those move: model.frozen_norm=train).
"""

_base_ = ["cua_o3d.py"]

mode = "concat"  # one layer on all heads' features; "average": a layer a head, logits averaged; "single": one head
probe_heads = None  # which heads; None: all

weight = "exp/cua_o3d/scannet/model/model_last.pth"  # of sh tools/train.sh -c configs/cua_o3d/scannet.py
batch_size = 4
epoch = 20
eval_epoch = 20
enable_amp = False

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

turned = [
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=1),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=1),
]

optimizer = dict(type="Adam", lr=1e-4, weight_decay=1e-4)
scheduler = dict(_delete_=True, type="PolyLR", power=0.9)

data = dict(
    train=dict(
        _delete_=True,
        type="{{ _base_.dataset_type }}",
        split="train",
        data_root="{{ _base_.data_root }}",
        loop=5,
        transform=[
            dict(type="CenterShift", apply_z=True),
            *turned,
            dict(type="RandomScale", scale=[0.9, 1.1]),
            dict(type="RandomFlip", p=0.5),
            dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4], [0.8, 1.6]]),
            dict(type="GridSample", grid_size="{{ _base_.grid_size }}", return_grid_coord=True, mode="train"),
            dict(type="CenterShift", apply_z=False),
            dict(type="Constant", key="ones", channels=3),
            dict(type="ToTensor"),
            dict(type="Collect", keys=("coord", "grid_coord", "segment", "name"), feat_keys=("ones",)),
        ],
    ),
    # Five random views of a scene, as the released code tests; their softmax is added up.
    test=dict(
        _delete_=True,
        type="{{ _base_.dataset_type }}",
        split="val",
        data_root="{{ _base_.data_root }}",
        transform=[dict(type="CenterShift", apply_z=True)],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size="{{ _base_.grid_size }}", return_grid_coord=True, mode="test"),
            crop=None,
            post_transform=[
                dict(type="CenterShift", apply_z=False),
                dict(type="Constant", key="ones", channels=3),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("ones",)),
            ],
            aug_transform=[[*turned, dict(type="RandomScale", scale=[0.9, 1.1])]] * 5,
        ),
    ),
)

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter", interval=50),
    dict(type="SemSegEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(_delete_=True, type="SemSegTester")
