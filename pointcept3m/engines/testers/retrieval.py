"""Retrieval of objects and scenes across modalities: CrossOver's tables of one model, beside rows of others."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines.defaults import write_json
from pointcept3m.engines.retrieval import tables
from pointcept3m.engines.retrieval.embed import embed_dataset, embed_frames, encoders_of, select
from pointcept3m.engines.retrieval.evaluation import METRICS, Results, evaluate, flatten
from pointcept3m.engines.retrieval.metrics import image_localisation
from pointcept3m.engines.retrieval.rows import read_row
from pointcept3m.structures.modality_features import SCENE_MODALITIES
from pointcept3m.structures.scene_embeddings import SceneEmbeddings, write_embeddings
from pointcept3m.utils import comm
from pointcept3m.utils.files import atomic_write
from pointcept3m.utils.registry import near_names

from .base import TESTERS, Scores, TesterBase, check_writable


@TESTERS.register_module()
class RetrievalTester(TesterBase):
    """Embeds `data.test` and scores retrieval between all pairs of its modalities (Sec. 4).

    Writes `embeddings/<name>.safetensors` (SceneEmbeddings, which a gallery is made of), and all metrics with chance levels and
    counts as `result/retrieval.json`, `.md` and `.txt`. Several data sets in data.test are scored each by itself.

    Args:
        metrics: names of `retrieval.evaluation.METRICS`. settings: arguments of single ones, e.g. instance=dict(average="micro").
        fused: also F_S, the fusion of a scene's object modalities, as query and gallery.
        frames: single images against 50 scenes (`image_localisation`), in each modality of scenes.
        rows: name -> file of another method's embeddings of the same scenes, see `retrieval.rows.read_row`.
        label: this model's name in the tables. name: of the embeddings' file, by default the split's.

    Raises: KeyError for an unknown metric, before anything is embedded; what `read_row` and `embed_dataset` raise.
    """

    task = "retrieval"
    collate = staticmethod(collate_fn)

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        metrics: Sequence[str] = METRICS,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        fused: bool = False,
        frames: bool = False,
        rows: Mapping[str, str] | None = None,
        label: str = "ours",
        name: str | None = None,
    ):
        self.metrics, self.settings, self.fused, self.frames = tuple(metrics), dict(settings or {}), fused, frames
        for each in (*self.metrics, *self.settings):
            if each not in METRICS:
                raise KeyError(f"RetrievalTester: no metric {each!r}; {near_names(each, METRICS)}")
        self.rows, self.label, self.name = dict(rows or {}), label, name
        for row, path in self.rows.items():
            if not Path(path).exists():
                raise FileNotFoundError(f"RetrievalTester: rows[{row!r}]: no file or folder {path}")
        super().__init__(cfg, model, test_loader, verbose)

    def load_model(self) -> nn.Module:
        """As every tester, but no key is renamed: a CheckpointLoader that starts a training from the weights of the stage before puts
        them under another name, and what is tested is the training's own."""
        hooks = self.cfg.hooks
        self.cfg.hooks = [{key: value for key, value in hook.items() if key not in ("keywords", "replacement")} for hook in hooks]
        try:
            return super().load_model()
        finally:
            self.cfg.hooks = hooks

    @torch.no_grad()
    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        check_writable(self.save_path / "embeddings")
        frames: list[tuple[np.ndarray, list[str]]] = []

        def embed_views(batch: Mapping[str, Any]) -> None:
            vectors, scene = embed_frames(self.model, batch)
            if len(vectors):
                frames.append((vectors, [(batch["dataset"][row], batch["split"][row], batch["name"][row]) for row in scene]))

        embeddings = embed_dataset(self.model, self.test_loader, self.precision.autocast, check_stop, embed_views if self.frames else None)
        embeddings.details = {"encoders": encoders_of(self.test_loader), "weight": str(self.cfg.weight or ""), "task": "CrossOver"}
        views = [pair for share in comm.all_gather(frames) for pair in share]
        if not self.is_main:
            return {}, {}
        path = self.save_path / "embeddings" / f"{self.name or self._split()}.safetensors"
        write_embeddings(path, embeddings)
        self.logger.info(f"test: embeddings of {len(embeddings)} scenes and {len(embeddings.object_id)} objects are in {path}")
        methods = {row: read_row(file, embeddings) for row, file in self.rows.items()} | {self.label: embeddings}
        return self._score(methods, views)

    def _split(self) -> str:
        split = self.test_section.get("split", "test")
        return split if isinstance(split, str) else "+".join(split)

    def _score(self, methods: Mapping[str, SceneEmbeddings], views: list) -> Scores:
        """Every method on every data set; the scores returned are this model's."""
        ours = methods[self.label]
        datasets = sorted(set(ours.datasets))
        results: dict[str, dict[str, Results]] = {}
        for dataset in datasets:
            results[dataset] = {}
            for method, whole in methods.items():
                part = select(whole, [row for row, name in enumerate(whole.datasets) if name == dataset])
                scored = evaluate(part, self.metrics, self.fused, **self.settings)
                if method == self.label and views:
                    scored["localisation"] = self._localise(part, dataset, views)
                results[dataset][method] = scored
        self.protocol = self._words(ours)
        self._write(results)
        flat = {name: flatten(each[self.label]) for name, each in results.items()}
        if len(datasets) == 1:
            return flat[datasets[0]], {}
        return {f"{dataset}_{name}": value for dataset, scores in flat.items() for name, value in scores.items()}, {}

    def _localise(self, part: SceneEmbeddings, dataset: str, views: list) -> dict[str, dict[str, float]]:
        number = {key: row for row, key in enumerate(zip(part.datasets, part.splits, part.names, strict=True))}
        chosen = [(vectors[row], number[key]) for vectors, keys in views for row, key in enumerate(keys) if key[0] == dataset]
        if not chosen:
            return {}
        chosen.sort(key=lambda view: view[1])  # the order of the scenes, whatever process looked at them
        vectors, scene = np.stack([vector for vector, _ in chosen]), np.array([row for _, row in chosen])
        targets = [name for name in SCENE_MODALITIES if name != "image" and name in part.scenes and part.scene_known[name].any()]
        return {f"image->{target}": image_localisation(vectors, scene, part, target, seed=self.cfg.seed or 0) for target in targets}

    def _words(self, embeddings: SceneEmbeddings) -> str:
        known = ", ".join(f"{int(mask.sum())} {name}" for name, mask in embeddings.scene_known.items())
        return (
            f"{len(embeddings)} scenes ({known}) with {len(embeddings.object_id)} objects; scenes that lack a modality are neither queries nor answers "
            "of its pairs; equal similarities count by chance; means over pairs are over two different modalities"
        )

    def _write(self, results: Mapping[str, Mapping[str, Results]]) -> None:
        folder = self.save_path / "result"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "retrieval.json", {"protocol": self.protocol, "methods": [*self.rows, self.label], "datasets": results})
        titled = {dataset: f"## {dataset or 'scenes'}\n\n" if len(results) > 1 else "" for dataset in results}
        document = f"{self.protocol}.\n\n" + "\n".join(titled[name] + tables.markdown(methods) for name, methods in results.items())
        words = "\n".join((f"{name}\n\n" if len(results) > 1 else "") + tables.text(methods) for name, methods in results.items())
        for file, content in (("retrieval.md", document), ("retrieval.txt", words)):
            atomic_write(folder / file, lambda stream, content=content: stream.write(content.encode()))
        for name, methods in results.items():
            self.logger.info(f"test: means over pairs of modalities of {name or 'data.test'}, in percent:\n{tables.summary(methods)}")
        self.logger.info(f"test: every pair is in {folder / 'retrieval.txt'}, .md and .json")
