"""Objects of rooms as Gaussians, decoded from the embeddings of configs/crossover/rooms-instance.py (after Object-X).

    sh tools/train.sh -c configs/crossover/rooms-objectx.py -w exp/crossover/rooms-instance/model/model_last.pth
"""

_base_ = ["../_base_/crossover_rooms.py"]
_options_ = dict(stage="instance")

batch_size = 8
epoch = 30
eval_epoch = 1
lr = 3e-3

model = dict(
    _delete_=True,
    type="CrossOver-ObjectX-v1m1",
    instance="{{ _base_.model }}",
    gaussians=512,
    width=128,
    max_objects=48,
    rendered=16,
    views=2,
    image_size=32,
)
optimizer = dict(_delete_=True, type="AdamW", lr=lr, weight_decay=0.01)
scheduler = dict(type="OneCycleLR", max_lr=lr, pct_start=0.1)

clouds = dict(type="ObjectCloudDataset", cloud_points=2048, min_points=100)
data = dict(train=dict(**clouds, views=1, referrals=1, max_objects=None), val=clouds, test=clouds)

hooks = [
    dict(type="CheckpointLoader", keywords="module.", replacement="module.instance.", part="instance"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter", interval=50),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=True),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(_delete_=True, type="ReconstructionTester", train=dict(split="train", lr_file=None))
