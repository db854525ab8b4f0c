"""CUA-O3D on nuScenes' lidar frames, with voxels of 5 cm as OpenScene has them, scored on the 16 lidarseg classes."""

_base_ = ["../_base_/cua_o3d.py"]
_options_ = dict(dataset_type="NuScenesDataset", data_root="data/nuscenes", labels="nuscenes16", grid_size=0.05, teachers=("lseg",), uncertainty=None)
