"""Which samples a process sees, and that a sample depends on seed, epoch and position alone."""

import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pointcept3m.cli import describe
from pointcept3m.engines.loader import (
    CheckedCollate,
    EpochBatchSampler,
    EvaluationSampler,
    build_loader,
    shutdown_workers,
    to_device,
)
from pointcept3m.utils.errors import Failure, raised_here
from pointcept3m.utils.registry import Registry


class Draws(Dataset):
    """Each sample is one number of each generator."""

    def __init__(self, size=6, sleep=0.0):
        self.size, self.sleep = size, sleep

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        time.sleep(self.sleep)
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def collate(samples):
    return [*samples, random.random()]


def batches(num_worker, rank=0, world=1, epoch=0, start=0, seed=1):
    sampler = EpochBatchSampler(6, 2, loop=2, seed=seed, rank=rank, world=world)
    sampler.set_epoch(epoch, start)
    loader = build_loader(Draws(), sampler, collate, seed, num_worker)
    result = list(loader)
    shutdown_workers(loader)
    return result


def test_workers_and_position_change_nothing():
    alone = batches(0)
    assert len(alone) == 6 and batches(2) == alone and batches(0, start=4) == alone[4:] and batches(2, start=3) == alone[3:]
    assert batches(0, epoch=1) != alone != batches(0, seed=2)


def test_processes_share_a_batch():
    """Two processes see, together and in order, what one process sees."""
    alone, first, second = batches(0), batches(0, 0, 2), batches(0, 1, 2)
    for whole, a, b in zip(alone, first, second, strict=True):
        assert whole[:2] == [a[0], b[0]]


def test_loading_leaves_the_callers_generators_alone():
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    batches(0)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_an_epoch_has_every_sample_loop_times():
    sampler = EpochBatchSampler(5, 3, loop=3, seed=0)
    keys = [key for batch in sampler for key in batch]
    assert len(sampler) == 5 and sorted(index for _, _, index in keys) == sorted(list(range(5)) * 3)
    assert len({position for _, position, _ in keys}) == 15
    sampler.set_epoch(1)
    assert [key[2] for batch in sampler for key in batch] != [key[2] for key in keys]


def test_last_short_batch_is_dropped_unless_alone():
    assert [len(batch) for batch in EpochBatchSampler(7, 3)] == [3, 3]
    assert [len(batch) for batch in EpochBatchSampler(2, 4)] == [2]
    shares = [list(EpochBatchSampler(3, 4, rank=rank, world=2, shuffle=False)) for rank in (0, 1)]
    assert [[key[2] for key in batch] for (batch,) in shares] == [[0, 1], [2, 0]]


def test_errors():
    with pytest.raises(ValueError, match="batch_size 3 must be a multiple of the number of processes, 2"):
        EpochBatchSampler(4, 3, world=2)
    with pytest.raises(ValueError, match="the dataset is empty"):
        EpochBatchSampler(0, 3)


def test_evaluation_sees_each_sample_once():
    seen = [key[2] for rank in (0, 1, 2) for batch in EvaluationSampler(7, 2, rank, 3) for key in batch]
    assert sorted(seen) == list(range(7))


def test_a_stuck_worker_is_an_error():
    loader = build_loader(Draws(sleep=30), EpochBatchSampler(6, 2), collate, 0, num_worker=1, timeout=1)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
        next(iter(loader))
    assert time.monotonic() - start < 10


class Failing(Draws):
    """Sample 3 fails: by a sentence of ours about a file, by a mistake, or by an error that cannot be pickled."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def __getitem__(self, index):
        if index != 3:
            return super().__getitem__(index)
        if self.kind == "ours":
            return Registry("things").build({"type": "Absent"})
        if self.kind == "missing":
            return open("/no/such/coord.npy")
        return len(3)


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("ours", KeyError, "things has no 'Absent'; known: none"),
        ("missing", FileNotFoundError, "[Errno 2] No such file or directory: '/no/such/coord.npy'"),
    ],
)
@pytest.mark.parametrize("num_worker", [0, 2])
def test_an_error_in_a_worker_arrives_as_it_was(kind, error, text, num_worker):
    loader = build_loader(Failing(kind), EpochBatchSampler(6, 2), collate, 0, num_worker)
    with pytest.raises(error) as caught:
        list(loader)
    assert describe(caught.value).splitlines()[0] == f"error: {text}" and raised_here(caught.value)
    if num_worker:  # the log gets where it happened, too
        assert "__getitem__" in str(caught.value.__cause__)
    shutdown_workers(loader)


def test_a_mistake_in_a_worker_keeps_its_traceback():
    loader = build_loader(Failing("mistake"), EpochBatchSampler(6, 2), collate, 0, 1)
    with pytest.raises(TypeError, match="Original Traceback") as caught:
        list(loader)
    assert not raised_here(caught.value)
    shutdown_workers(loader)


class Awkward(ValueError):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


def test_only_errors_that_survive_pickling_are_carried():
    assert Failure.of(Awkward(1, 2)) is None and str(Failure.of(ValueError("x")).error) == "x"


def test_to_device():
    batch = {"a": torch.ones(1), "b": [torch.ones(1), "text"], "c": ("x", {"d": torch.ones(1)})}
    moved = to_device(batch, "meta")
    assert moved["a"].is_meta and moved["b"][0].is_meta and moved["b"][1] == "text" and moved["c"][1]["d"].is_meta


def test_labels_of_raw_points_are_looked_at_too():
    """Also those that a grid dropped, which meet the model's predictions only when the scores are counted."""
    collate = CheckedCollate(list, num_classes=3)
    good = dict(segment=torch.tensor([0, 2, -1]), origin_segment=np.array([0, 1, 2, -1], np.int16), name="hall")
    assert collate([good]) == [good]
    with pytest.raises(ValueError, match="scene hall: 1 of 2 points have the label 7 in origin_segment, but data.num_classes = 3 allows 0..2"):
        collate([{**good, "origin_segment": np.array([7, -1])}])


@pytest.mark.parametrize("key", ["segment", "origin_segment"])
@pytest.mark.parametrize("labels", [np.array([0.0, 1.0], np.float32), torch.tensor([0.5, 1.5], dtype=torch.float64)])
def test_labels_that_are_no_integers_are_refused_by_name(key, labels):
    good = dict(segment=torch.tensor([0, 1]), name="hall")
    with pytest.raises(TypeError, match=f"scene hall: {key} holds {str(labels.dtype).split('.')[-1]} numbers; wanted integers"):
        CheckedCollate(list, num_classes=3)([good, {**good, key: labels}])
