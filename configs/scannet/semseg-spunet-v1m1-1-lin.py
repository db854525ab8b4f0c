"""ScanNet, 20 classes: linear probe of a pretrained backbone (GaussianCross, Table 1)."""

_base_ = ["semseg-spunet-v1m1-0-base.py"]

# The batch norms of the frozen backbone stay in eval mode. The released code leaves them in train mode, where they go on
# taking statistics of the labelled data: --options model.frozen_norm=train.
model = dict(
    type="DefaultSegmentorV2",
    num_classes="{{ _base_.data.num_classes }}",
    backbone_out_channels=96,
    backbone=dict(num_classes=0),
    freeze_backbone=True,
    frozen_norm="eval",
)
weight = "exp/gaussiancross/scannet/model/model_last.pth"  # of sh tools/train.sh -c configs/gaussiancross/scannet.py
