"""The loader of a voting test: scenes come one augmentation at a time, so that memory holds the fragments of one."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from pointcept3m.engines.loader import Key, build_loader


class SceneParts(Dataset):
    """The scenes of `dataset` cut into parts: item `scene * num_parts + part`.

    most: see `PointDataset.get_test_part`. A part is what `dataset.get_test_part` gives; a data set without `num_test_parts`, or with 0, gives whole scenes.
    """

    def __init__(self, dataset: Any, most: int | None = None):
        self.dataset, self.most = dataset, most
        self.cut = getattr(dataset, "num_test_parts", 0) > 0
        self.num_parts = dataset.num_test_parts if self.cut else 1

    def __len__(self) -> int:
        return len(self.dataset) * self.num_parts

    def __getitem__(self, index: int) -> Any:
        return self.dataset.get_test_part(*divmod(index, self.num_parts), self.most) if self.cut else self.dataset[index]


class PartSampler(Sampler[list[Key]]):
    """The parts of every world-th scene from scene `rank` on, one a batch; parts of a scene follow each other.

    Keys carry the scene as their position, so that the parts of a scene start from the same random state.
    """

    def __init__(self, parts: SceneParts, rank: int = 0, world: int = 1):
        self.num_parts = parts.num_parts
        self.scenes = range(rank, len(parts.dataset), world)

    def __len__(self) -> int:
        return len(self.scenes) * self.num_parts

    def __iter__(self) -> Iterator[list[Key]]:
        for scene in self.scenes:
            for part in range(self.num_parts):
                yield [(0, scene, scene * self.num_parts + part)]


def build_part_loader(
    parts: SceneParts, collate: Any, seed: int, num_worker: int = 0, timeout: float = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """A loader over the parts of those scenes that are this rank's."""
    return build_loader(parts, PartSampler(parts, rank, world), collate, seed, num_worker, timeout)
