"""Masked Scene Contrast on generated rooms: the baseline beside configs/gaussiancross/rooms.py.

The same backbone, rooms, number of steps and probe as there. What follows the grid of 0.06 m instead of ScanNet's
0.02 m is three times as large as in Pointcept's configuration: the cells of the mask, the radius of matches.
"""

_base_ = ["../_base_/rooms.py"]

epoch = 24
eval_epoch = 4
evaluate = False  # there is no score of its own; the probe judges

grid_size = 0.06

model = dict(
    type="MSC-v1m1",
    backbone_in_channels=6,
    mask_grid_size=0.3,
    mask_rate=0.4,
    view1_mix_prob=0.8,
    view2_mix_prob=0,
    matching_max_k=8,
    matching_max_radius=0.09,
    matching_max_pair=2048,
    nce_t=0.4,
    contrast_weight=1,
    reconstruct_weight=1,
    reconstruct_color=True,
    reconstruct_normal=False,
)

optimizer = dict(weight_decay=0.01)

labelled = dict(
    type="RoomsDataset",
    data_root="{{ _base_.data_root }}",
    transform=[
        dict(type="CenterShift", apply_z=True),
        dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
        dict(type="NormalizeColor", mode="minus_one_one"),
        dict(type="ToTensor"),
        dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal")),
    ],
)
view_keys = ("coord", "grid_coord", "origin_coord", "color", "normal")

data = dict(
    train=dict(
        type="RoomsDataset",
        split="train",
        data_root="{{ _base_.data_root }}",
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="RandomScale", scale=[0.9, 1.1]),
            dict(type="Copy", keys_dict=dict(coord="origin_coord")),
            dict(
                type="ContrastiveViewsGenerator",
                view_keys=("coord", "color", "normal", "origin_coord"),
                view_trans_cfg=[
                    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1),
                    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=1),
                    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=1),
                    dict(type="RandomFlip", p=0.5),
                    dict(type="RandomJitter", sigma=0.005, clip=0.02),
                    dict(type="RandomColorJitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.02, p=0.8),
                    dict(type="ChromaticJitter", p=0.95, std=0.05),
                    dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
                    dict(type="SphereCrop", sample_rate=0.6, mode="random"),
                    dict(type="CenterShift", apply_z=False),
                    dict(type="NormalizeColor", mode="minus_one_one"),
                ],
            ),
            dict(type="ToTensor"),
            dict(
                type="Collect",
                keys=(*(f"view1_{key}" for key in view_keys), *(f"view2_{key}" for key in view_keys)),
                offset_keys_dict=dict(view1_offset="view1_coord", view2_offset="view2_coord"),
                view1_feat_keys=("view1_color", "view1_normal"),
                view2_feat_keys=("view2_color", "view2_normal"),
            ),
        ],
    ),
)

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(
        type="LinearProbe",
        train=dict(**labelled, split="train"),
        val=dict(**labelled, split="val"),
        class_names="{{ _base_.class_names }}",
    ),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
