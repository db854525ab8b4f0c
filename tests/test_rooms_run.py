"""The rooms config in two processes, and the test of the weights it leaves."""

import json
import os
import subprocess
import sys

import pytest

from pointcept3m.datasets.rooms import write_rooms
from tests.conftest import REPOSITORY

SETTINGS = ["image_size=(48, 64)", "grid_size=0.12", "model.volume_shape=(24, 24, 12)", "num_worker=0"]


@pytest.mark.long
def test_two_processes_train_the_method_and_the_weights_test_alike(tmp_path):
    for split in ("train", "val"):
        write_rooms(tmp_path / "data/rooms", split, 2, num_frames=10, workers=0)

    def run(script, *arguments):
        command = [sys.executable, str(REPOSITORY / "tools" / script), "--config-file", *arguments]
        result = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]

    config = str(REPOSITORY / "configs/gaussiancross/rooms.py")
    run("train.py", config, "--num-gpus", "2", "--options", *SETTINGS, "epoch=6", "eval_epoch=2", "save_path='exp'")
    trained = json.loads((tmp_path / "exp/metrics.json").read_text())["metrics"]

    weight = "weight='exp/model/model_last.pth'"
    run("test.py", "exp/config.py", "--num-gpus", "0", "--options", weight, "save_path='tested'")
    tested = json.loads((tmp_path / "tested/metrics.json").read_text())["metrics"]
    for name in ("psnr", "depth_mae", "feature_cosine"):
        assert tested[name] == pytest.approx(trained[name], abs=1e-3), name
    assert (tmp_path / "tested/report.html").is_file()
