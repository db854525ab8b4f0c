"""3D object recognition in CrossOver's space: linear probes from every modality to every other, and class names alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pointcept3m.datasets.builder import build_dataset
from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines.defaults import write_json
from pointcept3m.engines.loader import EvaluationSampler, build_loader, to_device
from pointcept3m.engines.modalities.recipe import RECIPES
from pointcept3m.engines.retrieval import recognition
from pointcept3m.engines.retrieval.embed import embed_dataset, encoders_of
from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.text import TextEncoder
from pointcept3m.utils import comm
from pointcept3m.utils.files import atomic_write

from .base import TESTERS, Scores, TesterBase, check_writable


@TESTERS.register_module()
class RecognitionTester(TesterBase):
    """Probes the object embeddings of a model of CrossOver: trained on the scenes of `train`, asked about those of data.test.

    Scores are `probe_<source>_<target>` and `name_<target>` (class names through the text head, no label trained on), each as
    accuracy and mean class accuracy; `result/recognition.json` and `.txt` have them beside the majority class and chance.

    Args:
        train: settings of a CrossOverDataset; what is not given is data.test's.
        at_least: classes are the labels with so many training objects.
        text_encoder: of the data's recipe, by default that of the recipe of this name; False leaves class names out.
        prompts: sentences with {label}.
        steps: updates of a probe.

    Raises: ValueError where the text encoder is another than the one that made the data's text features.
    """

    task = "recognition"
    collate = staticmethod(collate_fn)

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        train: Mapping[str, Any] | None = None,
        at_least: int = 5,
        text_encoder: Mapping[str, Any] | bool | None = None,
        prompts: Sequence[str] = recognition.PROMPTS,
        steps: int = 600,
    ):
        self.train_settings, self.at_least, self.prompts, self.steps = dict(train or {}), at_least, tuple(prompts), steps
        self.text_settings = text_encoder
        super().__init__(cfg, model, test_loader, verbose)

    @torch.no_grad()
    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        check_writable(self.save_path / "result")
        encoder = self.text_encoder()
        settings = {**self.test_section, "split": "train", **self.train_settings}
        data = build_dataset(settings)
        train_loader = build_loader(data, EvaluationSampler(len(data), 4, comm.get_rank(), comm.get_world_size()), collate_fn, self.seed)
        train = embed_dataset(self.model, train_loader, self.precision.autocast, check_stop)
        test = embed_dataset(self.model, self.test_loader, self.precision.autocast, check_stop)
        names = recognition.class_names(train, self.at_least)
        with torch.enable_grad():
            results = recognition.probe_objects(train, test, names, seed=self.seed, steps=self.steps)
        if encoder is not None:
            batch = to_device(next(iter(self.test_loader)), self.device)
            results |= recognition.zero_shot(train, test, names, recognition.name_vectors(self.model, batch, encoder, names, self.prompts))
        left = sum(label not in names for label in test.labels)
        self.protocol = (
            f"{len(names)} classes with at least {self.at_least} of {len(train.labels)} training objects; {len(test.labels)} test objects, of which "
            f"{left} have another label and are left out"
        )
        if self.is_main:
            self._write(results, names)
        flat = {f"{'' if pair.startswith('name') else 'probe_'}{pair.replace('->', '_')}": scores for pair, scores in results.items()}
        return {f"{name}_{key}": scores[key] for name, scores in flat.items() for key in ("accuracy", "mean_accuracy", "majority_accuracy")}, {}

    def text_encoder(self) -> TextEncoder | None:
        """The encoder of class names, None where they are left out."""
        if self.text_settings is False:
            return None
        recipe = self.test_section.get("recipe", "pocket")
        settings = self.text_settings or (RECIPES.get(recipe) or {}).get("text")
        if settings is None:
            raise ValueError(f"RecognitionTester: recipe {recipe!r} is none of ours, so text_encoder must say what made its texts; False leaves names out")
        encoder = TEXT_ENCODERS.build(dict(settings))
        made = encoders_of(self.test_loader).get("text")
        if made is not None and made != encoder.name:
            raise ValueError(f"RecognitionTester: the data's text features are of {made!r}, the text encoder is {encoder.name!r}; wanted the same")
        return encoder

    def _write(self, results: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> None:
        table = recognition.text_table(results)
        write_json(self.save_path / "result" / "recognition.json", {"protocol": self.protocol, "classes": list(names), "scores": results})
        words = f"{self.protocol}\n\n{table}"
        atomic_write(self.save_path / "result" / "recognition.txt", lambda stream: stream.write(words.encode()))
        self.logger.info(f"test: recognition, in percent\n{table}")
