"""CrossOver on scanned rooms in the paper's settings (Sec. 3 and 4): which stage, which data and which modalities are variables.

A recipe says in `_options_` which of the variables below it changes. Where paper and released code differ, this is the paper, but
for what it does not tell: optimizer, epochs, augmentation and sizes are the release's.
"""

_base_ = ["default_runtime.py"]

# "baseline": heads alone · "instance": the object level (Eq. 1) · "scene": its fusion F_S (Eq. 2), starts from "instance"
# "unified": fusion and unified encoders around a frozen object level (Eq. 3), starts from "scene" · "joint": these and the object level
# together (Eq. 4), starts from "instance"
stage = "unified"
start = {"scene": "instance", "unified": "scene", "joint": "instance"}.get(stage)

data_root = "data/scannet"  # or several folders
test_root = data_root
feature_root = None  # features lie in the scene folders, where tools/preprocess/modalities.py puts them
recipe = "paper"
widths = dict(
    object_image=1536, object_point=384, object_cad=384, object_text=768, image_token=3072, floorplan_token=3072, text_token=768
)  # fmt: skip
share = None  # "25_75": image-point pairs in 25 % of the scenes, image-CAD pairs in the others (Table 4; tools/preprocess/chunks.py)
drop = None  # dict(cad=0.2): modalities that are hidden at random in training
dim = 768
base = "image"
pairs = "base"  # "all": every modality with every other (supplementary)
object_loss = dict(negatives="batch")  # Eq. 5
scene_loss = dict()
fusion = dict()  # Eq. 2
floorplan = "token"
cad_location = False
transformer = dict(heads=12, layers=4, feedforward=2048, dropout=0.1)
head_dropout = 0.0  # of objects
scene_dropout = 0.0  # of scenes
standardize = False  # frozen features, before anything is trained on them (ours)
loss_weights = "learned"  # Eq. 3
# The paper's sparse residual network with a map of full resolution.
backbone = dict(type="MinkUNet34C", in_channels=3, out_channels=0)
backbone_out_channels = 96
feat_keys = ("color",)  # ("color", "normal") for a backbone that was trained on both
backbone_weight = None  # of a pretraining (GaussianCross, CUA-O3D, ...), whose backbone is this one

views = 10  # key frames a scene in training; tests look at all
referrals = 10
max_objects = 150
turn_boxes = False
object_points = False
grid_size = 0.02
thin = None  # metres: a point a cell of this size, before points are augmented, to save time
cache = False

lr = 1e-3
weight_decay = 0.01
warmup = 0.01  # share of the updates
epochs = dict(baseline=150, instance=300, scene=30, unified=300, joint=300)
rounds = 30  # validations
temporal_labels = None  # of objects that temporal instance matching asks about, None: all
test_last = False  # the release tests the best of them, chosen on the very scenes that are scored

first_root = data_root if isinstance(data_root, str) else data_root[0]
chunks = None if share is None else {name: f"{first_root}/tasks/chunks/{share}/{name}.txt" for name in ("point", "cad")}
objects_alone = stage in ("baseline", "instance")
needs_points = stage in ("unified", "joint")
metric = "instance_top1" if objects_alone else "scene_top1"

batch_size = 16
num_worker = 8
epoch = epochs[stage]
eval_epoch = rounds
clip_grad = 1.0

optimizer = dict(type="AdamW", lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
scheduler = dict(type="OneCycleLR", max_lr=lr, pct_start=warmup, anneal_strategy="cos", div_factor=10.0, final_div_factor=10.0, cycle_momentum=False)

voxelize = dict(type="GridSample", grid_size=grid_size, return_grid_coord=True, mode="train")
finish = [
    voxelize,
    dict(type="NormalizeColor", mode="minus_one_one"),
    dict(type="Collect", keys=("coord", "grid_coord"), feat_keys=feat_keys),
]
thinned = [dict(type="GridSample", grid_size=thin, mode="train")] if thin else []
augment = [
    dict(type="RandomScale", scale=[0.8, 1.25]),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1),
    # uniform, of the release's spread: normal with 0.06 radians, clipped at 0.18
    *(dict(type="RandomRotate", angle=[-0.033, 0.033], axis=axis, p=1) for axis in "xyz"),
    dict(type="RandomShift", shift=[[-0.1, 0.1]] * 3),
    dict(type="RandomJitter", sigma=0.01, clip=0.05),
    dict(type="RandomDropout", dropout_ratio=0.1, dropout_application_ratio=1.0),
]
common = dict(
    type="CrossOverDataset", recipe=recipe, feature_root=feature_root, widths=widths, points=needs_points, object_points=object_points, cache=cache
)
looked_at = dict(
    **common, split="val", data_root=test_root, referrals=referrals, fixed=True, transform=[dict(type="CenterShift", apply_z=True), *finish]
)
data = dict(
    train=dict(
        **common,
        split="train",
        data_root=data_root,
        views=views,
        referrals=referrals,
        max_objects=max_objects,
        chunks=chunks,
        drop=drop,
        turn_boxes=turn_boxes,
        transform=[*thinned, dict(type="CenterShift", apply_z=True), *augment, *finish],
    ),
    val=looked_at,
    test=looked_at,
)

instance = dict(
    type="CrossOver-baseline-v1m1" if stage == "baseline" else "CrossOver-instance-v1m1",
    widths=widths,
    dim=dim,
    base=base,
    pairs=pairs,
    dropout=head_dropout,
    loss=object_loss,
    standardize=standardize,
    **({} if stage == "baseline" else dict(transformer=transformer, cad_location=cad_location)),
)
model = (
    instance
    if objects_alone
    else dict(
        type="CrossOver-v1m1",
        instance=instance,
        widths=widths,
        backbone=backbone,
        backbone_out_channels=backbone_out_channels,
        dim=dim,
        stage=stage,
        fusion=fusion,
        loss=scene_loss,
        loss_weights=loss_weights,
        floorplan=floorplan,
        standardize=standardize,
        dropout=scene_dropout,
    )
)

# Weights of the object level become the model's `instance`; those of the stage "scene" are whole models.
into_instance = dict(keywords="module.", replacement="module.instance.", part="instance") if start == "instance" else {}
hooks = [
    dict(type="CheckpointLoader", **into_instance),
    *([] if backbone_weight is None or not needs_points else [dict(type="CheckpointLoader", weight=backbone_weight, part="backbone")]),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter", interval=50),
    # The fusion alone has no encoder of a scene yet, so there is nothing to retrieve.
    *([] if stage == "scene" else [dict(type="RetrievalEvaluator", metric=metric)]),
    dict(type="CheckpointSaver", save_freq=None),
    *([] if stage == "scene" else [dict(type="PreciseEvaluator", test_last=test_last)]),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
settings = {} if temporal_labels is None else dict(temporal_instance=dict(labels=temporal_labels))
test = dict(type="RetrievalTester", fused=not objects_alone, frames=needs_points, settings=settings)
