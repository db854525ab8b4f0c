"""Nearest neighbours: exact against a loop, faiss against exact, damage, a faiss that is not there."""

import builtins

import numpy as np
import pytest

from pointcept3m.engines.retrieval import index as module
from pointcept3m.engines.retrieval.index import ExactIndex, best, build_faiss, read_faiss
from tests.engines.embeddings import unit


def clustered(count, dim=32, clusters=60, seed=0):
    rng = np.random.default_rng(seed)
    return unit(unit(rng.normal(size=(clusters, dim)))[rng.integers(clusters, size=count)] + 0.1 * rng.normal(size=(count, dim)))


def by_loop(vectors, query, count, allowed):
    scored = sorted((-float(np.dot(vectors[row].astype(np.float64), query)), row) for row in range(len(vectors)) if allowed[row])
    return [row for _, row in scored[:count]]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.0])
def test_exact_search_is_a_sorted_loop(share):
    rng = np.random.default_rng(1)
    vectors = unit(rng.normal(size=(300, 8)))
    allowed = rng.random(300) < share
    query = unit(rng.normal(size=(1, 8)))[0]
    for count in (1, 7, 299, 1000):
        rows, scores = ExactIndex(vectors).search(query, count, allowed)
        assert rows.tolist() == by_loop(vectors, query, count, allowed)
        np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)
        assert ExactIndex(vectors, allowed).search(query, count)[0].tolist() == rows.tolist()


def test_equal_scores_come_in_the_order_of_rows():
    rows, scores = best(np.array([0.5, 0.9, 0.5, 0.5, 0.9], np.float32), 3)
    assert rows.tolist() == [1, 4, 0] and scores.tolist() == pytest.approx([0.9, 0.9, 0.5])
    assert len(best(np.zeros(0, np.float32), 3)[0]) == 0


def test_faiss_finds_what_exact_search_finds(tmp_path):
    pytest.importorskip("faiss", reason="the index of large galleries: pip install faiss-cpu")
    vectors, queries = np.split(clustered(6050), [6000])
    known = np.random.default_rng(2).random(6000) < 0.8
    index, report = build_faiss(np.where(known[:, None], vectors, 0), known, seed=3)
    assert len(index) == known.sum() and report.recall >= 0.995 and 1 <= report.probes <= report.cells and f"{report.recall:.2%}" in str(report)
    exact, hits = ExactIndex(vectors, known), 0
    for query in queries:
        rows, scores = index.search(query, 10)
        assert known[rows].all() and (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)  # the exact cosines, not those of a byte a number
        hits += len(set(rows.tolist()) & set(exact.search(query, 10)[0].tolist()))
    assert hits / 500 > 0.95  # of vectors that it was not tuned on
    size = index.save(tmp_path / "a.safetensors", {"of": "x"})
    assert abs(size - (tmp_path / "a.safetensors").stat().st_size) < 2000 and size < vectors.nbytes / 2
    again = read_faiss(tmp_path / "a.safetensors", vectors, {"of": "x"})
    for query in queries[:5]:
        assert again.search(query, 10)[0].tolist() == index.search(query, 10)[0].tolist()


def test_faiss_keeps_to_a_filter(monkeypatch):
    pytest.importorskip("faiss", reason="the index of large galleries: pip install faiss-cpu")
    vectors = clustered(4000)
    index, _ = build_faiss(vectors)
    index.index.nprobe = 10_000  # every cell: what is left to err is the filter
    allowed = np.random.default_rng(0).random(4000) < 0.4
    exact = ExactIndex(vectors)
    for few in (module.SELECTED_EXACTLY, 0):  # row by row, and by faiss's selector
        monkeypatch.setattr(module, "SELECTED_EXACTLY", few)
        for query in clustered(10, seed=4):
            assert index.search(query, 8, allowed)[0].tolist() == exact.search(query, 8, allowed)[0].tolist()


def test_an_index_of_others_or_damaged_is_refused(tmp_path):
    pytest.importorskip("faiss", reason="the index of large galleries: pip install faiss-cpu")
    vectors = clustered(500)
    path = tmp_path / "a.safetensors"
    build_faiss(vectors)[0].save(path, {"of": "these"})
    with pytest.raises(ValueError, match="of other vectors.*build it again"):
        read_faiss(path, vectors, {"of": "others"})
    with pytest.raises(ValueError, match="of other vectors"):
        read_faiss(path, vectors[:-1], {"of": "these"})
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_faiss(path, vectors, {"of": "these"})


def test_few_vectors_and_none():
    pytest.importorskip("faiss", reason="the index of large galleries: pip install faiss-cpu")
    vectors = clustered(3)
    index, report = build_faiss(vectors)
    assert report.recall == 1 and index.search(vectors[1], 10)[0][0] == 1 and len(index.search(vectors[1], 10)[0]) == 3
    with pytest.raises(ValueError, match="at least one vector"):
        build_faiss(vectors, np.zeros(3, bool))


def test_without_faiss_one_sentence_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'pointcept3m\[search\]'.*exact needs nothing"):
        build_faiss(clustered(10))
