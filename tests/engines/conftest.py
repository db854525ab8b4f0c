"""`toy` for the engine tests: configs and a function that trains one and gives its losses."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def toy():
    import toy

    return toy


@pytest.fixture
def train(toy, monkeypatch):
    """`train(cfg)` trains and returns the trainer. No report: drawing it takes longer than the training."""
    from pointcept3m.engines.hooks import report

    monkeypatch.setattr(report, "write_report", lambda folder: folder)
    from pointcept3m.engines import TRAINERS

    def run(cfg: dict):
        trainer = TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg)
        trainer.train()
        return trainer

    return run


def losses(folder) -> list[float]:
    """The loss of each step, exactly, from a run folder."""
    from pointcept3m.utils.events import read_csv

    rows = [(step, value) for step, name, value in read_csv(Path(folder) / "metrics.csv") if name == "train_batch/loss"]
    assert [step for step, _ in rows] == list(range(1, len(rows) + 1))
    return [value for _, value in rows]


@pytest.fixture(name="losses")
def losses_fixture():
    return losses
