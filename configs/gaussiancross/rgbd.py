"""GaussianCross on any folder of posed RGB-D frames, at a size that a CPU trains.

First `python tools/preprocess/rgbd.py --input FRAMES --output data/rgbd/train/NAME`, once a sequence; the split `train`
may hold as many as you like. Every eighth frame is held out: it is in no training view and not in the fused cloud.
"""

_base_ = ["rooms.py"]

epoch = 300  # of one sequence: 150 steps; of two: 300
eval_epoch = 3
image_size = (120, 160)

data_root = "data/rgbd"
# Nothing is trained from so short a run, and renderings are judged: features weigh less than in rooms.py.
model = dict(volume_shape=(64, 64, 32), feature_weight=4.0)
views = dict(type="RGBDFolderDataset", split="train", data_root=data_root, image_size=image_size)
data = dict(train=views, val=dict(**views, num_cameras=6), test=dict(**views, num_cameras=6))

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="RenderEvaluator", every=1, views_per_picture=4),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
