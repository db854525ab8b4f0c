"""Loading batches so that a sample is a function of (seed, epoch, position) and of nothing else.

Neither the number of workers, nor the number of processes, nor an interruption changes what a training sees.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pointcept3m.utils.errors import Failure
from pointcept3m.utils.seed import mix_seed, preserved_rng

LABELS = ("segment", "origin_segment")
Key = tuple[int, int, int]  # epoch, position in the epoch, index in the dataset


class KeyedDataset(Dataset):
    """Another dataset, read by (epoch, position, index): generators are seeded from the first two for each sample.

    In a worker, an error that is a sentence for the user comes back as a Failure in place of the sample.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> tuple[Key, Any]:
        epoch, position, index = key
        with preserved_rng():
            _seed_fast(mix_seed(self.seed, epoch, position))
            return key, _carried(lambda: self.dataset[index])


class KeyedCollate:
    """Another collate function, seeded from the first sample of the batch (Mix3D draws in it)."""

    def __init__(self, collate: Callable[[list], Any], seed: int):
        self.collate, self.seed = collate, seed

    def __call__(self, batch: list[tuple[Key, Any]]) -> Any:
        epoch, position, _ = batch[0][0]
        with preserved_rng():
            _seed_fast(mix_seed(self.seed, epoch, position, "collate"))
            failures = [sample for _, sample in batch if isinstance(sample, Failure)]
            return failures[0] if failures else _carried(lambda: self.collate([sample for _, sample in batch]))


class CheckedCollate:
    """Another collate function, after a look at the labels: `loader[i]` of a scene with a wrong one is a clear error.

    On a GPU such a label would end the process in a failed assertion that names nothing. num_classes None: no look.
    """

    def __init__(self, collate: Callable[[list], Any], num_classes: int | None, ignore_index: int = -1):
        self.collate, self.num_classes, self.ignore_index = collate, num_classes, ignore_index

    def __call__(self, samples: list[Any]) -> Any:
        if self.num_classes is not None:
            for sample in samples:
                for key in LABELS:
                    if isinstance(sample, Mapping) and key in sample:
                        check_labels(sample[key], self.num_classes, self.ignore_index, sample.get("name"), key)
        return self.collate(samples)


def check_labels(segment: Any, num_classes: int, ignore_index: int = -1, name: str | None = None, key: str = "segment") -> None:
    """Raises TypeError or ValueError, which name the scene, where a label [N] is no integer, or neither `ignore_index` nor
    in 0..num_classes - 1. key: what the labels are called in the sample."""
    segment, scene = torch.as_tensor(segment), f"scene {name or 'without a name'}"
    if segment.is_floating_point():
        dtype = str(segment.dtype).removeprefix("torch.")
        raise TypeError(f"{scene}: {key} holds {dtype} numbers; wanted integers, the class of each point (segment.astype(np.int32))")
    if segment.numel() == 0:
        return
    low, high = torch.aminmax(segment)
    if low >= 0 and high < num_classes:
        return
    wrong = ((segment < 0) | (segment >= num_classes)) & (segment != ignore_index)
    if bool(wrong.any()):
        labels = segment[wrong].unique().tolist()
        where = "" if key == "segment" else f" in {key}"
        shown = ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise ValueError(
            f"{scene}: {int(wrong.sum())} of {len(segment)} points have the label {shown}{where}, but "
            f"data.num_classes = {num_classes} allows 0..{num_classes - 1} and ignore_index = {ignore_index}"
        )


def _carried(make: Callable[[], Any]) -> Any:
    """`make()`; in a worker process, the Failure of an error that this package raised on purpose.

    torch would tell of such an error by its traceback as text within another one. Other errors are left to it.
    """
    return make() if get_worker_info() is None else Failure.carried(make)


class Loader(DataLoader):
    """A DataLoader that raises the errors of its workers as they were."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                batch.reraise()
            yield batch


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of keys for this process: `loop` shuffled passes over the dataset an epoch, split evenly over processes.

    A global batch is `batch_size` (of all processes together) neighbours in the order of the epoch; this process
    takes its share of each. The last short batch is dropped, unless it is the only one. `start` skips batches that
    an interrupted epoch has already seen.
    """

    def __init__(self, size: int, batch_size: int, loop: int = 1, shuffle: bool = True, seed: int = 0, rank: int = 0, world: int = 1):
        if size < 1:
            raise ValueError("the dataset is empty")
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the number of processes, {world}")
        self.size, self.batch_size, self.loop = size, batch_size, loop
        self.shuffle, self.seed, self.rank, self.world = shuffle, seed, rank, world
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next iteration gives epoch `epoch` from batch `start` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches in a whole epoch, whatever `start`."""
        return max(1, self.size * self.loop // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        total = self.size * self.loop
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch, "order"))
        order = torch.randperm(total, generator=generator).tolist() if self.shuffle else list(range(total))
        for batch in range(self.start, len(self)):
            positions = list(range(batch * self.batch_size, min((batch + 1) * self.batch_size, total)))
            while len(positions) % self.world:  # a short only batch: every process needs as many samples
                positions.append(positions[len(positions) % total])
            share = len(positions) // self.world
            mine = positions[self.rank * share : (self.rank + 1) * share]
            yield [(self.epoch, position, order[position] % self.size) for position in mine]


class EvaluationSampler(Sampler[list[Key]]):
    """Every sample once, in order, each on one process."""

    def __init__(self, size: int, batch_size: int = 1, rank: int = 0, world: int = 1):
        self.indices = list(range(rank, size, world))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index, index) for index in self.indices[start : start + self.batch_size]]


def build_loader(
    dataset: Any,
    sampler: Sampler,
    collate: Callable[[list], Any],
    seed: int,
    num_worker: int = 0,
    timeout: float = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader over `dataset` by the keys of `sampler`.

    `timeout`: seconds without a batch after which a stuck worker is an error (only with workers).
    """
    return Loader(
        KeyedDataset(dataset, seed),
        batch_sampler=sampler,
        collate_fn=KeyedCollate(collate, seed),
        num_workers=num_worker,
        timeout=timeout if num_worker else 0,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
        persistent_workers=num_worker > 0,
        # A generator of its own: the loader draws a base seed each epoch, which must not move the training's one.
        generator=torch.Generator().manual_seed(seed % 2**63),
    )


def shutdown_workers(loader: DataLoader | None) -> None:
    """Ends the worker processes of `loader` now instead of when Python collects it."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        loader._iterator = None


def to_device(batch: Any, device: torch.device | str) -> Any:
    """`batch` with its tensors, also inside dicts and lists, on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return type(batch)({key: to_device(value, device) for key, value in batch.items()})
    if type(batch) in (list, tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _init_worker(worker: int) -> None:
    # Workers share the cores: one thread each, or they slow each other down.
    import signal

    torch.set_num_threads(1)
    # Ctrl-C reaches the whole terminal group; the parent decides what happens to its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _seed_fast(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # the CPU's alone: samples are made there
