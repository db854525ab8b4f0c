"""What the page shows of a scene, without the page: colours of the points for each view, answers, legends."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.engines.open_vocabulary.answers import color_range, file_box
from pointcept3m.engines.open_vocabulary.query import SceneQuery
from pointcept3m.engines.open_vocabulary.regions import Region, regions, threshold_of
from pointcept3m.engines.open_vocabulary.scene_embedding import EnsembleEmbedding, SceneEmbedding
from pointcept3m.engines.open_vocabulary.sources import Sources
from pointcept3m.engines.view import legend
from pointcept3m.engines.visualize.cloud_picture import choose_points, spacing_of
from pointcept3m.engines.visualize.embedding import pca_colors
from pointcept3m.structures.label_sets import LABEL_SETS, LabelSet
from pointcept3m.utils.palette import UNLABELLED, class_colors, palette_for, score_colors

SIMILARITY, RGB, PCA, PREDICTION = "similarity", "colours", "features (PCA)", "prediction"
UNCERTAINTY, NOVELTY = "uncertainty", "unlike every label"
SHOWN = 400_000  # points; a browser turns so many smoothly without a graphics card of its own


@dataclass
class Answer:
    """What was asked and found: name, similarity float32 [N], colour limits, threshold, connected regions (the best
    first), labels that the best one is likest to, milliseconds of the words' embedding and of the query itself.
    """

    name: str
    similarity: NDArray[np.float32]
    limits: tuple[float, float]
    threshold: float
    found: list[Region]
    ranked: list[tuple[str, float]]
    embed_ms: float
    query_ms: float


class SceneView:
    """A scene, the answer to the last query, and the label set that it is named by.

    max_shown: points that are shown at most; of a larger scan a part drawn by `seed`. Queries and regions always look at
    all points.
    """

    def __init__(self, sources: Sources, query: SceneQuery, max_shown: int = SHOWN, seed: int = 0):
        self.sources, self.query = sources, query
        scene = sources.scene
        finite = np.isfinite(scene.coord).all(axis=1)
        rows = np.flatnonzero(finite)
        if len(rows) > max_shown:
            rows = np.sort(np.random.default_rng(seed).permutation(len(rows))[:max_shown])
            rows = np.flatnonzero(finite)[rows]
        self.rows: NDArray[np.int64] = rows
        self.coord = np.ascontiguousarray(scene.coord[rows])
        self.below_ceiling = choose_points(self.coord)
        self.spacing = spacing_of(self.coord)
        self.labels = sources.labels()
        self.answer: Answer | None = None
        self._made: dict[Any, Any] = {}

    @property
    def views(self) -> list[str]:
        """The ways to colour the scene that it has."""
        own = [RGB] if self.sources.scene.color is not None else []
        return [SIMILARITY, *own, PCA, PREDICTION, UNCERTAINTY if self.sigma is not None else NOVELTY]

    @property
    def sigma(self) -> NDArray[np.float32] | None:
        """What the network predicts of its uncertainty at each point, for the teacher that text is asked of; None where it does not."""
        model = self.sources.model
        found = self.sources.embedding.sigma.get(model.head) if model else None
        return found if isinstance(found, np.ndarray) else None

    def label_sets(self) -> dict[str, LabelSet]:
        """The label sets to choose from by their names, that of the weight's classes first."""
        own = self.sources.labels()
        return {own.name: own, **LABEL_SETS}

    def set_labels(self, labels: LabelSet) -> None:
        """Names things by `labels` from now on, the best region of the last answer too."""
        self.labels = labels
        if self.answer is not None and self.answer.found:
            self.answer.ranked = self.query.rank(self._vocabulary(), self.answer.found[0].points)

    def ask(self, name: str, asked: Any, relevancy: bool = False) -> Answer:
        """The answer to a query, which the view `similarity` shows from now on. Raises as `SceneQuery`."""
        import time

        start = time.perf_counter()
        vectors = self.query.vectors(asked)
        embed_ms = 1000 * (time.perf_counter() - start)
        similarity = (self.query.relevancy(vectors) if relevancy else self.query.similarity(vectors))[0]
        self.answer = Answer(name, similarity, color_range(similarity), 0, [], [], embed_ms, 1000 * self.query.seconds)
        self.set_threshold(threshold_of(similarity))
        return self.answer

    def forget(self) -> None:
        """Nothing is asked any more."""
        self.answer = None

    def set_threshold(self, threshold: float) -> None:
        """Finds the regions of the last answer anew, for another threshold."""
        answer = self.answer
        answer.threshold = threshold
        answer.found = regions(self.sources.scene.coord, answer.similarity, threshold)
        answer.ranked = self.query.rank(self._vocabulary(), answer.found[0].points) if answer.found else []

    def colors(self, view: str, grey_below: bool = False) -> NDArray[np.uint8]:
        """uint8 [S, 3] of the points shown. grey_below: points below the answer's threshold in grey, as light as they are."""
        if view == SIMILARITY:
            if self.answer is None:
                return self._own_colors()
            shown = self.answer.similarity[self.rows]
            colors = score_colors(shown, *self.answer.limits)
            if grey_below:
                below = ~(shown >= self.answer.threshold)
                colors[below] = self._greys()[below]
            return colors
        if view == RGB:
            return self._own_colors()
        key = (view, self.labels.name, self.labels.names)
        if key not in self._made:
            self._made[key] = {PCA: self._pca, PREDICTION: self._prediction, UNCERTAINTY: self._uncertainty, NOVELTY: self._novelty}[view]()
        return self._made[key][0]

    def legend(self, view: str) -> str:
        """HTML that says what the colours mean."""
        if view == SIMILARITY:
            if self.answer is None:
                return legend.words("no query yet", "Type what you look for, pick an image, or click a point.")
            note = f"green tick: the threshold; {NO_FEATURES}" if np.isnan(self.answer.similarity).any() else "green tick: the threshold"
            return legend.color_bar(f"similarity to “{self.answer.name}”", *self.answer.limits, note=note, mark=self.answer.threshold)
        if view == RGB:
            return legend.words("colours", "as the scan has them")
        self.colors(view)
        return self._made[(view, self.labels.name, self.labels.names)][1]

    def report(self) -> str:
        """HTML: what the last query found, where, what it is likest to, how long it took."""
        answer = self.answer
        if answer is None:
            return ""
        time_ = f"{answer.query_ms:.1f} ms for {len(answer.similarity):,} points"
        facts = [("time", time_ + (f", and {answer.embed_ms:.0f} ms to embed the query" if answer.embed_ms >= 1 else ""))]
        known = int((~np.isnan(answer.similarity)).sum())
        above = sum(len(region.points) for region in answer.found)
        facts.append(("answer", f"{above:,} points ({100 * above / known:.1f} %) reach {answer.threshold:.3f}, in {len(answer.found)} regions"))
        if not answer.found:
            return legend.table("no region", facts)
        best = answer.found[0]
        facts += [
            ("centre", f"{_place(best.center)} m"),
            ("box", f"{_place(best.low)} to {_place(best.high)}"),
            ("size", f"{' x '.join(f'{value:.2f}' for value in best.size)} m, {len(best.points):,} points"),
            ("similarity", f"{best.mean:.2f} on average, {best.best:.2f} at best"),
        ]
        low, high = file_box(best, self.sources.scene)
        if not (np.allclose(low, best.low, atol=0.005) and np.allclose(high, best.high, atol=0.005)):
            facts.append(("in the file", f"{_place(low)} to {_place(high)}"))
        return legend.table("top region", facts, answer.ranked, f"the region is likest to, of {self.labels.name}:")

    def about(self) -> str:
        """A sentence about the scene."""
        total, shown = len(self.sources.scene), len(self.rows)
        text = f"{total:,} points"
        missing = total - int(np.isfinite(self.sources.scene.coord).all(axis=1).sum())
        if missing:
            text += f", {missing:,} without finite coordinates"
        if shown < total - missing:
            text += f"; {shown:,} are shown, drawn at random (--shown), queries look at all"
        return text + f". Features: {FEATURES[self.sources.embedding.source]}; words by {self.query.encoder.name}."

    # the views

    def _vocabulary(self) -> Any:
        key = ("words", self.labels.name, self.labels.names)
        if key not in self._made:
            self._made[key] = self.query.vocabulary(self.labels)
        return self._made[key]

    def _own_colors(self) -> NDArray[np.uint8]:
        color = self.sources.scene.color
        return np.full((len(self.rows), 3), 150, np.uint8) if color is None else color[self.rows]

    def _greys(self) -> NDArray[np.uint8]:
        light = 110 + 0.5 * (self._own_colors() @ np.array([0.299, 0.587, 0.114]))
        return np.repeat(np.clip(light, 0, 235).astype(np.uint8)[:, None], 3, axis=1)

    def _pca(self) -> tuple[NDArray[np.uint8], str]:
        embedding = self.sources.embedding
        part: SceneEmbedding = embedding.parts[0] if isinstance(embedding, EnsembleEmbedding) else embedding
        place = part.place[self.rows]
        if part.unit.rows.shape[1] < 3:
            return np.full((len(place), 3), 150, np.uint8), legend.words("features", "fewer than three directions; there is nothing to tell apart")
        used, inverse = np.unique(place[place >= 0], return_inverse=True)
        values = part.unit.rows[torch.from_numpy(used)].float()
        colors = np.full((len(place), 3), UNLABELLED, np.uint8)
        colors[place >= 0] = pca_colors([values])[0][inverse]
        return colors, legend.words("features", f"three principal components of the {part.source} features as red, green and blue: like colours, like features")

    def _prediction(self) -> tuple[NDArray[np.uint8], str]:
        label, _ = self._classified()
        palette = palette_for(self.labels.names)
        counts = np.bincount(label[label >= 0], minlength=len(self.labels))
        total = max(1, len(label))
        rows = [(self.labels.names[k], palette[k], f"{100 * counts[k] / total:.1f} %") for k in np.argsort(-counts, kind="stable") if counts[k]]
        if (label < 0).any():
            rows.append((NO_FEATURES, UNLABELLED, f"{100 * (label < 0).mean():.1f} %"))
        return class_colors(label[self.rows], palette), legend.swatches(f"best label of {self.labels.name}", rows)

    def _uncertainty(self) -> tuple[NDArray[np.uint8], str]:
        sigma = self.sources.embedding.sigma[self.sources.model.head]
        embedding = self.sources.embedding
        part = embedding.parts[0] if isinstance(embedding, EnsembleEmbedding) else embedding
        values = part.spread(sigma)
        low, high = (float(value) for value in np.nanquantile(values, [0.02, 0.98]))
        note = "the noise that the network predicts of its teacher's features at each point: bright is doubtful"
        return score_colors(values[self.rows], low, high), legend.color_bar(f"sigma of {self.sources.model.head!r}", low, high, note)

    def _novelty(self) -> tuple[NDArray[np.uint8], str]:
        _, score = self._classified()
        values = 1 - score
        low, high = (float(value) for value in np.nanquantile(values, [0.02, 0.98]))
        learned = {name: value for name, value in self.sources.embedding.sigma.items() if isinstance(value, float)}
        note = f"1 - cosine to the best label of {self.labels.name}: bright is like none of them. "
        if learned:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in learned.items())
            note += f"The network's own uncertainty is one sigma a teacher for all points: {shown}."
        else:
            note += "There is no predicted uncertainty here."
        return score_colors(values[self.rows], low, high), legend.color_bar(NOVELTY, low, high, note)

    def _classified(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        key = ("classified", self.labels.name, self.labels.names)
        if key not in self._made:
            self._made[key] = self.query.classify(self._vocabulary())
        return self._made[key]


FEATURES = {"3d": "the network's", "2d": "fused from images", "2d3d": "the network's and those fused from images"}
NO_FEATURES = "grey: no image shows these points"


def _place(values: NDArray) -> str:
    return f"({', '.join(f'{value:.2f}' for value in values)})"
