"""Open-vocabulary segmentation: points are labelled by words, from 3D, from 2D, or from both."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointcept3m.datasets.builder import build_dataset
from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines import protocol
from pointcept3m.engines.defaults import runtime_of, write_json
from pointcept3m.engines.facts import memory_words
from pointcept3m.engines.loader import check_labels, to_device
from pointcept3m.engines.open_vocabulary.ensemble import RULES, ensemble_similarity, similarity
from pointcept3m.engines.open_vocabulary.scores import Tally, check_rules
from pointcept3m.engines.open_vocabulary.views import SceneFusion, SceneViews, open_fusion
from pointcept3m.engines.open_vocabulary.vocabulary import build_vocabulary, is_open, labels_of_data
from pointcept3m.structures.label_sets import LabelSet, named_or_free
from pointcept3m.utils import comm
from pointcept3m.utils.files import atomic_write, file_stem
from pointcept3m.utils.logger import Progress, format_seconds
from pointcept3m.utils.registry import near_names

from .base import TESTERS, Scores, TesterBase, check_writable, scene_files
from .parts import build_part_loader

FEATURES = ("3d", "2d", "2d3d", "all")
CHUNK = 65536  # points whose features of both kinds are in memory at once
SHOWN = ("mIoU", "mAcc", "f-mIoU")


@TESTERS.register_module()
class OpenVocabularyTester(TesterBase):
    """Scores of labelling `data.test` by words; the labels need not be those of the training, nor the data set.

    Every score is called after where it comes from, `<kind>_<score>` with kind "3d", "2d", "2d3d_max" or "2d3d_mean" and the
    scores of `open_vocabulary.scores`; `self.protocol` says how each was measured. Raw points are scored. `result/` gets
    `<scene>_pred.npy` (a folder for each kind where there are several; -1 where no camera saw a point) and `confusion.json`.

    Args:
        feature: "3d", the distilled network's text head; "2d", fused features from files, which need no weight; "2d3d", their
            ensemble by `rule`; "all": all of these, both rules, in one pass.
        label_set: a name of `structures.label_sets`, or labels (a list, or with commas between them); by default the data set's own
            classes, or `data.names` where it does not tell them.
        split: a base/novel split of the label set, such as "B15/N4", for mIoU_base, mIoU_novel and hIoU.
        teacher: whose fused features are read, by default the model's text head. feature_root: their folder, by default that of
            `data.test`, or else the scene folders.
        rule, normalize: see `ensemble_similarity`.
        repeats: random views of each scene, whose cosines are added up (CUA-O3D's release: 5); the scores of single views stand
            beside, as `<kind>_mIoU_view_mean` and `_view_std`. augment: false looks at the scene once, as it is.
        absent, unseen: see `class_scores`. without_features: "unseen" takes a scene without files for one that no camera saw.

    Raises: ValueError, TypeError or KeyError for settings that do not exist; what the text encoder raises.
    """

    task = "open-vocabulary"

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        verbose: bool = False,
        feature: str = "3d",
        label_set: str | list[str] | None = None,
        split: str | None = None,
        teacher: str | None = None,
        feature_root: str | None = None,
        rule: str = "max",
        normalize: bool = True,
        repeats: int = 5,
        augment: bool = True,
        absent: str = "skip",
        unseen: str = "miss",
        without_features: str = "raise",
        save_predictions: bool = True,
    ):
        for name, value, known in (("feature", feature, FEATURES), ("rule", rule, RULES), ("without_features", without_features, ("raise", "unseen"))):
            if value not in known:
                raise ValueError(f"OpenVocabularyTester: {name} must be one of {', '.join(known)}, got {value!r}; {near_names(str(value), known)}")
        check_rules(absent, unseen)
        if not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"OpenVocabularyTester: repeats must be at least 1, got {repeats!r}")
        if repeats > 1 and not augment:
            raise ValueError(f"OpenVocabularyTester: augment=False makes {repeats} equal views; give repeats=1 too")
        self.kinds = {"3d": ("3d",), "2d": ("2d",), "2d3d": (f"2d3d_{rule}",), "all": ("3d", "2d", *(f"2d3d_{each}" for each in RULES))}[feature]
        self.views, self.augment, self.normalize = repeats if self.kinds != ("2d",) else 1, augment and self.kinds != ("2d",), normalize
        self.absent, self.unseen, self.without_features = absent, unseen, without_features
        self.save_predictions, self.split = save_predictions, split
        self.asked = None if label_set is None else label_set if isinstance(label_set, LabelSet) else named_or_free(label_set)
        super().__init__(cfg, model, None, verbose)
        self.teacher = teacher or self._text_head()
        self.feature_root = feature_root or self.test_section.get("feature_root")
        self.ignore_index = self.cfg.data.get("ignore_index", -1)
        if self.reads_3d and not (is_open(self.model) and hasattr(self.model, "embed")):
            raise TypeError(f"OpenVocabularyTester: a {type(self.model).__name__} is no distilled model; wanted one with a text head, such as CUA-O3D-v1m1")

    @property
    def labels(self) -> LabelSet:
        return self.vocabulary.labels

    @property
    def reads_3d(self) -> bool:
        return self.kinds != ("2d",)

    @property
    def reads_2d(self) -> bool:
        return self.kinds != ("3d",)

    def _text_head(self) -> str:
        settings = self.cfg.get("model") or {}
        head = settings.get("text_head") or next(iter(settings.get("heads") or ()), None)
        if head is None and self.reads_2d:
            raise ValueError("OpenVocabularyTester: teacher is not set, and the config has no model.heads to tell whose features share the text encoder's space")
        return head

    def build_model(self) -> nn.Module:
        """The model with its weights; an empty one where only 2D features are looked at."""
        return super().build_model() if self.reads_3d else nn.Identity()

    def build_test_loader(self) -> torch.utils.data.DataLoader:
        seed, runtime = self.cfg.seed or 0, runtime_of(self.cfg)
        dataset = build_dataset(self.test_section)
        labels = labels_of_data(dataset, self.asked, self.cfg)
        if self.split is not None:
            labels.base_novel(self.split)
        self.vocabulary = build_vocabulary(self.cfg, labels)
        views = SceneViews(dataset, self.test_section, self.views, self.augment, seed)
        ranks = dict(rank=comm.get_rank(), world=comm.get_world_size())
        return build_part_loader(views, self.collate, seed, runtime.num_worker, self.cfg.worker_timeout, **ranks)

    @torch.no_grad()
    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        if self.save_predictions:
            check_writable(self.save_path / "result")
        self.model.eval()
        tallies = {kind: [self._tally() for _ in range(1 + self._single_views(kind))] for kind in self.kinds}
        finished, meeting, start = 0, comm.Meeting(), time.monotonic()
        with Progress(len(self.test_loader), "testing") as progress:
            scene = None
            for (sample,) in self.test_loader:
                check_stop()
                view, views = sample["view"]
                scene = self._open(sample) if view == 0 else scene
                distilled = self._embed(sample) if self.reads_3d else None
                self._add_view(scene, distilled, sample["inverse"], view, tallies)
                if view == views - 1:
                    self._finish(scene, tallies, finished)
                    finished += 1
                meeting.beat()
                progress.update()
        meeting.wait()
        for each in [tally for kind in tallies.values() for tally in kind]:
            each.counts = comm.all_reduce_sum(each.counts)
        scenes = int(comm.all_reduce_sum(torch.tensor([finished])))
        self.logger.info(f"{memory_words()} so far; {scenes} scenes in {format_seconds(time.monotonic() - start)}")
        return self._scores(tallies)

    def _tally(self) -> Tally:
        return Tally(self.labels, self.split, self.ignore_index)

    def _single_views(self, kind: str) -> int:
        """How many single views are scored beside their sum."""
        return self.views if self.views > 1 and kind != "2d" else 0

    # one scene

    def _open(self, sample: Mapping[str, Any]) -> "_Scene":
        fusion = None
        check_labels(sample["segment"], len(self.labels), self.ignore_index, sample["name"])
        if self.reads_2d:
            dim = self.vocabulary.embedding.shape[1]
            fusion = open_fusion(sample["root"], self.teacher, self.feature_root, sample["coord"], dim, self.without_features)
        sums = {kind: torch.zeros(len(sample["segment"]), len(self.vocabulary.embedding), device=self.device) for kind in self.kinds}
        return _Scene(sample["name"], sample["segment"].to(self.device), fusion, sums)

    def _embed(self, sample: Mapping[str, Any]) -> Tensor:
        """The text head's features [V, D] of a view's voxels. Raises ValueError where they are not finite or of another width."""
        batch = to_device(collate_fn([sample["fragment"]]), self.device)
        with self.precision.autocast():
            feature = self.model.embed(batch)
        feature, name = feature.float(), sample["name"]
        if feature.shape[1] != self.vocabulary.embedding.shape[1]:
            wanted = f"{self.vocabulary.encoder} gives {self.vocabulary.embedding.shape[1]}; is text_encoder that of the model's text head?"
            raise ValueError(f"scene {name}: the model's text head gives {feature.shape[1]} channels, {wanted}")
        if not torch.isfinite(feature).all():
            bad = int((~torch.isfinite(feature)).any(1).sum())
            raise ValueError(f"scene {name}: the model's features are not finite at {bad:,} of {len(feature):,} voxels")
        return feature

    def _add_view(self, scene: "_Scene", distilled: Tensor | None, inverse: Tensor, view: int, tallies: Mapping[str, list[Tally]]) -> None:
        """Adds the cosines of one view to each kind's sums, and scores the view alone where there are several."""
        inverse = inverse.to(self.device)
        for kind in self.kinds:
            if kind == "2d" and view:
                continue  # cameras saw what they saw, however the scene is turned
            for rows, cosine in self._cosines(kind, scene, distilled, inverse):
                scene.sums[kind][rows] += cosine
                if self._single_views(kind):
                    tallies[kind][1 + view].add(self.vocabulary.of_classes(cosine), scene.segment[rows])

    def _cosines(self, kind: str, scene: "_Scene", distilled: Tensor | None, inverse: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(rows, cosines [n, T]) of all raw points, chunk by chunk."""
        text = self.vocabulary.embedding.to(self.device)
        by_voxel = similarity(distilled, text) if kind == "3d" else None
        for start in range(0, len(inverse), CHUNK):
            rows = slice(start, min(start + CHUNK, len(inverse)))
            if by_voxel is not None:
                yield rows, by_voxel[inverse[rows]]
                continue
            fused = torch.from_numpy(scene.fusion.read(rows)).to(self.device)
            if kind == "2d":
                yield rows, similarity(fused, text)
            else:
                seen = torch.from_numpy(scene.fusion.seen[rows]).to(self.device)
                yield rows, ensemble_similarity(fused, distilled[inverse[rows]], text, kind.removeprefix("2d3d_"), self.normalize, seen)

    def _finish(self, scene: "_Scene", tallies: Mapping[str, list[Tally]], finished: int) -> None:
        for kind, sums in scene.sums.items():
            seen = torch.from_numpy(scene.fusion.seen).to(self.device) if kind == "2d" else None
            pred = tallies[kind][0].add(self.vocabulary.of_classes(sums), scene.segment, seen).cpu()
            if self.save_predictions:
                folder = self.save_path / "result" / (kind if len(self.kinds) > 1 else "")
                classes = pred.numpy().astype(np.int32)
                with scene_files(scene.name, "result", folder, finished):
                    path = folder / f"{file_stem(scene.name)}_pred.npy"
                    atomic_write(path, lambda stream, classes=classes: np.save(stream, classes, allow_pickle=False))
        if self.verbose:
            self.logger.info(f"{scene.name}: {len(scene.segment):,} points" + (f", {scene.fusion.seen.mean():.1%} seen" if scene.fusion else ""))

    # scores

    def _scores(self, tallies: Mapping[str, list[Tally]]) -> Scores:
        first = next(iter(tallies.values()))[0]
        counted = protocol.words_counted(str(self.vocabulary), f"{first.labelled:,} raw points", self.absent, first.absent, len(self.labels))
        protocols = {kind: self._words(kind, each[0]) for kind, each in tallies.items()}
        self.protocol = f"{counted}; {'; '.join(protocols.values())}"
        if not first.labelled:
            self.logger.warning("test: data.test has no labels, so nothing is scored")
            return {}, {}
        totals: dict[str, float] = {}
        per_class: dict[str, dict[str, float]] = {name: {} for name in self.labels.names}
        for kind, (whole, *single) in tallies.items():
            scores, iou, acc = whole.scores(self.absent, self.unseen)
            totals |= {f"{kind}_{name}": value for name, value in scores.items()}
            if self.absent == "skip" and whole.absent:
                zero = whole.scores("zero", self.unseen)[0]
                totals |= {f"{kind}_{name}_absent_zero": zero[name] for name in ("mIoU", "mAcc")}
            if single:
                views = torch.tensor([each.scores(self.absent, self.unseen)[0]["mIoU"] for each in single], dtype=torch.float64)
                totals |= {f"{kind}_mIoU_view_mean": float(views.mean()), f"{kind}_mIoU_view_std": float(views.std())}
            for name, one, other in zip(self.labels.names, iou, acc, strict=True):
                per_class[name] |= {f"{kind}_iou": one, f"{kind}_acc": other}
            line = "  ".join(f"{name} {scores[name]:.4f}" for name in SHOWN if name in scores)
            self.logger.info(f"test: {kind}: {line}  ({protocols[kind]})")
        self.logger.info(f"test: {counted}")
        if self.is_main:
            self._record(tallies)
        return totals, per_class

    def _words(self, kind: str, tally: Tally) -> str:
        missed = tally.missed / max(tally.labelled, 1)
        lengths = ""
        if kind == "2d3d_mean":
            lengths = ", each brought to length 1" if self.normalize else ", of the lengths that they happen to have, as in its release"
        return protocol.open_vocabulary_kind(kind, self.views, self.augment, self.unseen, missed) + lengths

    def _record(self, tallies: Mapping[str, list[Tally]]) -> None:
        """`result/confusion.json`: the counts of each kind; `confusion` is that of the first."""
        section = self.cfg.data.get("test") or {}
        split = section.get("split", "test")
        records = {kind: each[0].record() for kind, each in tallies.items()}
        content = {
            "dataset": section.get("type"),
            "split": split if isinstance(split, str) else "+".join(split),
            "label_set": self.labels.name,
            "names": list(self.labels.names),
            "protocol": self.protocol,
            "kind": self.kinds[0],
            **records[self.kinds[0]],
            "kinds": records,
        }
        write_json(self.save_path / "result" / "confusion.json", content)


class _Scene:
    """What is kept of a scene between its views: labels [N], fused features, sums of cosines [N, T] of each kind."""

    def __init__(self, name: str, segment: Tensor, fusion: SceneFusion | None, sums: dict[str, Tensor]):
        self.name, self.segment, self.fusion, self.sums = name, segment, fusion, sums
