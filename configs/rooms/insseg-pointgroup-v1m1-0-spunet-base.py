"""Instance segmentation of generated rooms by PointGroup, for a CPU.

From scratch as it stands; from a pretraining with weight=exp/gaussiancross/rooms/model/model_last.pth, whose backbone is taken.
The network and its input are those of configs/gaussiancross/rooms.py. What Pointcept counts in points (cluster_*) is
smaller here: on a grid of 0.06 m an object has a ninth of the points that it has on ScanNet's 0.02 m. 384 steps, about
two minutes on one core.
"""

_base_ = ["../_base_/rooms.py"]

epoch = 24
eval_epoch = 4

grid_size = 0.06
segment_ignore_index = (-1, 0, 1)

model = dict(
    type="PG-v1m1",
    semantic_num_classes=19,
    semantic_ignore_index=-1,
    segment_ignore_index=segment_ignore_index,
    instance_ignore_index=-1,
    cluster_thresh=1.5,
    cluster_closed_points=300,
    cluster_propose_points=15,
    cluster_min_points=10,
    voxel_size=grid_size,
)

normalize = dict(type="NormalizeColor", mode="minus_one_one")
parser = dict(type="InstanceParser", segment_ignore_index=segment_ignore_index, instance_ignore_index=-1)
feat_keys = ("color", "normal")
keys = ("coord", "grid_coord", "segment", "instance", "instance_centroid", "name")
heldout = dict(
    type="RoomsDataset",
    split="val",
    data_root="{{ _base_.data_root }}",
    transform=[
        dict(type="CenterShift", apply_z=True),
        dict(type="Copy", keys_dict={"segment": "origin_segment", "instance": "origin_instance"}),
        dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True, return_inverse=True),
        dict(type="CenterShift", apply_z=False),
        normalize,
        parser,
        dict(type="ToTensor"),
        dict(type="Collect", keys=(*keys, "origin_segment", "origin_instance", "inverse"), feat_keys=feat_keys),
    ],
)

data = dict(
    num_classes=19,
    ignore_index=-1,
    names="{{ _base_.class_names }}",
    train=dict(
        type="RoomsDataset",
        split="train",
        data_root="{{ _base_.data_root }}",
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=0.5),
            dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5),
            dict(type="RandomScale", scale=[0.9, 1.1]),
            dict(type="RandomFlip", p=0.5),
            dict(type="RandomJitter", sigma=0.005, clip=0.02),
            dict(type="ChromaticAutoContrast", p=0.2, blend_factor=None),
            dict(type="ChromaticTranslation", p=0.95, ratio=0.1),
            dict(type="ChromaticJitter", p=0.95, std=0.05),
            dict(type="GridSample", grid_size=grid_size, mode="train", return_grid_coord=True),
            dict(type="SphereCrop", sample_rate=0.8, mode="random"),
            normalize,
            parser,
            dict(type="ToTensor"),
            dict(type="Collect", keys=keys, feat_keys=feat_keys),
        ],
    ),
    val=heldout,
    test=heldout,
)

hooks = [
    dict(type="CheckpointLoader", part="backbone"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="InsSegEvaluator", segment_ignore_index=segment_ignore_index, instance_ignore_index=-1),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=False),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(
    type="InsSegTester",
    segment_ignore_index=segment_ignore_index,
    instance_ignore_index=-1,
    save_predictions=True,
    verbose=False,
)
