"""Re-ranking of floorplan retrieval on generated rooms: matching of patches, ranking of candidates.

    sh tools/train.sh -c configs/crossover/rooms-rerank.py first_stage=exp/crossover/rooms/embeddings/val.safetensors

`first_stage`: the embeddings that the test of rooms.py or rooms-unified.py wrote, whose first candidates are re-ranked; without it the
re-ranker alone is tested.
"""

_base_ = ["../_base_/default_runtime.py"]

data_root = "data/rooms_modalities"
first_stage = None
size, cell = 64, 0.15  # cells and metres of a raster: rooms up to 9.6 m

seed = 0
batch_size = 8
num_worker = 1
epoch = 10
eval_epoch = 1
clip_grad = 1.0
lr = 3e-3

model = dict(type="CrossOver-rerank-v1m1", size=size, cell=cell, dim=32, reach=1, match_weight=0.5)
optimizer = dict(type="AdamW", lr=lr, weight_decay=0.01)
scheduler = dict(type="OneCycleLR", max_lr=lr, pct_start=0.1, anneal_strategy="cos", div_factor=10.0, final_div_factor=100.0)

pairs = dict(type="PlanPairDataset", data_root=data_root, size=size, cell=cell)
data = dict(train=dict(**pairs, split="train", negatives=7), test=dict(**pairs, split="val", negatives=0, fixed=True))

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter", interval=50),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=True),
    dict(type="MetricsWriter"),
    dict(type="ReportWriter"),
]
test = dict(_delete_=True, type="RerankTester", embeddings=first_stage, top=10)
