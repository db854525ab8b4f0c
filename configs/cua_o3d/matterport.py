"""CUA-O3D on Matterport3D, the whole method (Table 2); its weights on ScanNet are the second half of Table 3.

    sh tools/train.sh -c configs/cua_o3d/matterport.py
    python tools/test.py --config-file configs/cua_o3d/scannet.py --options weight=exp/cua_o3d/matterport/model/model_last.pth save_path=exp/cua_o3d/matterport_on_scannet
"""

_base_ = ["../_base_/cua_o3d.py"]
_options_ = dict(dataset_type="MatterportDataset", data_root="data/matterport", labels="matterport21")
