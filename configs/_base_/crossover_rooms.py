"""CrossOver on generated rooms with the pocket encoders: sizes and epochs that two CPU cores train in minutes."""

_base_ = ["crossover.py"]
_options_ = dict(
    data_root="data/rooms_modalities",
    recipe="pocket",
    widths=dict(object_image=112, object_point=128, object_cad=128, object_text=256, image_token=224, floorplan_token=224, text_token=256),
    cache=True,
    referrals=30,  # of up to 60 that are extracted: a room has some 28 objects
    grid_size=0.15,
    thin=0.1,
    dim=128,
    head_dropout=0.2,
    standardize=True,
    turn_boxes=True,
    transformer=dict(heads=8, layers=2, feedforward=256, dropout=0.1),
    backbone=dict(
        type="SpUNet-v1m1", in_channels=3, num_classes=0, base_channels=16, channels=(16, 32, 48, 64, 64, 48, 32, 32), layers=(1, 1, 1, 1, 1, 1, 1, 1)
    ),
    backbone_out_channels=32,
    lr=2e-3,
    warmup=0.1,
    epochs=dict(baseline=42, instance=42, scene=6, unified=30, joint=30),
    rounds=6,
    test_last=True,
)

num_worker = 1
seed = 0
batch_size_val = 8
batch_size_test = 8
