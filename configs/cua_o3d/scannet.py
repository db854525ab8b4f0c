"""CUA-O3D on ScanNet, the whole method: three teachers, learned uncertainty, de-meaned Stable Diffusion (Table 6, last row; Table 2).

    python tools/preprocess/fuse_features.py --data-root data/scannet --split train val --teacher lseg dinov2 sd --weight ...
    sh tools/train.sh -c configs/cua_o3d/scannet.py
"""

_base_ = ["../_base_/cua_o3d.py"]
