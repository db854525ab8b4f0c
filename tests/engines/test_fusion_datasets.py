"""Features fused through cameras of Matterport3D (one intrinsic a picture, depth of 4000 units) and nuScenes (no depth)."""

import numpy as np
import pytest

from pointcept3m.datasets.preprocess_matterport import Settings as MatterportSettings
from pointcept3m.datasets.preprocess_matterport import fill_region
from pointcept3m.datasets.preprocess_matterport import jobs_of as matterport_jobs
from pointcept3m.datasets.preprocess_nuscenes import Settings as NuScenesSettings
from pointcept3m.datasets.preprocess_nuscenes import fill_sample
from pointcept3m.datasets.preprocess_nuscenes import jobs_of as nuscenes_jobs
from pointcept3m.datasets.preprocess_scenes import preprocess
from pointcept3m.engines.fusion import Job, ViewSettings, fuse_scenes
from pointcept3m.structures.camera import project
from pointcept3m.structures.fused_features import feature_path, open_features
from pointcept3m.structures.scene import Scene
from tests.datasets import raw_matterport, raw_nuscenes

TEACHER = {"text": dict(type="PocketTeacher", name="text")}


def inside(coord: np.ndarray, intrinsic: np.ndarray, extrinsic: np.ndarray, size: tuple, border: int) -> np.ndarray:
    """[N] bool: the points that project into a picture; in a convex room those are the ones it shows."""
    pixel, z = project(coord, intrinsic, extrinsic)
    with np.errstate(invalid="ignore"):
        return (z > 0) & ((pixel >= border) & (pixel < np.array(size[::-1]) - border)).all(axis=1)


def test_matterport(tmp_path):
    raw = raw_matterport.write_matterport(tmp_path / "raw")
    preprocess(fill_region, matterport_jobs(raw, tmp_path, ["train"]), MatterportSettings(image_width=0), workers=0)
    folders = sorted((tmp_path / "train").iterdir())
    seen, bare = fuse_scenes(folders, Job(TEACHER, ViewSettings(tolerance=0.02, side=640, border=0)))
    assert bare.name == f"{raw_matterport.TRAIN}_region1" and bare.skipped == f"there are no frames in {folders[1]}" and not bare.error
    scene = Scene(folders[0])
    coord = scene.load("coord")
    want = [inside(coord, raw_matterport.INTRINSICS[int(name[-3])], scene.camera(name)[1], raw_matterport.SIZE, 0) for name in scene.frame_names]
    mask = open_features(feature_path(folders[0], "text"), coord=coord).mask
    assert seen.num_frames == 12 and 0.3 < mask.mean() < 0.95
    # where three walls meet, the nearest pixel's depth may be another wall's by more than the 2 %
    assert (mask == np.any(want, axis=0)).mean() > 0.98


def test_nuscenes(tmp_path):
    root = raw_nuscenes.write_nuscenes(tmp_path / "raw", scenes=("scene-0003",))
    preprocess(fill_sample, nuscenes_jobs(root, tmp_path / "out"), NuScenesSettings(), workers=0)
    folders = sorted((tmp_path / "out" / "val").iterdir())
    fuse_scenes(folders, Job(TEACHER, ViewSettings(side=800, border=0, depth=False)))
    for folder in folders:
        scene = Scene(folder)
        coord = scene.load("coord")
        want = [inside(coord, raw_nuscenes.INTRINSIC, scene.camera(name)[1], raw_nuscenes.SIZE, 0) for name in scene.frame_names]
        np.testing.assert_array_equal(open_features(feature_path(folder, "text"), coord=coord).mask, np.any(want, axis=0))
    with pytest.raises(FileNotFoundError, match="depth: no such folder"):
        fuse_scenes(folders, Job(TEACHER, ViewSettings()))
