"""Tests a weight of another data set on Matterport3D's 21, 40, 80 or 160 classes (Table 3, first half, and Table 4).

    python tools/test.py --config-file configs/cua_o3d/matterport-t4.py --options weight=exp/cua_o3d/scannet/model/model_last.pth K=40 save_path=exp/cua_o3d/scannet_on_matterport40

The network and its input are those of scannet.py. The paper tests on the split "test", and compares its 2D3D ensemble
(`2d3d_mean_mIoU` here) with OpenScene's 3D features alone (`3d_mIoU`); all kinds stand side by side here.
"""

from pointcept3m.structures.label_sets import label_set

K = 21  # 40, 80, 160: the K most frequent categories

_base_ = ["matterport.py"]

data = dict(num_classes=K, names=label_set(f"matterport{K}").names, val=None, test=dict(split="test", num_classes=K))
test = dict(label_set=f"matterport{K}")
