"""CrossOver trained by two processes: the same model as by one, whose negatives are all of the batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.datasets.crossover_scenes import write_set
from tests.test_crossover_configs import MADE_UP, STAGES


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("crossover"), train=8, val=5)


def train(config, folder, processes, *options):
    start = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *start, str(REPOSITORY / "tools/train.py"), "--config-file", str(REPOSITORY / "configs/crossover" / config), "--options"]
    settings = (f"save_path='{folder}'", f"widths={MADE_UP}", f"epochs={dict.fromkeys(STAGES, 2)}", "rounds=1", "num_worker=0")
    clean = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    environment = {**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*command, *settings, *options], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "metrics.json").read_text())["metrics"]


@pytest.mark.long
def test_two_processes_are_one_with_the_same_batch(rooms, tmp_path):
    # without what is drawn or measured for each process by itself
    alike = ("head_dropout=0.0", "turn_boxes=False", "standardize=False", "transformer={'heads': 2, 'layers': 1, 'feedforward': 16, 'dropout': 0.0}")
    options = (f"data_root='{rooms}'", "batch_size=4", *alike)
    one = train("rooms-instance.py", tmp_path / "one", 1, *options)
    two = train("rooms-instance.py", tmp_path / "two", 2, *options)
    states = [torch.load(tmp_path / name / "model/model_last.pth", weights_only=True)["state_dict"] for name in ("one", "two")]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert two["test_instance_chance_top1"] == pytest.approx(one["test_instance_chance_top1"])
    assert two["test_instance_top1"] == pytest.approx(one["test_instance_top1"], abs=0.05)


@pytest.mark.long
def test_all_stages_by_two_processes(rooms, tmp_path):
    scores = train("rooms.py", tmp_path / "run", 2, f"data_root='{rooms}'", "batch_size_test=2")
    assert scores["scene_chance_top1"] == pytest.approx(1 / 5) and (tmp_path / "run/unified/model/model_best.pth").is_file()
