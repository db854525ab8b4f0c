"""From words to what a distilled model is asked: label set, prompt, text encoder, embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.engines.defaults import fill_registries
from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.text import TextEncoder, embed_labels
from pointcept3m.models.text.base import PROMPT
from pointcept3m.structures.label_sets import LABEL_SETS, LabelSet, named_or_free
from pointcept3m.utils.config import Config

# Text encoders of the teachers that need no more than a name.
ENCODERS: dict[str, dict[str, Any]] = {
    "text": dict(type="PocketTextEncoder"),
    "sentence": dict(type="SentenceEncoder"),
}


@dataclass(frozen=True)
class Vocabulary:
    """K classes as T texts in the space of a text encoder.

    embedding: float32 [T, D], of length 1. encoder: its name. prompt: the sentence, or sentences, that each word was put into.
    """

    labels: LabelSet
    embedding: Tensor
    encoder: str
    prompt: str | Sequence[str]

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


def labels_called(names: Sequence[str], name: str = "data.names") -> LabelSet:
    """The label set that has these names, or else one of them as they are."""
    return next((labels for labels in LABEL_SETS.values() if labels.names == tuple(names)), LabelSet(name, tuple(names)))


def configured_labels(cfg: Mapping[str, Any]) -> LabelSet:
    """The label set of `cfg.data.names`. Raises KeyError where there are none."""
    names = (cfg.get("data") or {}).get("names")
    if not names:
        raise KeyError("config: data.names is missing, the classes to ask for; name a label set, or give labels")
    return labels_called(names)


def labels_of_data(dataset: Any, asked: LabelSet | str | Sequence[str] | None, cfg: Mapping[str, Any]) -> LabelSet:
    """The label set to score `dataset` by: what is asked for, or the data set's own (its `class_names`), or the config's.

    Raises: ValueError where what is asked for cannot be the classes of the labels: another set than theirs, or words of another
        number. (Words of one's own, as many as there are classes and in their order, are other ways to say them.)
    """
    while not hasattr(dataset, "class_names") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    own = getattr(dataset, "class_names", None)
    if asked is None:
        return labels_called(own, type(dataset).__name__) if own else configured_labels(cfg)
    labels = asked if isinstance(asked, LabelSet) else named_or_free(asked)
    if own and labels.names != tuple(own) and (labels.name in LABEL_SETS or len(labels) != len(own)):
        theirs = labels_called(own, type(dataset).__name__)
        raise ValueError(
            f"label set {labels.name!r} has {len(labels)} classes ({', '.join(labels.names[:4])}, ...), but the labels of {type(dataset).__name__} are "
            f"those of {theirs.name!r}, {len(theirs)} ({', '.join(theirs.names[:4])}, ...): scores would compare one with the other. Leave label_set out, or "
            "give a data set with labels of that set, such as data.test.type=ScanNet200Dataset"
        )
    return labels


def prompt_of(cfg: Mapping[str, Any] | None) -> str | Sequence[str]:
    """The sentence that labels are put into, or several: those of the config, else OpenScene's."""
    return (cfg or {}).get("prompt") or PROMPT


def build_encoder(word: str | Mapping[str, Any] | None, cfg: Mapping[str, Any] | None, teacher: str | None) -> TextEncoder:
    """The text encoder that `word` names (dict(type=...), or its text), else that of the config, else the teacher's own.

    Raises: KeyError or ValueError where none is named and the teacher is not one whose encoder is known; as the encoder does.
    """
    fill_registries()
    if isinstance(word, str):
        if word in ENCODERS:
            word = ENCODERS[word]
        else:
            word = Config.fromtext(f"encoder = {word}", f"--text-encoder {word}").get("encoder")
    chosen = word or (cfg or {}).get("text_encoder") or ENCODERS.get(teacher or "")
    if chosen is None:
        raise ValueError(
            f"which text encoder belongs to {teacher!r} is not known; name it: --text-encoder \"dict(type='OpenClipTextEncoder', "
            f"model_name='ViT-B-32-quickgelu', weight='FILE')\", or --config with text_encoder in it ({', '.join(ENCODERS)} know theirs)"
        )
    if not isinstance(chosen, Mapping) or "type" not in chosen:
        where, names = ("--text-encoder", f" or one of {', '.join(ENCODERS)}") if word else ("config: text_encoder", "")
        raise ValueError(f"{where}: wanted dict(type=..., ...){names}, got {chosen!r}")
    return TEXT_ENCODERS.build(dict(chosen))


def build_vocabulary(cfg: Mapping[str, Any], labels: LabelSet | str | Sequence[str] | None = None) -> Vocabulary:
    """`labels` in the space of the config's `text_encoder` (or of its text head, as `build_encoder`), each word put into its `prompt`.

    labels: a label set, its name, or labels (also with commas between them); by default the names of the config.
    Raises: KeyError where the config has no text_encoder and its head's is not known; ValueError, TypeError or KeyError for labels
        that are none; what the encoder raises where its package or weights are missing.
    """
    model = cfg.get("model") or {}
    head = model.get("text_head") or next(iter(model.get("heads") or ()), None)
    if not cfg.get("text_encoder") and head not in ENCODERS:
        raise KeyError(
            "config: text_encoder is missing, which tells in which space labels are put: text_encoder = dict(type='OpenClipTextEncoder', ...). "
            "Where a weight's own config lacks it, --config FILE gives another"
        )
    if labels is None:
        labels = configured_labels(cfg)
    elif not isinstance(labels, LabelSet):
        labels = named_or_free(labels)
    encoder = build_encoder(None, cfg, head)
    prompt = prompt_of(cfg)
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
