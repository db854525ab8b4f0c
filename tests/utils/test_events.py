"""Running averages, curves on disk, progress, and random states."""

import importlib.machinery
import importlib.util
import io
import logging
import random
import sys
import types

import numpy as np
import pytest
import torch

from pointcept3m.utils import logger as logging_
from pointcept3m.utils.events import CsvWriter, EventStorage, RunWriter, as_pixels, read_csv
from pointcept3m.utils.seed import mix_seed, preserved_rng, rng_state, set_rng_state, set_seed


def test_storage_averages():
    storage = EventStorage()
    storage.put_scalar("loss", 1.0, n=3)
    storage.put_scalars(loss=5.0, lr=0.1)
    history = storage.history("loss")
    assert (history.val, history.avg, history.total, history.count) == (5.0, 2.0, 8.0, 4)
    again = EventStorage()
    again.load_state_dict(storage.state_dict())
    assert again.history("loss").avg == 2.0 and again.state_dict() == storage.state_dict()
    storage.reset_histories()
    assert storage.history("loss").count == 0
    with pytest.raises(KeyError, match="no history 'los'"):
        storage.history("los")


def test_names_with_a_slash_are_handed_out_once():
    storage = EventStorage()
    storage.put_scalars(**{"val/psnr": 20.0, "loss": 1.0})
    assert storage.take_fresh() == {"val/psnr": 20.0} and storage.take_fresh() == {}


def test_csv_reads_back_exactly_and_forgets_later_steps(tmp_path):
    path = tmp_path / "metrics.csv"
    writer = CsvWriter(path)
    for step in range(1, 6):
        writer.add_scalar("loss", step / 3, step)
    writer.close()
    assert read_csv(path) == [(step, "loss", step / 3) for step in range(1, 6)]
    with open(path, "a") as stream:
        stream.write("6,loss,0.1")  # a kill cut the line short
    writer = CsvWriter(path, resume_step=3)
    writer.add_scalar("a,b", float("nan"), 4)
    writer.close()
    rows = read_csv(path)
    assert rows[:3] == [(step, "loss", step / 3) for step in range(1, 4)] and rows[3][:2] == (4, "a,b") and len(rows) == 4
    CsvWriter(path).close()
    assert read_csv(path) == []


def test_run_writer_writes_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = RunWriter(tmp_path)
    writer.add_scalars({"train/loss": 0.5}, 3)
    writer.add_image("views/room", np.zeros((4, 5, 3)), 3)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.5)]
    assert (events.Images("views/room")[0].height, events.Images("views/room")[0].width) == (4, 5)
    RunWriter(None).add_scalar("a", 1.0, 1)  # ranks other than 0 write nothing
    assert len(list(tmp_path.iterdir())) == 2


def test_wandb_is_used_where_somebody_is_logged_in(tmp_path, monkeypatch, caplog):
    """Pointcept's configs switch it on for everybody; that must neither stop a run nor send anything by itself."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    started = []
    service = types.ModuleType("wandb")
    service.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    service.init = lambda **settings: started.append(settings) or types.SimpleNamespace(finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", service)
    logger = logging.getLogger("test_wandb")

    def opened() -> int:
        RunWriter(tmp_path / "run", wandb=dict(project="x"), logger=logger).close()
        return len(started)

    (tmp_path / "run").mkdir()
    with caplog.at_level(logging.WARNING):
        assert opened() == 0
    assert "nobody is logged in to wandb" in caplog.text and "nothing is sent" in caplog.text
    (tmp_path / "netrc").write_text("machine example.org login a password b\n")
    assert opened() == 0
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert opened() == 1 and started[0]["project"] == "x"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert opened() == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert opened() == 2
    assert "pip install wandb" in caplog.text


def test_pixels():
    pixels = as_pixels(torch.tensor([[0.0, 0.5], [2.0, float("nan")]]))
    assert pixels.shape == (2, 2, 3) and pixels.dtype == np.uint8 and pixels[..., 0].tolist() == [[0, 128], [255, 0]]
    with pytest.raises(ValueError, match=r"wanted \[H, W, 3\] or \[H, W\], got \[3, 4, 5\]"):
        as_pixels(np.zeros((3, 4, 5)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_knows_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logging_.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = logging_.Progress(100, "testing", stream, interval=10.0)
    for _ in range(50):
        now[0] += 2.0
        progress.update()
    assert progress.seconds_left == pytest.approx(100.0)
    for _ in range(50):  # twice as fast from here on: the estimate follows
        now[0] += 1.0
        progress.update()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "testing 5/100, 3:10 left" and lines[-1] == "testing 100/100, took 2:30" and len(lines) <= 17
    assert "\x1b" not in stream.getvalue()
    terminal = Terminal()
    with logging_.Progress(2, "x", terminal) as progress:
        now[0] += 1
        progress.update()
    assert "\r\x1b[Kx 1/2, 0:01 left" in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (90061, "25:01:01"), (-1, "0:00")])
def test_format_seconds(seconds, text):
    assert logging_.format_seconds(seconds) == text


def draw() -> tuple:
    return random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(())), float(torch.randn(()))


def test_random_states_survive_a_file(tmp_path):
    set_seed(3)
    draw()  # leaves half of a pair of normal numbers behind, in python and in numpy
    torch.save(rng_state(), tmp_path / "rng.pth")
    expected = [draw() for _ in range(3)]
    set_seed(99)
    set_rng_state(torch.load(tmp_path / "rng.pth", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_preserved_rng():
    set_seed(1)
    expected = draw()
    set_seed(1)
    with preserved_rng(seed=5):
        inside = draw()
    assert draw() == expected != inside
    assert mix_seed(1, 2) == 5142973159532490859 != mix_seed(2, 1)  # a constant: resumed runs rely on it
    assert set_seed(None) != set_seed(None)
