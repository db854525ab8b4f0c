"""PointContrast (Xie et al., ECCV 2020) on frames of generated rooms: the other baseline.

Its pairs are made by `python tools/preprocess/pairs.py --input data/rooms/train --output-root data/rooms_pair`. Model and
augmentation of Pointcept's configuration, with the backbone, number of steps and probe of the two other pretrainings.
"""

_base_ = ["./pretrain-msc-v1m1-0-spunet-base.py"]

# A pair of frames is a small part of a room. 9 of them, twice the 1,710 of the 32 rooms, are 380 steps.
batch_size = 9
epoch = 2
eval_epoch = 2

grid_size = 0.06

model = dict(
    mask_rate=0,
    view1_mix_prob=0,
    nce_t=0.07,
    reconstruct_color=False,
)

pair_root = "data/rooms_pair"
view = [
    dict(type="CenterShift", apply_z=True),
    dict(type="Copy", keys_dict=dict(coord="origin_coord")),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=1),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=1),
    dict(type="RandomFlip", p=0.5),
    dict(type="RandomJitter", sigma=0.005, clip=0.02),
    dict(type="RandomColorJitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.02, p=0.8),
    dict(type="ChromaticJitter", p=0.95, std=0.05),
    dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
    dict(type="NormalizeColor", mode="minus_one_one"),
    dict(type="ToTensor"),
    dict(
        type="Collect",
        keys=("origin_coord", "grid_coord", "coord"),
        offset_keys_dict=dict(offset="coord"),
        feat_keys=("color", "normal"),
    ),
]

data = dict(
    train=dict(
        _delete_=True,
        type="ScanNetPairDataset",
        data_root=pair_root,
        view1_transform=view,
        view2_transform=view,
    ),
)
