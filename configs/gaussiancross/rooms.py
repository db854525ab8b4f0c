"""GaussianCross on generated rooms: the whole method at a size that a laptop's CPU trains in minutes.

The rooms come from `python tools/preprocess/rooms.py --output-root data/rooms --train 32 --val 6` (`pointcept3m demo` does it by itself).
"""

_base_ = ["../_base_/default_runtime.py"]

batch_size = 2
num_worker = 1
epoch = 24
eval_epoch = 4
seed = 0
clip_grad = 1.0

grid_size = 0.06
image_size = (96, 128)

model = dict(
    type="GaussianCross-v1m1",
    backbone=dict(
        type="SpUNet-v1m1",
        in_channels=6,
        num_classes=0,
        channels=(16, 32, 48, 64, 64, 48, 32, 32),
        layers=(1, 1, 1, 1, 1, 1, 1, 1),
        base_channels=16,
    ),
    backbone_out_channels=32,
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
    feature_weight=4.0,
)

optimizer = dict(type="AdamW", lr=6e-3, weight_decay=0.01)
scheduler = dict(type="OneCycleLR", max_lr=6e-3, pct_start=0.1, anneal_strategy="cos", div_factor=10.0, final_div_factor=100.0)

data_root = "data/rooms"
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "desk",
    "curtain", "refrigerator", "toilet", "sink", "bathtub", "otherfurniture",
)  # fmt: skip
view_keys = ("coord", "grid_coord", "name", "view_name", "rgb", "depth", "intrinsic", "extrinsic")
sample = [
    dict(type="CenterShift", apply_z=True),
    dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
    dict(type="NormalizeColor", mode="minus_one_one"),
    dict(type="ToTensor"),
]
labelled = dict(
    type="RoomsDataset",
    data_root=data_root,
    transform=[*sample, dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal"))],
)

heldout_views = dict(
    type="RoomsRGBDDataset",
    split="val",
    data_root=data_root,
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
        data_root=data_root,
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
        class_names=class_names,
    ),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
