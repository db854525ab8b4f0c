"""The demo: finished steps are skipped, other people's folders are left alone, and the numbers are the run's."""

import json
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.engines import demo
from pointcept3m.utils.config import Config, parse_options

METRICS = {"psnr": 17.3, "psnr_at_start": 9.8, "depth_mae": 0.15, "depth_mae_at_start": 1.4, "probe_mIoU": 0.51}


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """Replaces the three steps by ones that only note that they were called."""
    calls: list[str] = []

    def pretrain(rooms: Path, run: Path, plan: demo.Plan) -> None:
        calls.append("pretrain")
        run.mkdir(exist_ok=True)
        (run / "metrics.json").write_text(json.dumps({"metrics": METRICS}))

    monkeypatch.setattr(demo, "make_rooms", lambda rooms, plan: calls.append("rooms"))
    monkeypatch.setattr(demo, "pretrain", pretrain)
    monkeypatch.setattr(demo, "report", lambda run: calls.append("report"))
    return calls


def test_a_second_call_skips_what_is_finished(tmp_path, steps, capsys):
    output = tmp_path / "demo"
    assert demo.run_demo(output)["metrics"] == METRICS
    assert steps == ["rooms", "pretrain", "report"]
    demo.run_demo(output)
    assert steps == ["rooms", "pretrain", "report"]
    text = capsys.readouterr().out
    assert "9.80 dB -> 17.30 dB" in text and "140.0 cm -> 15.0 cm" in text and "51.0 %" in text
    assert str(output / "run" / "report.html") in text


def test_a_stopped_demo_goes_on_at_the_step_it_was_in(tmp_path, steps, monkeypatch):
    whole = demo.pretrain

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "pretrain", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "demo")
    monkeypatch.setattr(demo, "pretrain", whole)
    demo.run_demo(tmp_path / "demo")
    assert steps == ["rooms", "pretrain", "report"]


def test_restart_does_every_step_again(tmp_path, steps):
    demo.run_demo(tmp_path / "demo")
    stale = tmp_path / "demo" / "run" / "stale"
    stale.write_text("")
    demo.run_demo(tmp_path / "demo", seed=1, restart=True)
    assert steps == ["rooms", "pretrain", "report"] * 2
    assert not stale.exists()


def test_other_settings_need_a_restart(tmp_path, steps):
    demo.run_demo(tmp_path / "demo")
    with pytest.raises(ValueError, match="holds a demo with other settings; --restart"):
        demo.run_demo(tmp_path / "demo", seed=1)


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_that_is_no_demo_is_left_alone(tmp_path, steps, restart):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no demo"):
        demo.run_demo(tmp_path, restart=restart)
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine" and steps == []


@pytest.mark.parametrize("seed", [-1, 500])
def test_seeds_whose_rooms_would_overlap_are_refused(tmp_path, seed):
    with pytest.raises(ValueError, match="--seed must lie in"):
        demo.run_demo(tmp_path / "demo", seed=seed)


def test_the_training_takes_the_rooms_of_the_demo(tmp_path):
    """The arguments name a config that exists, and their settings reach every data set in it."""
    place = tmp_path / "a folder, with a comma"
    words = demo.training_arguments(place / "rooms", place / "run", demo.plan_for(3, fast=True))
    path, options = Path(words[1]), words[words.index("--options") + 1 :]
    config = Config.fromfile(path, parse_options(options))
    roots = find_values(config, "data_root")
    assert len(roots) >= 2 and set(roots) == {str(place / "rooms")}
    assert config.save_path == str(place / "run") and config.seed == 3
    assert config.epoch % config.eval_epoch == 0
    assert any(hook["type"] == "ReportWriter" for hook in config.hooks)


@pytest.mark.parametrize("num_gpus", [0, 1, 4])
def test_the_demo_trains_in_its_own_process(tmp_path, monkeypatch, num_gpus):
    """With several GPUs launch would exec torchrun, and the demo be gone."""
    import os

    import torch

    from pointcept3m.engines import launch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("the demo was replaced"))
    prepared = []
    monkeypatch.setattr(launch, "train_main", lambda argv: prepared.append(launch._prepare("train", argv, "")) or 0)
    demo.pretrain(tmp_path / "rooms", tmp_path / "run", demo.plan_for(0, fast=True))
    assert prepared[0].save_path == str(tmp_path / "run")


def find_values(node, name: str) -> list:
    """Every value under the key `name` in nested dicts and lists."""
    if isinstance(node, dict):
        return [value for key, value in node.items() if key == name] + [v for child in node.values() for v in find_values(child, name)]
    return [v for child in node for v in find_values(child, name)] if isinstance(node, (list, tuple)) else []


def test_rooms_are_made_and_kept(tmp_path, capsys):
    plan = demo.Plan(seed=2, num_train_rooms=1, num_val_rooms=1, num_frames=8)
    demo.make_rooms(tmp_path, plan)
    folders = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob("*/*/coord.npy"))
    assert folders == ["train/room002000", "val/room502000"]
    coord = np.load(tmp_path / "train" / "room002000" / "coord.npy")
    assert coord.dtype == np.float32 and len(coord) > 1000
    written = (tmp_path / "train" / "room002000" / "coord.npy").stat().st_mtime_ns
    demo.make_rooms(tmp_path, plan)
    assert (tmp_path / "train" / "room002000" / "coord.npy").stat().st_mtime_ns == written
    assert "rooms 2/2, took" in capsys.readouterr().err
