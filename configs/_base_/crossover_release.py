"""CrossOver as its released code trains it, where that differs from the paper (research of its repository, version of January 2026).

The object level contrasts objects of one scene, absent entries are negatives, temperatures and weights of losses stay as they are,
locations count from the scan's origin and are added, CAD models have one too, F_S weighs unit vectors by a softmax whatever is
missing, a floorplan is its CLS token, and a ResNet34 pools the annotated points.
"""

_base_ = ["crossover.py"]
_options_ = dict(
    object_loss=dict(negatives="scene", learn_temperature=False, absent="negative"),
    scene_loss=dict(learn_temperature=False, absent="negative"),
    transformer=dict(heads=12, layers=4, feedforward=2048, dropout=0.1, location="add", centred=False),
    cad_location=True,
    fusion=dict(rule="softmax", renormalise=False, normalise=True),
    loss_weights="fixed",
    floorplan="cls",
    backbone=dict(type="SparseResNet34", in_channels=3),
    backbone_out_channels=512,
    object_points=True,
    start="instance",
)
