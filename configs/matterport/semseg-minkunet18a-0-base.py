"""Matterport3D: MinkUNet18A trained on labels, the upper bound of open-vocabulary results (CUA-O3D, Tables 2 and 3).

--options num_classes=40 (80, 160) has the larger label sets. Optimiser, schedule, voxels and batch are OpenScene's; its hundred
epochs pass over the data five times each, and its network sees no colour (feat_keys there: ones).
"""

from pointcept3m.structures.label_sets import label_set

_base_ = ["../_base_/semseg_indoor.py"]
_options_ = dict(dataset_type="MatterportDataset", data_root="data/matterport")

num_classes = 21
names = label_set(f"matterport{num_classes}").names

batch_size = 8
num_worker = 8
mix_prob = 0
epoch = 500  # 100 of OpenScene's
eval_epoch = 100

model = dict(
    backbone=dict(_delete_=True, type="MinkUNet18A", in_channels=6, out_channels=num_classes),
    criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
)

optimizer = dict(_delete_=True, type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001)
scheduler = dict(_delete_=True, type="PolyLR", power=0.9)

data = dict(
    num_classes=num_classes,
    names=names,
    train=dict(num_classes=num_classes),
    val=dict(num_classes=num_classes),
    test=dict(num_classes=num_classes, split="test"),
)
