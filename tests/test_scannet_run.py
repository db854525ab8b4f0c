"""The paper's config on ScanNet's own files: rooms written as a ScanNet download, preprocessed, and trained on.

Only the data's place, the batch size and the number of epochs differ from `sh tools/train.sh -c
configs/gaussiancross/scannet.py`. RADIO's weights lie where the config looks for them; their numbers are random, their
names and shapes those of NVIDIA's file.
"""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pointcept3m.datasets.rooms import write_raw_scannet
from tests.conftest import REPOSITORY
from tests.models.test_teachers import radio_weights

CONFIG = REPOSITORY / "configs/gaussiancross/scannet.py"


def run(arguments, folder):
    return subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )


def test_without_data_the_paper_run_stops_with_one_sentence(tmp_path):
    result = run(["sh", REPOSITORY / "tools/train.sh", "-p", sys.executable, "-c", CONFIG, "-n", "x", "-g", "0"], tmp_path)
    assert result.returncode != 0
    said = result.stderr + result.stdout
    assert "Traceback" not in said
    assert "data/scannet" in said and "tools/preprocess/scannet.py" in said and "pointcept3m demo" in said


@pytest.mark.long
def test_the_paper_config_trains_on_preprocessed_raw_scannet(tmp_path):
    pytest.importorskip("timm", exc_type=Exception, reason="timm cannot be imported with this torch")
    from safetensors.torch import save_file

    write_raw_scannet(tmp_path / "raw", {"train": [0], "val": [1]}, num_frames=16, depth_size=(480, 640), color_size=(480, 640))
    command = [sys.executable, REPOSITORY / "tools/preprocess/scannet.py", "--raw-root", "raw", "--output-root", "scannet"]
    result = run([*command, "--frame-stride", "1", "--workers", "1"], tmp_path)
    assert result.returncode == 0, result.stderr
    (scene,) = (tmp_path / "scannet/train").iterdir()
    assert len(list((scene / "color").iterdir())) == 16 and np.load(scene / "normal.npy").shape[1] == 3

    weight = tmp_path / "weights/radio_v2.5-b/model.safetensors"
    weight.parent.mkdir(parents=True)
    save_file({k: v.half() for k, v in radio_weights(width=768, depth=12, prefix_tokens=8, side=128).items()}, weight)

    # Two passes over one scene make two steps; then the held-out views of the other are rendered.
    command = [sys.executable, REPOSITORY / "tools/train.py", "--config-file", CONFIG, "--options"]
    settings = ["data_root='scannet'", "batch_size=1", "epoch=2", "eval_epoch=1", "save_path='exp'"]
    result = run([*command, *settings], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    with open(tmp_path / "exp/metrics.csv") as stream:
        losses = [float(row["value"]) for row in csv.DictReader(stream) if row["name"].endswith("/loss")]
    assert len(losses) >= 2 and all(np.isfinite(losses))
    metrics = json.loads((tmp_path / "exp/metrics.json").read_text())["metrics"]
    assert metrics["psnr"] > 0 and metrics["depth_mae"] >= 0 and -1 <= metrics["feature_cosine"] <= 1
    assert list((tmp_path / "exp/pictures").glob("*.png")) and (tmp_path / "exp/report.html").is_file()
    state = torch.load(tmp_path / "exp/model/model_last.pth", weights_only=True)["state_dict"]
    assert sum(v.numel() for k, v in state.items() if k.startswith("backbone.") and "running" not in k) > 30e6
    assert not any("teacher" in k for k in state)
