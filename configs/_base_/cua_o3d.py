"""CUA-O3D on scanned rooms: distillation of LSeg, DINOv2 and Stable Diffusion into a MinkUNet18A, in the paper's settings.

A recipe says in `_options_` which of the variables below it changes. Where paper and released code differ, this is the paper;
configs/cua_o3d/scannet-release.py is the code.
"""

from pointcept3m.structures.label_sets import label_set

_base_ = ["default_runtime.py"]

dataset_type = "ScanNetDataset"
data_root = "data/scannet"
labels = "scannet20"
class_names = label_set(labels).names
feature_root = None  # features lie in the scene folders, where tools/preprocess/fuse_features.py puts them

teachers = ("lseg", "dinov2", "sd")
dims = {"lseg": 512, "dinov2": 1024, "sd": 3200, "radio": 1024, "openseg": 768}
losses = {"dinov2": "l1"}  # Eq. 2; the others are compared by cosine, Eq. 1 and 3
demean = ("sd",)  # Eq. 5
uncertainty = {"kind": "scalar", "regulariser": "log1p"}  # Eq. 10 and 11
num_points = 20_000  # supervised voxels of a scene

grid_size = 0.02  # metres
elastic = True
shape_alone = True  # ones as input, no colour
lr = 1e-4

batch_size = 2
num_worker = 8
epoch = 50
eval_epoch = 10
enable_amp = True
amp_dtype = "bfloat16"

# The text side of LSeg is OpenAI's CLIP ViT-B/32, that of OpenSeg ViT-L/14 at 336 pixels.
text_encoder = dict(type="OpenClipTextEncoder", model_name="ViT-B-32-quickgelu", weight="weights/clip_vit_b_32.safetensors")
prompt = "a {label} in a scene"

model = dict(
    type="CUA-O3D-v1m1",
    backbone=dict(type="MinkUNet18A", in_channels=3 if shape_alone else 6, out_channels=0),
    backbone_out_channels=96,
    heads={name: dict(dim=dims[name], loss=losses.get(name, "cosine"), demean=name in demean) for name in teachers},
    text_head=teachers[0],
    uncertainty=uncertainty,
)

# The paper gives the first rate and "exponential decay"; to what share of it is ours.
optimizer = dict(type="Adam", lr=lr)
scheduler = dict(type="ExpLR", gamma=0.01)

feat_keys = ("ones",) if shape_alone else ("color", "normal")
prepare = [dict(type="Constant", key="ones", channels=3)] if shape_alone else [dict(type="NormalizeColor", mode="minus_one_one")]
voxelize = dict(type="GridSample", grid_size=grid_size, return_grid_coord=True, mode="train")
finish = [dict(type="CenterShift", apply_z=False), *prepare, dict(type="ToTensor")]

data = dict(
    num_classes=len(class_names),
    ignore_index=-1,
    names=class_names,
    train=dict(
        type=dataset_type,
        split="train",
        data_root=data_root,
        feature_teachers=teachers,
        feature_root=feature_root,
        transform=[
            dict(type="CenterShift", apply_z=True),
            # Rotations and scale are the release's, which it draws at tests too; flips and elastic distortion the paper's.
            dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=1),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=1),
            dict(type="RandomScale", scale=[0.9, 1.1]),
            dict(type="RandomFlip", p=0.5),
            *([dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4], [0.8, 1.6]])] if elastic else []),
            voxelize,
            dict(type="SampleTargets", num_points=num_points),
            *finish,
            dict(
                type="Collect",
                keys=("coord", "grid_coord", "name", "target_index", *(f"target_{name}" for name in teachers)),
                feat_keys=feat_keys,
            ),
        ],
    ),
    val=dict(
        type=dataset_type,
        split="val",
        data_root=data_root,
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="Copy", keys_dict=dict(segment="origin_segment")),
            dict(**voxelize, return_inverse=True),
            *finish,
            dict(type="Collect", keys=("coord", "grid_coord", "segment", "origin_segment", "inverse", "name"), feat_keys=feat_keys),
        ],
    ),
    test=dict(
        type=dataset_type,
        split="val",
        data_root=data_root,
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(**voxelize, return_inverse=True),
            *finish,
            dict(type="Collect", keys=("coord", "grid_coord", "name"), feat_keys=feat_keys),
        ],
    ),
)

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter", interval=50),
    dict(type="OpenVocabularyEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=True),  # the best epoch would be chosen by the labels that are scored
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(type="OpenVocabularyTester", feature="all", label_set=labels, feature_root=feature_root, repeats=5)
