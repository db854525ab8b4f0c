"""docs/add_a_backbone.md is run as a reader would: one file, one config line, one command."""

import json
import os
import re
import shutil
import subprocess
import sys

from pointcept3m.datasets.rooms import write_rooms
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/add_a_backbone.md").read_text()


def test_the_page_adds_a_backbone(tmp_path):
    for folder in ("pointcept3m", "configs", "tools"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    backbone, config_line = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / re.search(r"`(pointcept3m/models/backbones/\w+\.py)`", PAGE)[1]).write_text(backbone)
    command = re.search(r"python (tools/train\.py --config-file (\S+))", PAGE)
    (tmp_path / command[2]).write_text(f"{re.search(r'`(_base_ = .*?)`', PAGE)[1]}\n{config_line}")
    for split, seed in (("train", 6), ("val", 7)):
        write_rooms(tmp_path / "data/rooms", split, 1, seed, num_frames=10, workers=0)
    settings = ["epoch=24", "eval_epoch=1", "batch_size=1", "num_worker=0", "save_path='exp'"]
    result = subprocess.run(
        [sys.executable, *command[1].split(), "--options", *settings],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads((tmp_path / "exp/metrics.json").read_text())["metrics"]
    assert metrics["depth_mae"] < metrics["depth_mae_at_start"]
    assert 0 <= metrics["probe_mIoU"] <= 1
