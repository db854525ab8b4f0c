"""Datasets and transforms. Importing this fills the DATASETS and TRANSFORMS registries."""

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS, TRANSFORMS, build_dataset
from pointcept3m.datasets.collate import collate_fn, point_collate_fn
from pointcept3m.datasets.crossover import CrossOverDataset
from pointcept3m.datasets.matterport import MatterportDataset
from pointcept3m.datasets.nuscenes import NuScenesDataset
from pointcept3m.datasets.object_clouds import ObjectCloudDataset
from pointcept3m.datasets.plan_pairs import PlanPairDataset
from pointcept3m.datasets.rgbd import RGBDDataset, RGBDFolderDataset, RoomsRGBDDataset, ScanNetRGBDDataset
from pointcept3m.datasets.rooms_dataset import RoomsDataset
from pointcept3m.datasets.s3dis import S3DISDataset
from pointcept3m.datasets.scannet import ScanNet200Dataset, ScanNetDataset
from pointcept3m.datasets.scannet_pair import ScanNetPairDataset

__all__ = [
    "DATASETS",
    "TRANSFORMS",
    "CrossOverDataset",
    "MatterportDataset",
    "NuScenesDataset",
    "ObjectCloudDataset",
    "PlanPairDataset",
    "PointDataset",
    "RGBDDataset",
    "RGBDFolderDataset",
    "RoomsDataset",
    "RoomsRGBDDataset",
    "S3DISDataset",
    "ScanNet200Dataset",
    "ScanNetDataset",
    "ScanNetPairDataset",
    "ScanNetRGBDDataset",
    "build_dataset",
    "collate_fn",
    "point_collate_fn",
]
