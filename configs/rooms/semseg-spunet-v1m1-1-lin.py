"""Linear probe: only the linear head is trained, on the frozen backbone of weight=... (GaussianCross, Table 1)."""

_base_ = ["semseg-spunet-v1m1-0-base.py"]

# The batch norms of the frozen backbone stay in eval mode; frozen_norm="train" is what the released code does.
model = dict(freeze_backbone=True)

# A single layer takes, and needs, a higher rate than a network.
optimizer = dict(lr=5e-2)
scheduler = dict(max_lr=5e-2)
