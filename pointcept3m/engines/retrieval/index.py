"""Nearest neighbours among unit vectors: exactly, or by faiss with its recall measured."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import replacing

TARGET_RECALL = 0.995  # of the ten nearest; what a faiss index is tuned to
TRIALS = 200  # queries that the recall is measured with
LISTS_PER_SQRT = 4  # cells of an inverted file for the square root of the number of vectors


class Index(Protocol):
    """`search(query, count, allowed)` -> (rows int64 [k], cosines float32 [k]), best first, k at most `count`."""

    def __len__(self) -> int: ...

    def search(self, query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None) -> tuple[NDArray, NDArray]: ...


class ExactIndex:
    """All vectors against the query: one matrix product and a partial sort. Rows may be a memory map."""

    def __init__(self, vectors: NDArray[np.float32]):
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None) -> tuple[NDArray, NDArray]:
        """The `count` rows with the largest cosine to query [D] among those `allowed` (bool [N]); equal ones by number."""
        scores = self.vectors @ np.asarray(query, dtype=np.float32)
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf).astype(np.float32)
            count = min(count, int(np.count_nonzero(allowed)))
        return best(scores, count)


def best(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(rows, scores) of the `count` largest scores [N], the largest first, equal ones in the order of their rows."""
    count = min(count, len(scores))
    if count <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    if count < len(scores):
        border = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows = np.flatnonzero(scores >= border)
    else:
        rows = np.arange(len(scores))
    order = np.lexsort((rows, -scores[rows]))[:count]
    return rows[order], scores[rows[order]]


@dataclass
class BuildReport:
    """How an index was made: seconds, bytes on disk, recall of the ten nearest against exact search, cells looked at (nprobe)."""

    seconds: float
    bytes: int
    recall: float
    probes: int


class FaissIndex:
    """An inverted file (IVF) of faiss: the vectors of the cells nearest to the query are compared, not all."""

    def __init__(self, index: Any, vectors: NDArray[np.float32]):
        self.index, self.vectors = index, vectors

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None) -> tuple[NDArray, NDArray]:
        """As `ExactIndex.search`, with the recall that was measured when it was built. A filter that leaves few is searched exactly."""
        faiss = import_faiss()
        if allowed is not None:
            chosen = np.flatnonzero(allowed)
            if len(chosen) <= max(10_000, len(self) // 20):
                rows, scores = best(self.vectors[chosen] @ query, count)
                return chosen[rows], scores
            selector = faiss.IDSelectorBatch(chosen)
            options = faiss.SearchParametersIVF(sel=selector, nprobe=self.index.nprobe)
            scores, rows = self.index.search(query[None], count, params=options)
        else:
            scores, rows = self.index.search(np.ascontiguousarray(query[None], np.float32), count)
        found = rows[0] >= 0
        return rows[0][found].astype(np.int64), scores[0][found]

    def save(self, path: str | Path) -> None:
        """Writes the index, whole or not at all; its vectors lie elsewhere."""
        with replacing(path) as part:
            import_faiss().write_index(self.index, str(part))


def build_faiss(vectors: NDArray[np.float32], target: float = TARGET_RECALL, seed: int = 0) -> tuple[FaissIndex, BuildReport]:
    """An inverted file over unit rows [N, D] that finds at least `target` of the ten nearest of held-out queries.

    Its cells are clusters; how many a search looks at is raised until the recall of `TRIALS` noisy copies of rows is reached.
    Raises: ImportError without faiss.
    """
    faiss = import_faiss()
    start = time.monotonic()
    count, dim = vectors.shape
    cells = int(np.clip(LISTS_PER_SQRT * np.sqrt(count), 1, max(1, count // 40)))
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFFlat(quantizer, dim, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid = seed, 8, 64
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(count, min(count, 64 * cells), replace=False))
    index.train(np.ascontiguousarray(vectors[sample], np.float32))
    for first in range(0, count, 65_536):
        index.add(np.ascontiguousarray(vectors[first : first + 65_536], np.float32))
    seconds = time.monotonic() - start
    queries = vectors[rng.choice(count, min(TRIALS, count), replace=False)].astype(np.float32)
    queries = queries + rng.normal(0, 0.5 / np.sqrt(dim), queries.shape).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = ExactIndex(vectors)
    wanted = [set(exact.search(query, 10)[0].tolist()) for query in queries]
    index.nprobe, recall = 1, 0.0
    while True:
        _, found = index.search(queries, 10)
        recall = float(np.mean([len(want.intersection(rows.tolist())) / len(want) for want, rows in zip(wanted, found, strict=True)]))
        if recall >= target or index.nprobe >= cells:
            break
        index.nprobe = min(cells, 2 * index.nprobe)
    size = int(faiss.serialize_index(index).nbytes)
    return FaissIndex(index, vectors), BuildReport(seconds, size, recall, int(index.nprobe))


def read_faiss(path: str | Path, vectors: NDArray[np.float32]) -> FaissIndex:
    """The index in a file over its vectors. Raises ImportError; ValueError where the file is damaged or of other vectors."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: not a readable faiss index ({str(error).splitlines()[0]}); build the gallery's index again") from error
    if index.ntotal != len(vectors) or index.d != vectors.shape[1]:
        raise ValueError(f"{path}: an index of {index.ntotal} vectors of {index.d}, the gallery has {len(vectors)} of {vectors.shape[1]}; build it again")
    return FaissIndex(index, vectors)


def import_faiss() -> Any:
    """The package faiss. Raises ImportError that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("an index for large galleries needs faiss: pip install faiss-cpu; the exact index needs nothing") from error
    return faiss
