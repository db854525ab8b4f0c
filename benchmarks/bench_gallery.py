"""One query in a gallery: exact search against a bare matrix product, and faiss against exact search.

    OMP_NUM_THREADS=2 python benchmarks/bench_gallery.py

Vectors are unit rows of 768 numbers in clusters (a scene near others of its kind), queries are noisy copies of some. Exact: 68,000
scenes, as many as SceneVerse has; "bare" is the product of all vectors with the query, and nothing else. faiss: a million. Runs
take turns; recall is the share of the ten nearest of exact search that faiss finds, over 200 other queries than its build tunes on.
"""

import statistics
import time

import measure
import numpy as np

from pointcept3m.engines.retrieval.index import ExactIndex, build_faiss

DIM, TOP = 768, 20
SPREAD = 0.7  # of a vector around the middle of its cluster, against the middle's length of 1


def clustered(count: int, rng: np.random.Generator, clusters: int | None = None) -> np.ndarray:
    """Unit rows float32 [count, 768] around `clusters` middles."""
    middles = rng.normal(size=(clusters or max(10, count // 50), DIM)).astype(np.float32)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    rows = np.empty((count, DIM), np.float32)
    for start in range(0, count, 50_000):
        stop = min(count, start + 50_000)
        part = middles[rng.integers(len(middles), size=stop - start)]
        part = part + rng.standard_normal(part.shape, dtype=np.float32) * (SPREAD / np.sqrt(DIM))
        rows[start:stop] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def queries_of(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Noisy copies of random rows, unit length."""
    made = rows[rng.choice(len(rows), count, replace=False)] + rng.normal(0, 0.5 / np.sqrt(DIM), (count, DIM)).astype(np.float32)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def exact_search(repeats: int) -> None:
    """Prints the table of 68,000 scenes."""
    rng = np.random.default_rng(0)
    rows = clustered(68_000, rng)
    index, query = ExactIndex(rows), queries_of(rows, 1, rng)[0]
    half = rng.random(len(rows)) < 0.5
    runs = {"bare product": lambda: rows @ query, "exact": lambda: index.search(query, TOP), "exact, half filtered out": lambda: index.search(query, TOP, half)}
    taken = measure.compare(runs, repeats)
    print(f"68,000 scenes, the {TOP} best of one query:\n")
    measure.table(("search", "ms", "against bare"), [(name, f"{ms:.2f}", f"{ms / taken['bare product']:.2f}") for name, ms in taken.items()])


def large_search(count: int) -> None:
    """Prints the table of a large gallery."""
    rows = clustered(count, np.random.default_rng(0))
    large, report = build_faiss(rows)
    exact, others = ExactIndex(rows), queries_of(rows, 200, np.random.default_rng(1))
    found, times = [], {"exact": [], "faiss": []}
    for query in others:
        pairs = {}
        for name, searched in (("exact", exact), ("faiss", large)):
            start = time.perf_counter()
            pairs[name] = set(searched.search(query, 10)[0].tolist())
            times[name].append(1e3 * (time.perf_counter() - start))
        found.append(len(pairs["exact"] & pairs["faiss"]) / 10)
    recall = {"exact": "1", "faiss": f"{np.mean(found):.4f}"}
    lines = [(name, f"{statistics.median(ms):.1f}", f"{np.quantile(ms, 0.95):.1f}", recall[name]) for name, ms in times.items()]
    print(f"{count:,} scenes, the 10 best of one query:\n")
    measure.table(("search", "median ms", "95th percentile", "recall"), lines)
    print(
        f"faiss index: built in {report.seconds:.0f} s, {report.bytes / 1e9:.2f} GB ({report.bytes / count:.0f} bytes a scene), "
        f"{report.probes} cells looked at, recall {report.recall:.4f} on the queries it was tuned on"
    )


def main() -> None:
    """Prints both tables."""
    parser = measure.parser(__doc__, repeats=31)
    parser.add_argument("--large", type=int, default=1_000_000, help="vectors of the faiss gallery (%(default)s)")
    options = parser.parse_args()
    measure.start(options)
    exact_search(options.repeats)
    large_search(options.large)


if __name__ == "__main__":
    main()
