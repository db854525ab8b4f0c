"""Real RGB-D frames end to end: fused, pretrained on, and held-out views rendered, measured and saved."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.long
@pytest.mark.parametrize("sequence", ["rgbd_7scenes", "rgbd_scannet_scene0014_00"])
def test_pretraining_on_real_frames(real_data, tmp_path, sequence):
    def run(*arguments):
        result = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]

    source, scene = real_data(sequence), "data/rgbd/train/office"
    run(REPOSITORY / "tools/preprocess/rgbd.py", "--input", source, "--output", scene, "--max-frames", 24, "--voxel", 0.04)
    # Thirty steps at half the size: enough for the colours and the depth of unseen views to come nearer.
    settings = ["epoch=30", "eval_epoch=1", "batch_size=1", "image_size=(60, 80)", "grid_size=0.08", "save_path='exp'"]
    settings += ["model.volume_shape=(32, 32, 16)"]
    run(REPOSITORY / "tools/train.py", "--config-file", REPOSITORY / "configs/gaussiancross/rgbd.py", "--options", *settings)
    metrics = json.loads((tmp_path / "exp/metrics.json").read_text())["metrics"]
    assert metrics["depth_mae"] < 0.7 * metrics["depth_mae_at_start"]
    assert metrics["feature_cosine"] > metrics["feature_cosine_at_start"] + 0.2
    assert list((tmp_path / "exp/pictures").glob("office_last.png"))
