"""3D object recognition by probing CrossOver's space: a linear layer on frozen embeddings, or class names alone.

One space holds all modalities, so a probe that was trained on one is tried on every other too, and a class name is a sentence
like any other. Source: the question is the one the authors' talk leaves open ("can we probe the embedding space"); the protocol
is that of linear probing elsewhere in this project.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pointcept3m.engines.probe import fit_linear_probe
from pointcept3m.structures.modality_features import OBJECT_MODALITIES
from pointcept3m.structures.scene_embeddings import SceneEmbeddings

Scores = dict[str, float]
PROMPTS = ("the {label}", "the {label} in the room")


def class_names(train: SceneEmbeddings, at_least: int = 5) -> list[str]:
    """Labels that at least so many training objects have, sorted. Raises ValueError where there are fewer than two."""
    counts = Counter(train.labels)
    names = sorted(name for name, count in counts.items() if count >= at_least)
    if len(names) < 2:
        raise ValueError(f"recognition: wanted two labels with at least {at_least} training objects each, got {dict(counts.most_common(5))}")
    return names


def labelled(embeddings: SceneEmbeddings, modality: str, names: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(rows [P, D], classes int64 [P]) of the objects that are known in `modality` and whose label is one of `names`."""
    number = {name: k for k, name in enumerate(names)}
    classes = np.array([number.get(label, -1) for label in embeddings.labels], dtype=np.int64)
    if modality not in embeddings.objects:
        return np.zeros((0, 1), np.float32), classes[:0]
    keep = embeddings.object_known[modality] & (classes >= 0)
    return np.asarray(embeddings.objects[modality][keep]), classes[keep]


def score_classes(predicted: NDArray, truth: NDArray, train_truth: NDArray, count: int) -> Scores:
    """accuracy, mean_accuracy (mean over the classes that occur), both of the majority class of training and of chance, and counts.

    predicted, truth int64 [P] in 0..count - 1; train_truth: classes of the training objects, whose most frequent one is the majority.
    """
    occurring = np.unique(truth)
    majority = int(np.bincount(train_truth, minlength=count).argmax())

    def both(answers: NDArray) -> tuple[float, float]:
        right = answers == truth
        return float(right.mean()), float(np.mean([right[truth == k].mean() for k in occurring]))

    (accuracy, mean), (often, often_mean) = both(predicted), both(np.full_like(truth, majority))
    return dict(
        accuracy=accuracy, mean_accuracy=mean, majority_accuracy=often, majority_mean_accuracy=often_mean, chance_accuracy=1 / count,
        queries=len(truth), classes=len(occurring),
    )  # fmt: skip


def probe_objects(
    train: SceneEmbeddings, test: SceneEmbeddings, names: Sequence[str], modalities: Sequence[str] | None = None, seed: int = 0, steps: int = 600
) -> dict[str, Scores]:
    """"image->point": a linear layer fitted to training objects' image embeddings, asked about test objects' point embeddings; all pairs.

    Both are of one model. Raises: ValueError where they are not; KeyError where `modalities` names one that is not there.
    """
    if train.model != test.model:
        raise ValueError(f"recognition: embeddings of different models ({train.model}, {test.model}) lie in different spaces")
    chosen = _modalities(train, test, modalities)
    asked = {name: labelled(test, name, names) for name in chosen}
    results: dict[str, Scores] = {}
    for source in chosen:
        rows, classes = labelled(train, source, names)
        if len(np.unique(classes)) < 2:
            continue
        layer = fit_linear_probe(torch.from_numpy(rows), torch.from_numpy(classes), len(names), steps, seed=seed)
        for target, (queries, truth) in asked.items():
            if len(truth):
                with torch.no_grad():
                    predicted = layer(torch.from_numpy(queries)).argmax(1).numpy()
                results[f"{source}->{target}"] = score_classes(predicted, truth, labelled(train, target, names)[1], len(names))
    return results


def zero_shot(train: SceneEmbeddings, test: SceneEmbeddings, names: Sequence[str], vectors: NDArray[np.float32]) -> dict[str, Scores]:
    """"name->point": test objects take the class name whose vector is the most similar; no label was trained on.

    vectors: unit rows [K, D], one for each of `names`, in the space of the embeddings. `train` gives the majority baseline alone.
    """
    if vectors.shape[0] != len(names):
        raise ValueError(f"recognition: {len(vectors)} vectors for {len(names)} class names")
    results = {}
    for target in _modalities(train, test, None):
        queries, truth = labelled(test, target, names)
        if len(truth):
            predicted = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).argmax(1)
            results[f"name->{target}"] = score_classes(predicted, truth, labelled(train, target, names)[1], len(names))
    return results


@torch.no_grad()
def name_vectors(
    model: nn.Module, batch: Mapping[str, Any], encode: Callable[[Sequence[str]], torch.Tensor], names: Sequence[str], prompts: Sequence[str] = PROMPTS
) -> NDArray[np.float32]:
    """Class names as objects that are known by text alone: the mean over `prompts` of their vectors, through the model's text head.

    batch: any batch of CrossOverDataset, whose widths are taken. encode: the text encoder of the data's recipe. Returns unit rows
    [K, D]. Raises: ValueError where a prompt has no {label} or the encoder's width is not that of the data's texts.
    """
    for prompt in prompts:
        if "{label}" not in prompt:
            raise ValueError(f"recognition: a prompt says {{label}} where the class name goes, got {prompt!r}")
    texts = torch.stack([encode([prompt.format(label=name) for name in names]) for prompt in prompts]).mean(0)
    width = batch["object_text"].shape[1]
    if texts.shape[1] != width:
        raise ValueError(f"recognition: the text encoder gives {texts.shape[1]} numbers, the data's texts have {width}: another encoder made them")
    count, device = len(names), batch["object_text"].device
    objects = {
        key: value.new_zeros(count, *value.shape[1:])
        for key, value in batch.items()
        if torch.is_tensor(value) and (key.startswith("object_") or key == "cad_box") and not key.endswith("offset")
    }
    objects["object_text"] = texts.to(device, batch["object_text"].dtype)
    objects["object_known"][:, OBJECT_MODALITIES.index("text")] = True
    objects["object_offset"] = torch.tensor([count], device=device)
    rows, _ = model.embed_objects(objects)
    return nn.functional.normalize(rows["text"].float(), dim=1).cpu().numpy()


def text_table(results: Mapping[str, Scores]) -> str:
    """The results in percent as aligned lines."""
    lines = [f"{'trained -> asked':22s}{'accuracy':>10s}{'mean class':>12s}{'majority':>10s}{'chance':>8s}{'objects':>9s}"]
    for pair, scores in results.items():
        parts = [scores[key] * 100 for key in ("accuracy", "mean_accuracy", "majority_accuracy", "chance_accuracy")]
        lines.append(f"{pair:22s}{parts[0]:10.1f}{parts[1]:12.1f}{parts[2]:10.1f}{parts[3]:8.1f}{scores['queries']:9d}")
    return "\n".join(lines) + "\n"


def _modalities(train: SceneEmbeddings, test: SceneEmbeddings, wanted: Sequence[str] | None) -> list[str]:
    there = [name for name in OBJECT_MODALITIES if name in train.objects and name in test.objects]
    for name in wanted or ():
        if name not in there:
            raise KeyError(f"recognition: no embeddings of objects' {name!r}; there are {', '.join(there)}")
    return there if wanted is None else list(wanted)
