"""ScanNet, 20 classes: the whole network from a pretrained backbone (GaussianCross, Table 3)."""

_base_ = ["semseg-spunet-v1m1-0-base.py"]

weight = "exp/gaussiancross/scannet/model/model_last.pth"  # of sh tools/train.sh -c configs/gaussiancross/scannet.py
