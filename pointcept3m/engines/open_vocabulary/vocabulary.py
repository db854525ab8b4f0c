"""From words to what a distilled model is asked: label set, prompt, text encoder, embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.text import embed_labels
from pointcept3m.models.text.base import PROMPT
from pointcept3m.structures.label_sets import LABEL_SETS, LabelSet, named_or_free
from pointcept3m.utils.registry import near_names


@dataclass(frozen=True)
class Vocabulary:
    """K classes as T texts in the space of a text encoder.

    embedding: float32 [T, D], of length 1. encoder: its name. prompt: the sentence that each word was put into.
    """

    labels: LabelSet
    embedding: Tensor
    encoder: str
    prompt: str

    @property
    def mapping(self) -> Tensor:
        """int64 [T]: the class of each text."""
        return torch.from_numpy(self.labels.mapping)

    def of_classes(self, similarity: Tensor) -> Tensor:
        """[n, K] of similarities [n, T] to texts: a class is as near as the nearest of its texts."""
        number = len(self.labels)
        if similarity.shape[1] == number:
            return similarity
        result = similarity.new_full((len(similarity), number), -torch.inf)
        return result.scatter_reduce(1, self.mapping.to(similarity.device).expand_as(similarity), similarity, "amax")

    def __str__(self) -> str:
        texts = len(self.embedding)
        number = f"{len(self.labels)} classes" + ("" if texts == len(self.labels) else f" as {texts} texts")
        return f"{number} ({self.labels.name}) said as {self.prompt!r} to {self.encoder}"


def configured_labels(cfg: Mapping[str, Any]) -> LabelSet:
    """The label set whose names are `cfg.data.names`, or else those names as they are. Raises KeyError where there are none."""
    names = tuple((cfg.get("data") or {}).get("names") or ())
    if not names:
        raise KeyError("config: data.names is missing, the classes to ask for; name a label set, or give labels")
    return next((labels for labels in LABEL_SETS.values() if labels.names == names), LabelSet("data.names", names))


def build_vocabulary(cfg: Mapping[str, Any], labels: LabelSet | str | Sequence[str] | None = None) -> Vocabulary:
    """`labels` in the space of the config's `text_encoder`, each word put into its `prompt`.

    labels: a label set, its name, or labels (also with commas between them); by default the names of the config.
    Raises: KeyError where the config has no text_encoder; ValueError, TypeError or KeyError for labels that are none; what the
        encoder raises where its package or weights are missing.
    """
    if not cfg.get("text_encoder"):
        raise KeyError(f"config: text_encoder is missing, which tells in which space labels are put; {near_names('text_encoder', cfg)}")
    if labels is None:
        labels = configured_labels(cfg)
    elif not isinstance(labels, LabelSet):
        labels = named_or_free(labels)
    encoder = TEXT_ENCODERS.build(cfg["text_encoder"])
    prompt = cfg.get("prompt") or PROMPT
    embedding = embed_labels(encoder, labels.texts, prompt).float()
    return Vocabulary(labels, embedding, encoder.name, prompt)


def is_open(model: nn.Module | type) -> bool:
    """Whether a model's classes are words that are told it afterwards."""
    return hasattr(model, "set_vocabulary")


def give_vocabulary(model: nn.Module, cfg: Mapping[str, Any], labels: LabelSet | str | Sequence[str] | None = None) -> Vocabulary:
    """Tells `model` the vocabulary of `build_vocabulary`, so that it gives `seg_logits` of its classes; returns it.

    Raises: besides, TypeError for a model that has classes of its own; ValueError where the encoder's space has another width
        than the model's text head.
    """
    if not is_open(model):
        raise TypeError(f"{type(model).__name__} has classes of its own and cannot be told others; labels are for distilled models (CUA-O3D)")
    vocabulary = build_vocabulary(cfg, labels)
    model.set_vocabulary(vocabulary.embedding, vocabulary.mapping)
    return vocabulary
