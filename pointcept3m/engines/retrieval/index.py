"""Nearest neighbours among unit vectors: exactly, or by faiss with its recall measured."""

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.checked_file import Kind, open_checked, write_checked

KIND = Kind("gallery_index", version=1, again="build it again: pointcept3m embed --gallery FOLDER --index faiss")
TARGET_RECALL = 0.997  # of the ten nearest; what a faiss index is tuned to
TRIALS = 200  # queries that the recall is measured with
CELLS_PER_SQRT = 4  # cells of an inverted file for the square root of the number of vectors
PER_CELL = 48  # vectors a cell that its clusters are found with
SHORTLIST = 64  # candidates that faiss names at least, of which the exact cosines then choose
SELECTED_EXACTLY = 20_000  # a filter that leaves no more is searched row by row


class ExactIndex:
    """All rows [N, D] against the query: one matrix product and a partial sort. Rows may be a memory map.

    known: bool [N], rows that may be found at all; by default every one.
    """

    def __init__(self, vectors: NDArray[np.float32], known: NDArray[np.bool_] | None = None):
        self.vectors, self.known = vectors, None if known is None or known.all() else known

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None) -> tuple[NDArray, NDArray]:
        """The `count` rows with the largest cosine to query [D] among those `allowed` (bool [N]; None: all known); equal ones by number."""
        query = np.ascontiguousarray(query, dtype=np.float32)
        allowed = self.known if allowed is None else allowed
        if allowed is None:
            return best(self.vectors @ query, count)
        number = int(np.count_nonzero(allowed))
        if number * 8 < len(self):  # gathering an eighth costs less than multiplying all
            chosen = np.flatnonzero(allowed)
            rows, scores = best(self.vectors[chosen] @ query, count)
            return chosen[rows], scores
        chosen = np.flatnonzero(allowed)
        rows, scores = best((self.vectors @ query)[chosen], count)
        return chosen[rows], scores


def best(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(rows, scores) of the `count` largest scores [N], the largest first, equal ones in the order of their rows."""
    count = min(count, len(scores))
    if count <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    if count < len(scores):
        border = scores[np.argpartition(scores, len(scores) - count)[len(scores) - count]]
        rows = np.flatnonzero(scores >= border)
    else:
        rows = np.arange(len(scores))
    order = np.lexsort((rows, -scores[rows]))[:count]
    return rows[order], scores[rows[order]]


@dataclass
class BuildReport:
    """How an index was made: seconds of building (not of measuring), bytes, recall of the ten nearest against exact search over
    `trials` queries, and of how many `cells` a search looks at `probes`."""

    seconds: float
    bytes: int
    recall: float
    trials: int
    probes: int
    cells: int

    def __str__(self) -> str:
        return (
            f"index built in {self.seconds:.1f} s, {self.bytes / 1e6:.1f} MB; of the ten nearest it finds {self.recall:.2%} "
            f"({self.trials} queries, {self.probes} of {self.cells} cells looked at)"
        )


class FaissIndex:
    """An inverted file (IVF) of faiss: of the cells nearest to the query it compares the vectors, kept in a byte a number; the
    best of these are compared exactly, so that cosines are those of exact search.

    index: of faiss, whose ids are rows of vectors [N, D].
    """

    def __init__(self, index: Any, vectors: NDArray[np.float32]):
        self.index, self.vectors = index, vectors

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None) -> tuple[NDArray, NDArray]:
        """As `ExactIndex.search`, with the recall that was measured when it was built. A filter that leaves few is searched exactly."""
        faiss = import_faiss()
        query = np.ascontiguousarray(query, dtype=np.float32)
        options = {}
        if allowed is not None:
            chosen = np.flatnonzero(allowed)
            if len(chosen) <= max(SELECTED_EXACTLY, len(self) // 20):
                rows, scores = best(self.vectors[chosen] @ query, count)
                return chosen[rows], scores
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            # as many rows that pass are looked at as without a filter
            probes = min(self.index.nlist, -(-self.index.nprobe * len(self) // len(chosen)))
            options = {"params": faiss.SearchParametersIVF(sel=selector, nprobe=probes)}
        _, found = self.index.search(query[None], min(len(self), max(SHORTLIST, 4 * count)), **options)
        rows = np.sort(found[0][found[0] >= 0])
        order, scores = best(self.vectors[rows] @ query, count)
        return rows[order], scores

    def save(self, path: str | Path, header: Mapping[str, Any]) -> int:
        """Writes the index, whole or not at all, with a header of what it is of; the number of bytes. Its vectors lie elsewhere."""
        content = import_faiss().serialize_index(self.index)
        write_checked(path, {"index": content}, KIND, {**header, "shape": list(self.vectors.shape)})
        return len(content)


def build_faiss(
    vectors: NDArray[np.float32],
    known: NDArray[np.bool_] | None = None,
    queries: NDArray[np.float32] | None = None,
    target: float = TARGET_RECALL,
    seed: int = 0,
) -> tuple[FaissIndex, BuildReport]:
    """An inverted file over the known rows of unit vectors [N, D] that finds at least `target` of the ten nearest.

    How many cells a search looks at is raised until queries find that share of what exact search finds. queries: unit rows
    [Q, D] like those that will be asked; by default rows with noise, of cosine 0.9 with what they were.
    Raises: ImportError without faiss; ValueError where no row is known.
    """
    faiss = import_faiss()
    rows = np.arange(len(vectors)) if known is None else np.flatnonzero(known)
    if not len(rows):
        raise ValueError("an index needs at least one vector")
    start = time.monotonic()
    count, dim = len(rows), vectors.shape[1]
    cells = int(np.clip(CELLS_PER_SQRT * np.sqrt(count), 1, max(1, count // 40)))
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = seed + 1, 6, PER_CELL, 1
    index.cp.spherical = True
    rng = np.random.default_rng(seed)
    sample = rows[np.sort(rng.choice(count, min(count, PER_CELL * cells), replace=False))]
    index.train(np.ascontiguousarray(vectors[sample], np.float32))
    for first in range(0, count, 65_536):
        some = rows[first : first + 65_536]
        index.add_with_ids(np.ascontiguousarray(vectors[some], np.float32), some)
    seconds = time.monotonic() - start
    found = FaissIndex(index, vectors)
    if queries is None:
        queries = vectors[rows[rng.choice(count, min(TRIALS, count), replace=False)]].astype(np.float32)
        queries = queries + rng.normal(0, 0.5 / np.sqrt(dim), queries.shape).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    wanted = _nearest_of_many(vectors, rows, queries, 10)
    recall = _tune(found, queries, wanted, target, cells)
    size = int(index.code_size + 8) * count + cells * dim * 4
    return found, BuildReport(seconds, size, recall, len(queries), int(index.nprobe), cells)


def _tune(found: FaissIndex, queries: NDArray[np.float32], wanted: NDArray[np.int64], target: float, cells: int) -> float:
    """Sets how many cells a search looks at: about the fewest with which the recall of `wanted` [Q, k] reaches `target`. The recall."""

    def recall(probes: int) -> float:
        found.index.nprobe = probes
        _, near = found.index.search(queries, min(len(found), SHORTLIST))
        hits = 0
        for query, rows, want in zip(queries, near, wanted, strict=True):
            rows = rows[rows >= 0]
            hits += len(np.intersect1d(rows[best(found.vectors[rows] @ query, len(want))[0]], want))
        return hits / wanted.size

    few, enough = 0, 1
    reached = recall(enough)
    while reached < target and enough < cells:
        few, enough = enough, min(cells, 2 * enough)
        reached = recall(enough)
    while enough - few > max(1, enough // 8):
        middle = (few + enough) // 2
        between = recall(middle)
        few, enough, reached = (few, middle, between) if between >= target else (middle, enough, reached)
    found.index.nprobe = enough
    return reached


def _nearest_of_many(vectors: NDArray[np.float32], rows: NDArray[np.int64], queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """[Q, min(count, rows)] the nearest of `rows` to each query, in blocks: a matrix product is faster than many with one vector."""
    scores, nearest = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for first in range(0, len(rows), 32_768):
        some = rows[first : first + 32_768]
        scores = np.concatenate([scores, queries @ vectors[some].T], axis=1)
        nearest = np.concatenate([nearest, np.broadcast_to(some, (len(queries), len(some)))], axis=1)
        keep = np.argsort(-scores, axis=1, kind="stable")[:, :count] if scores.shape[1] <= 2 * count else np.argpartition(-scores, count - 1, axis=1)[:, :count]
        scores, nearest = np.take_along_axis(scores, keep, 1), np.take_along_axis(nearest, keep, 1)
    return nearest


def read_faiss(path: str | Path, vectors: NDArray[np.float32], of: Mapping[str, Any]) -> FaissIndex:
    """The index in a file over its vectors. of: what the header must say it is of.

    Raises: ImportError; ValueError where the file is damaged or of other vectors.
    """
    faiss = import_faiss()
    arrays, header = open_checked(path, KIND)
    if header.get("shape") != list(vectors.shape) or any(header.get(key) != value for key, value in of.items()):
        raise ValueError(f"{path}: an index of other vectors than the gallery's (the gallery was changed since); {KIND.again}")
    try:
        index = faiss.deserialize_index(np.array(arrays["index"]))
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: not readable by faiss {faiss.__version__} ({str(error).splitlines()[0]}); {KIND.again}") from error
    return FaissIndex(index, vectors)


def has_faiss() -> bool:
    """Whether the package faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def import_faiss() -> Any:
    """The package faiss. Raises ImportError that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"an index for large galleries needs faiss ({error}): pip install 'pointcept3m[search]'; --index exact needs nothing") from error
    return faiss
