"""ScanNet, as the released code trains: every loss a cosine, log(1 + sigma^2), 300,000 points, Adam from 1e-3 with a polynomial decay.

Its config says 1e-4, but its loop multiplies the rate by ten from the second step on. It passes five times over the scenes in
an epoch and does not bend space: its elastic distortion does not reach the coordinates that it voxelises.
"""

_base_ = ["scannet.py"]
_options_ = dict(losses={}, uncertainty={"kind": "scalar", "regulariser": "log1p_square"}, num_points=300_000, elastic=False, lr=0.001)

batch_size = 4
scheduler = dict(_delete_=True, type="PolyLR", power=0.9)
data = dict(train=dict(loop=5))
param_dicts = [dict(keyword="uncertainty", lr=1e-3, weight_decay=0.0)]
