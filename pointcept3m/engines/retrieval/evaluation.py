"""All of CrossOver's metrics for all pairs of modalities, and the few numbers that stand for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pointcept3m.structures.modality_features import OBJECT_MODALITIES, SCENE_MODALITIES
from pointcept3m.structures.scene_embeddings import FUSED, SceneEmbeddings
from pointcept3m.utils.registry import near_names

from .metrics import OBJECT_METRICS, SCENE_METRICS, Scores

METRICS = (*OBJECT_METRICS, *SCENE_METRICS)
WITHIN = ("temporal_instance", "category", "temporal")  # a modality against itself asks something in these alone
SCORES = ("top", "R@", "same", "diff", "recall", "static_recall", "moved_recall")
FIRST_SCORE = {"temporal_instance": "recall"}  # where it is not top1
Results = dict[str, dict[str, Scores]]  # metric -> "image->point" -> scores


def pairs_of(metric: str, embeddings: SceneEmbeddings, fused: bool = False) -> list[tuple[str, str]]:
    """Ordered pairs of the modalities that are there, (query, target). fused: F_S among the scenes' too."""
    names, there = (OBJECT_MODALITIES, embeddings.object_known) if metric in OBJECT_METRICS else (SCENE_MODALITIES, embeddings.scene_known)
    if fused and metric in SCENE_METRICS:
        names = (*names, FUSED)
    known = [name for name in names if name in there and there[name].any()]
    return [(query, target) for query in known for target in known if query != target or metric in WITHIN]


def evaluate(embeddings: SceneEmbeddings, metrics: Sequence[str] = METRICS, fused: bool = False, **settings: Mapping[str, Any]) -> Results:
    """Every metric for every ordered pair of modalities that has a query.

    settings: arguments of single metrics, e.g. `instance=dict(average="micro")`.
    Raises: KeyError for an unknown metric.
    """
    for name in (*metrics, *settings):
        if name not in METRICS:
            raise KeyError(f"no metric {name!r}; {near_names(name, METRICS)}")
    results: Results = {}
    for metric in metrics:
        function = (OBJECT_METRICS | SCENE_METRICS)[metric]
        scored = {f"{query}->{target}": function(embeddings, query, target, **settings.get(metric, {})) for query, target in pairs_of(metric, embeddings, fused)}
        results[metric] = {pair: scores for pair, scores in scored.items() if scores["queries"]}
    return {metric: pairs for metric, pairs in results.items() if pairs}


def flatten(results: Results) -> dict[str, float]:
    """The numbers that stand for the tables, for metrics.json and curves.

    `scene_top1`: the mean over the pairs of two different modalities (F_S aside), of every score, with chance_top1 or chance_recall;
    `scene_image_point_top1`: the metric's first score of one pair. All else is in the tables.
    """
    flat: dict[str, float] = {}
    for metric, pairs in results.items():
        across = [scores for pair, scores in pairs.items() if len(set(pair.split("->"))) == 2 and FUSED not in pair.split("->")]
        for name in dict.fromkeys(name for scores in across for name in scores):
            if name.startswith(SCORES) or name in ("chance_top1", "chance_recall"):
                flat[f"{metric}_{name}"] = float(np.mean([scores[name] for scores in across if name in scores]))
    for metric, pairs in results.items():
        name = FIRST_SCORE.get(metric, "top1")
        flat |= {f"{metric}_{pair.replace('->', '_')}_{name}": scores[name] for pair, scores in pairs.items()}
    return flat
