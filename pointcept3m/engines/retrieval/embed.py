"""From a model and a data set to embeddings: every scene and object once, over however many processes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pointcept3m.engines.loader import to_device
from pointcept3m.structures.modality_features import OBJECT_MODALITIES, SCENE_MODALITIES
from pointcept3m.structures.scene_embeddings import FUSED, SceneEmbeddings
from pointcept3m.utils import comm

PER_SCENE = {
    "names": "name", "splits": "split", "datasets": "dataset", "places": "place", "categories": "category", "references": "reference",
    "same_ids": "same_ids",
}  # fmt: skip


@torch.no_grad()
def embed_dataset(
    model: nn.Module,
    loader: Any,
    autocast: Callable[[], Any] = nullcontext,
    check_stop: Callable[[], None] = lambda: None,
    each: Callable[[Mapping[str, Any]], None] | None = None,
) -> SceneEmbeddings:
    """Embeds all samples of `loader` (over a CrossOverDataset, by `collate_fn`), in the order of the data set.

    In eval mode meanwhile. With several processes, whose loaders hold a share each (`EvaluationSampler`), all get the whole.
    autocast: makes a context for mixed precision. check_stop: called between batches, may raise. each: called with every batch,
    on the model's device.

    Raises: ValueError naming the scene where an embedding is not finite; TypeError where the model embeds nothing.
    """
    for name in ("embed_objects", "embed_scenes"):
        if not hasattr(model, name):
            raise TypeError(f"a {type(model).__name__} has no {name}; wanted a model of CrossOver, such as CrossOver-v1m1")
    device = next(model.parameters()).device
    fingerprint = model_fingerprint(model, encoders_of(loader))
    pieces, meeting, training = [], comm.Meeting(), model.training
    model.eval()
    try:
        for batch in loader:
            check_stop()
            batch = to_device(batch, device)
            with autocast():
                piece = embed_batch(model, batch, fingerprint)
                if each is not None:
                    each(batch)
            pieces.append(piece)
            meeting.beat()
    finally:
        model.train(training)
    meeting.wait()
    return gathered(concatenate(pieces) if pieces else None)


def embed_batch(model: nn.Module, batch: Mapping[str, Any], fingerprint: str = "") -> SceneEmbeddings:
    """The embeddings of the scenes of one batch, whose tensors lie on the model's device."""
    objects, object_known = _unit("objects", *model.embed_objects(batch), batch, batch["object_offset"].tolist())
    vectors, known = model.embed_scenes(batch)
    kept = [name for name in vectors if name in (*SCENE_MODALITIES, FUSED)]  # a mean of CAD models is no modality of scenes
    scenes, scene_known = _unit("scenes", {name: vectors[name] for name in kept}, known, batch, None)
    count = len(batch["name"])
    return SceneEmbeddings(
        model=fingerprint,
        **{key: _listed(batch.get(name), count) for key, name in PER_SCENE.items()},
        scenes=scenes,
        scene_known=scene_known,
        object_offset=batch["object_offset"].cpu().numpy().astype(np.int64),
        object_id=batch["object_id"].cpu().numpy().astype(np.int64),
        labels=[label for labels in batch["labels"] for label in labels],
        object_box=batch["object_box"].float().cpu().numpy(),
        moved=batch["object_moved"].cpu().numpy(),
        objects=objects,
        object_known=object_known,
    )


def _listed(values: Any, count: int) -> list[Any]:
    """What a batch says of its scenes, one by one; nothing of what it does not say."""
    if values is None:
        return [""] * count
    return values.tolist() if isinstance(values, Tensor) else list(values)


def _unit(
    what: str, vectors: Mapping[str, Tensor], known: Mapping[str, Tensor], batch: Mapping[str, Any], ends: list[int] | None
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.bool_]]]:
    """Rows of length 1 in float32 (mixed precision leaves them a little off), zeros where not known."""
    rows, masks = {}, {}
    for name, values in vectors.items():
        mask = known[name].bool().cpu().numpy()
        array = values.detach().float().cpu().numpy()
        length = np.linalg.norm(array, axis=1)
        bad = mask & ~((length > 0) & np.isfinite(length))
        if bad.any():
            row = int(np.argmax(bad))
            scene = batch["name"][row if ends is None else int(np.searchsorted(ends, row, side="right"))]
            raise ValueError(f"scene {scene}: the model's embedding of its {what}' {name} is not finite or of length 0; did its training diverge?")
        rows[name] = np.where(mask[:, None], array / np.where(mask, length, 1)[:, None], 0).astype(np.float32)
        masks[name] = mask
    return rows, masks


@torch.no_grad()
def embed_frames(model: nn.Module, batch: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Each image token of a batch embedded as a scene of its own: ([V, D] unit rows, number of the scene in the batch [V])."""
    offset = batch["image_offset"].cpu()
    counts = torch.diff(offset, prepend=torch.zeros(1, dtype=offset.dtype))
    scene = torch.repeat_interleave(torch.arange(len(counts)), counts).numpy()
    views = len(batch["image_token"])
    if not views:
        return np.zeros((0, 1), dtype=np.float32), scene
    alone = dict(batch)
    for key, value in batch.items():
        if isinstance(value, Tensor):  # one scene a frame, with nothing else in it
            alone[key] = torch.zeros(views, dtype=value.dtype, device=value.device) if key == "offset" or key.endswith("_offset") else value[:0]
    alone |= {"image_token": batch["image_token"], "image_offset": torch.arange(1, views + 1, device=batch["image_token"].device)}
    alone["name"] = [batch["name"][number] for number in scene]
    vectors, known = model.embed_scenes(alone)
    return _unit("frames", {"image": vectors["image"]}, {"image": known["image"]}, alone, None)[0]["image"], scene


# putting together


def concatenate(pieces: Sequence[SceneEmbeddings]) -> SceneEmbeddings:
    """Scenes of several embeddings one after the other. Raises ValueError where they are of different models or modalities."""
    first = pieces[0]
    for piece in pieces[1:]:
        if piece.model != first.model:
            raise ValueError(f"embeddings of different models ({first.model}, {piece.model}) lie in different spaces and cannot be joined")
        if set(piece.scenes) != set(first.scenes) or set(piece.objects) != set(first.objects):
            raise ValueError("embeddings of different modalities cannot be joined")
    ends = np.cumsum([0] + [len(piece.object_id) for piece in pieces])
    listed = {key: [value for piece in pieces for value in getattr(piece, key)] for key in (*PER_SCENE, "labels")}
    stacked = {key: np.concatenate([getattr(piece, key) for piece in pieces]) for key in ("object_id", "object_box", "moved")}
    grouped = {
        key: {name: np.concatenate([getattr(piece, key)[name] for piece in pieces]) for name in getattr(first, key)}
        for key in ("scenes", "scene_known", "objects", "object_known")
    }
    offset = np.concatenate([piece.object_offset + end for piece, end in zip(pieces, ends, strict=False)])
    return SceneEmbeddings(model=first.model, **listed, **stacked, **grouped, object_offset=offset, details=dict(first.details))


def select(embeddings: SceneEmbeddings, rows: Sequence[int] | NDArray) -> SceneEmbeddings:
    """The scenes `rows`, in that order, with their objects."""
    rows = np.asarray(rows, dtype=np.int64)
    parts = [np.arange(part.start, part.stop) for part in (embeddings.rows_of(int(row)) for row in rows)]
    objects = np.concatenate([*parts, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    listed = {key: [getattr(embeddings, key)[row] for row in rows] for key in PER_SCENE}
    return SceneEmbeddings(
        model=embeddings.model,
        **listed,
        scenes={name: values[rows] for name, values in embeddings.scenes.items()},
        scene_known={name: values[rows] for name, values in embeddings.scene_known.items()},
        object_offset=np.cumsum([len(part) for part in parts], dtype=np.int64),
        object_id=embeddings.object_id[objects],
        labels=[embeddings.labels[row] for row in objects],
        object_box=embeddings.object_box[objects],
        moved=embeddings.moved[objects],
        objects={name: values[objects] for name, values in embeddings.objects.items()},
        object_known={name: values[objects] for name, values in embeddings.object_known.items()},
        details=dict(embeddings.details),
    )


def gathered(share: SceneEmbeddings | None) -> SceneEmbeddings:
    """All processes' shares as one, in the order of the data set (rank r holds its samples r, r + W, ...).

    Raises: ValueError where nobody has a scene.
    """
    shares = comm.all_gather(share)
    places = [rank + len(shares) * number for rank, each in enumerate(shares) if each is not None for number in range(len(each))]
    present = [each for each in shares if each is not None]
    if not present:
        raise ValueError("no scene to embed: the data set is empty")
    whole = concatenate(present)
    return whole if len(shares) == 1 else select(whole, np.argsort(places))


# what made them


def encoders_of(loader: Any) -> dict[str, str]:
    """The fingerprints of the frozen encoders behind a loader's data set, {} where it does not tell."""
    dataset = getattr(loader, "dataset", None)
    dataset = getattr(dataset, "dataset", dataset)
    return dict(getattr(dataset, "encoders", {}))


def model_fingerprint(model: nn.Module, encoders: Mapping[str, str]) -> str:
    """16 hex digits of the model's weights and the frozen encoders of its inputs: embeddings of one space have one."""
    digest = hashlib.sha256(json.dumps({name: encoders[name] for name in sorted(encoders)}).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype};".encode())
        digest.update(memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def mean_of_objects(embeddings: SceneEmbeddings) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.bool_]]]:
    """Scenes as the mean of their objects' embeddings, brought to length 1: how methods without a scene level are compared (Sec. 4.2)."""
    scenes, known = {}, {}
    for name in OBJECT_MODALITIES:
        if name not in embeddings.objects:
            continue
        rows, mask = embeddings.objects[name], embeddings.object_known[name]
        means = np.zeros((len(embeddings), rows.shape[1]), dtype=np.float64)
        for scene in range(len(embeddings)):
            part = embeddings.rows_of(scene)
            if mask[part].any():
                means[scene] = rows[part][mask[part]].astype(np.float64).mean(axis=0)
        length = np.linalg.norm(means, axis=1)
        known[name] = length > 0
        scenes[name] = (means / np.where(length > 0, length, 1)[:, None]).astype(np.float32)
    return scenes, known
