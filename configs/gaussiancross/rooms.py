"""GaussianCross on generated rooms: the whole method at a size that a laptop's CPU trains in minutes.

The rooms come from `python tools/preprocess/rooms.py --output-root data/rooms --train 32 --val 6` (`pointcept3m demo` does it by itself).
"""

_base_ = ["../_base_/rooms.py"]

epoch = 24
eval_epoch = 4

grid_size = 0.06
image_size = (96, 128)

model = dict(
    type="GaussianCross-v1m1",
    # Trained with class names on other rooms, as the foundation models it stands for were on captions; "geometric" is
    # the teacher that has seen no label.
    teacher=dict(type="PocketTeacher", name="text"),
    volume_shape=(48, 48, 24),
    volume_channels=(32,),  # one level: with more, the 3D CNN learns in the backbone's place
    anchor_channels=32,
    feature_dim=16,
    opacity_threshold=0.3,
    offset_max=1.0,
    image_weight=20.0,
    depth_weight=1.0,
    feature_weight=20.0,  # against 4: a better probe and start for fine-tuning, half a dB less PSNR (docs/results.md)
)

optimizer = dict(weight_decay=0.01)

view_keys = ("coord", "grid_coord", "name", "view_name", "rgb", "depth", "intrinsic", "extrinsic")
sample = [
    dict(type="CenterShift", apply_z=True),
    dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
    dict(type="NormalizeColor", mode="minus_one_one"),
    dict(type="ToTensor"),
]
labelled = dict(
    type="RoomsDataset",
    data_root="{{ _base_.data_root }}",
    transform=[*sample, dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal"))],
)

heldout_views = dict(
    type="RoomsRGBDDataset",
    split="val",
    data_root="{{ _base_.data_root }}",
    num_cameras=3,
    image_size=image_size,
    view_split="heldout",
    test_mode=True,
    transform=[*sample, dict(type="Collect", keys=view_keys, feat_keys=("color", "normal"))],
)

data = dict(
    train=dict(
        type="RoomsRGBDDataset",
        split="train",
        data_root="{{ _base_.data_root }}",
        num_cameras=3,
        image_size=image_size,
        view_split="train",
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
            dict(type="RandomScale", scale=[0.9, 1.1], anisotropic=True),
            dict(type="RandomFlip", p=0.5),
            dict(type="RandomMask", ratio=0.5),
            dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
            dict(type="NormalizeColor", mode="minus_one_one"),
            dict(type="ToTensor"),
            dict(type="Collect", keys=view_keys, feat_keys=("color", "normal")),
        ],
    ),
    val=heldout_views,
    test=heldout_views,
)
test = dict(type="RenderTester")

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="RenderEvaluator", every=1),
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
