"""PointContrast (Xie et al., ECCV 2020) on pairs of ScanNet's frames, with Pointcept's settings: the other baseline.

`python tools/preprocess/pairs.py --input data/scannet/train --output-root data/scannet_pair` makes the pairs. Unlike
Pointcept's, which sees colours alone, the network takes normals too, so that the downstream recipes can start from it.
"""

_base_ = ["pretrain-msc-v1m1-0-spunet-base.py"]
_options_ = dict(grid_size=0.025)

epoch = 10
eval_epoch = 10

model = dict(mask_rate=0, view1_mix_prob=0, matching_max_pair=4096, nce_t=0.07, reconstruct_color=False)

pair_root = "data/scannet_pair"
view = [
    dict(type="CenterShift", apply_z=True),
    dict(type="Copy", keys_dict=dict(coord="origin_coord")),
    dict(type="Update", keys_dict=dict(index_valid_keys=["coord", "color", "normal", "origin_coord"])),
    *"{{ _base_.augmentation }}",
    "{{ _base_.normalize }}",
    dict(type="ToTensor"),
    dict(
        type="Collect",
        keys=("origin_coord", "grid_coord", "coord", "color", "normal"),
        offset_keys_dict=dict(offset="coord"),
        feat_keys=("color", "normal"),
    ),
]
data = dict(
    train=dict(
        _delete_=True, type="ScanNetPairDataset", data_root=pair_root, view1_transform=view, view2_transform=view
    )
)
