"""What a teacher's features are worth on rooms it has not seen; and the job that trains, scores and writes the pocket ones."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pointcept3m.engines.pocket import train_pocket
from pointcept3m.engines.pocket_common import (
    CATEGORY_NAMES,
    DIMS,
    ROOMS_CLASSES,
    SEGMENT_NAMES,
    STEPS,
    TO_NAMED_SEGMENT,
    TO_SEGMENT,
    Frames,
    at_stride,
    make_frames,
    normals_of,
    relabel,
)
from pointcept3m.engines.pocket_text import QUERIES, phrases
from pointcept3m.models.teachers.base import Teacher
from pointcept3m.models.teachers.pocket import PocketTeacher, read_pocket, write_pocket
from pointcept3m.models.text.sentence import MINILM, SentenceEncoder
from pointcept3m.utils.files import atomic_write

logger = logging.getLogger(__name__)

FIRST_SEED = 1_000_000  # no other part of the project draws rooms from here on
PROBE_ROOMS = 40
TEXT_ALIGNED = ("text", "sentence")


def feature_rows(teacher: Teacher, frames: Frames) -> Tensor:
    """Features float32 [F, h, w, dim] of all frames, at a stride of 4 pixels."""
    return torch.cat([teacher(part) for part in frames.image().split(32)]).movedim(1, -1)


def color_rows(frames: Frames) -> Tensor:
    """The yardstick: colour, its square, and place in the image, float32 [F, h, w, 8], of the same cells."""
    mean = F.avg_pool2d(frames.image(), 4)
    v, u = torch.meshgrid(torch.linspace(-1, 1, mean.shape[2]), torch.linspace(-1, 1, mean.shape[3]), indexing="ij")
    place = torch.stack([u, v]).expand(len(mean), -1, -1, -1)
    return torch.cat([mean, mean**2, place], dim=1).movedim(1, -1)


def mean_iou(predicted: Tensor, target: Tensor, num_classes: int) -> float:
    """Mean IoU over the classes that occur in `target`; both int64 [N], no -1."""
    confusion = (
        torch.bincount(target * num_classes + predicted, minlength=num_classes**2).view(num_classes, -1).double()
    )
    hit, there = confusion.diagonal(), confusion.sum(1)
    iou = hit / (there + confusion.sum(0) - hit).clamp(min=1)
    return float(iou[there > 0].mean())


def linear_probe(
    train: Tensor, train_label: Tensor, val: Tensor, val_label: Tensor, num_classes: int, seed: int = 0
) -> float:
    """Mean IoU on `val` of a linear classifier fitted on `train`; features [..., dim], labels [...] with -1 for none.

    Features are standardised by the training set, 20 000 cells are drawn, 200 full-batch Adam steps.
    """
    generator = torch.Generator().manual_seed(seed)
    keep = (train_label >= 0).flatten().nonzero()[:, 0]
    keep = keep[torch.randperm(len(keep), generator=generator)[:20000]]
    x, y = train.flatten(0, -2)[keep], train_label.flatten()[keep]
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.03)
    x = (x - mean) / std
    for _ in range(200):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(F.linear(x, weight, bias), y).backward()
        optimizer.step()
    with torch.no_grad():
        valid = val_label >= 0
        predicted = F.linear((val[valid] - mean) / std, weight, bias).argmax(1)
    return mean_iou(predicted, val_label[valid], num_classes)


def ridge_r2(train: Tensor, train_target: Tensor, val: Tensor, val_target: Tensor) -> float:
    """R2 on `val` of ridge regression from features [N, dim] to targets [N, k], over all k together."""

    def extended(x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones(len(x), 1)], dim=1).double()

    a = extended(train)
    gram = a.T @ a + 1e-3 * len(a) * torch.diag(a.var(0, unbiased=False))
    solution = torch.linalg.solve(gram, a.T @ train_target.double())
    error = (extended(val) @ solution - val_target).square().sum()
    return float(1 - error / (val_target - val_target.mean(0)).square().sum())


def geometry_r2(train: Tensor, train_frames: Frames, val: Tensor, val_frames: Frames) -> dict[str, float]:
    """R2 of log depth and of normals, by ridge regression from features [F, h, w, dim]."""
    out = {}
    cells = [at_stride(frames) for frames in (train_frames, val_frames)]
    rows = []
    for features, (depth, _, _) in zip((train, val), cells, strict=True):
        valid = depth > 0
        rows += [features[valid], depth[valid].log()[:, None]]
    out["depth_r2"] = ridge_r2(*rows)
    rows = []
    for features, (depth, _, intrinsic) in zip((train, val), cells, strict=True):
        normal, valid = normals_of(depth, intrinsic)
        rows += [features[valid], normal.movedim(1, -1)[valid]]
    out["normal_r2"] = ridge_r2(*rows)
    return out


def channel_statistics(features: Tensor) -> dict[str, float]:
    """How unequal the channels of features [..., dim] are: range of their means, ratio of extreme deviations, kurtosis."""
    flat = features.flatten(0, -2).double()
    mean, std = flat.mean(0), flat.std(0)
    spread = (flat - flat.mean()).flatten()
    return {
        "channel_mean_min": float(mean.min()), "channel_mean_max": float(mean.max()),
        "channel_mean_median": float(mean.median()), "channel_std_max_over_min": float(std.max() / std.min().clamp(min=1e-12)),
        "kurtosis": float(spread.pow(4).mean() / spread.pow(2).mean() ** 2),
    }  # fmt: skip


def score(teacher: PocketTeacher, train: Frames, val: Frames) -> dict[str, float]:
    """Every score of one pocket teacher; the probe is fitted on rooms `train` and measured on rooms `val`."""
    classes = len(ROOMS_CLASSES)
    rows, held = feature_rows(teacher, train), feature_rows(teacher, val)
    labels, held_labels = (relabel(at_stride(frames)[1], TO_SEGMENT) for frames in (train, val))
    out = {"probe_mIoU": linear_probe(rows, labels, held, held_labels, classes)}
    out["probe_mIoU_of_color_and_place"] = linear_probe(
        color_rows(train), labels, color_rows(val), held_labels, classes
    )
    out |= geometry_r2(rows, train, held, val)
    colors = geometry_r2(color_rows(train), train, color_rows(val), val)
    out |= {f"{key}_of_color_and_place": value for key, value in colors.items()}
    out |= channel_statistics(held)
    if teacher.kind in TEXT_ALIGNED:
        out |= text_scores(teacher, held, at_stride(val)[1])
    return {key: round(value, 4) for key, value in out.items()}


def text_side(teacher: PocketTeacher) -> Callable[[list[str]], Tensor]:
    """What embeds texts in the space of a text-aligned teacher's features: texts -> unit vectors [K, dim]."""
    return SentenceEncoder(teacher.text_model) if teacher.text_model else teacher.encode_text


def text_scores(teacher: PocketTeacher, features: Tensor, category: Tensor) -> dict[str, float]:
    """How features [F, h, w, dim] answer class names, and where phrases with unseen adjectives land."""
    target = relabel(category, TO_NAMED_SEGMENT)
    embed = text_side(teacher)
    words = embed(SEGMENT_NAMES)
    valid = target >= 0
    out = {"zero_shot_mIoU": mean_iou((features[valid] @ words.T).argmax(1), target[valid], len(SEGMENT_NAMES))}
    words = embed(CATEGORY_NAMES)
    generator = torch.Generator().manual_seed(0)
    asked = [embed(phrases(CATEGORY_NAMES, generator, held_out=True)) for _ in range(8)]
    hits = torch.cat([(text @ words.T).argmax(1) == torch.arange(len(words)) for text in asked])
    out["unseen_adjective_accuracy"] = float(hits.float().mean())
    queries = query_scores(features, category, embed(list(QUERIES)))
    ranks = [query["rank"] for query in queries.values()]
    return out | {
        "query_AUC": sum(query["AUC"] for query in queries.values()) / len(queries),
        "query_rank_1": sum(rank == 1 for rank in ranks) / len(ranks), "query_mean_rank": sum(ranks) / len(ranks),
    }  # fmt: skip


def answers(teacher: PocketTeacher, val: Frames) -> dict[str, dict[str, float]]:
    """`query_scores` of a text-aligned teacher on rooms `val`, rounded."""
    found = query_scores(feature_rows(teacher, val), at_stride(val)[1], text_side(teacher)(list(QUERIES)))
    return {query: {key: round(value, 4) for key, value in scores.items()} for query, scores in found.items()}


def query_scores(features: Tensor, category: Tensor, text: Tensor) -> dict[str, dict[str, float]]:
    """How features [F, h, w, dim] answer each of `QUERIES`, embedded as `text` [Q, dim]; queries none shows are left out.

    AUC: how often a cell of a right category is nearer to the query than one of another (0.5 is chance). rank: 1 plus
    how many wrong categories have a larger mean cosine than the best right one. categories: how many there are to rank.
    """
    there = category >= 0
    cosine, label = features[there] @ text.T, category[there]
    count = torch.bincount(label, minlength=len(CATEGORY_NAMES)).double()
    out = {}
    for column, (query, names) in zip(cosine.T, QUERIES.items(), strict=True):
        right = torch.zeros(len(CATEGORY_NAMES), dtype=torch.bool)
        right[[CATEGORY_NAMES.index(name) for name in names]] = True
        if not (right & (count > 0)).any():
            continue
        mean = torch.zeros_like(count).index_add(0, label, column.double()) / count
        mean[count == 0] = -2
        best = mean[right].max()
        out[query] = {
            "AUC": roc_auc(column, right[label]), "rank": 1 + int((mean[~right] > best).sum()),
            "categories": int((count > 0).sum()),
        }  # fmt: skip
    return out


def roc_auc(score: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve of scores [N] for `positive` bool [N]: the Mann-Whitney statistic, ties count half."""
    values, inverse, ties = score.unique(return_inverse=True, return_counts=True)
    rank = (ties.cumsum(0) - (ties - 1) / 2).double()[inverse]  # mean rank of equal scores
    positives = int(positive.sum())
    negatives = len(score) - positives
    return float((rank[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def make_pocket_teachers(
    kinds: Sequence[str], out: Path, rooms: int = 200, frames: int = 10, steps: int | None = None, threads: int = 1
) -> None:
    """Trains `kinds` on rooms of seeds from `FIRST_SEED`, and writes `pocket_<kind>.safetensors` and `pocket.json` to `out`.

    `pocket.json` records, per kind, the command, seeds, digest, versions, seconds and scores. Probes are fitted on
    `PROBE_ROOMS` rooms after the training ones and measured on as many after those, of the split "train" and of "val".
    """
    torch.set_num_threads(threads)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    train_seeds = range(FIRST_SEED, FIRST_SEED + rooms)
    fit_seeds = range(train_seeds.stop, train_seeds.stop + PROBE_ROOMS)
    val_seeds = range(fit_seeds.stop, fit_seeds.stop + PROBE_ROOMS)
    train, fit, val = (make_frames(seeds, frames) for seeds in (train_seeds, fit_seeds, val_seeds))
    shifted = make_frames(val_seeds, frames, split="val")
    record_path = out / "pocket.json"
    record = json.loads(record_path.read_text()) if record_path.is_file() else {}
    for kind in kinds:
        start = time.perf_counter()
        weights = train_pocket(kind, train, steps)
        seconds = time.perf_counter() - start
        path = out / f"pocket_{kind}.safetensors"
        metadata = {"kind": kind, "dim": str(DIMS[kind])}
        if kind in TEXT_ALIGNED:
            metadata["classes"] = json.dumps(CATEGORY_NAMES)
        if kind == "sentence":
            metadata["text_model"] = MINILM
        write_pocket(path, weights, metadata)
        teacher = PocketTeacher(kind, weight=path)
        record[kind] = {
            "command": f"python tools/train_pocket_teachers.py --kinds {kind} --rooms {rooms} --frames {frames} --steps {steps or STEPS[kind]} --threads {threads}",
            "seeds": {"train": _bounds(train_seeds), "probe": _bounds(fit_seeds), "val": _bounds(val_seeds), "torch": 0},
            "frames_per_room": frames, "image_size": list(train.rgb.shape[-2:]), "torch": torch.__version__,
            "seconds": round(seconds, 1), "parameters": sum(value.numel() for value in weights.values()),
            "bytes": path.stat().st_size, "digest": read_pocket(path, kind)[1]["digest"],
            "scores": score(teacher, fit, val), "scores_split_val": score(teacher, fit, shifted),
        }  # fmt: skip
        if kind in TEXT_ALIGNED:
            record[kind]["queries"] = answers(teacher, val)
        logger.info("%s: %s", kind, record[kind]["scores"])
        logger.info("%s, split val: %s", kind, record[kind]["scores_split_val"])
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        atomic_write(record_path, lambda stream, text=text: stream.write(text.encode()))


def _bounds(seeds: range) -> list[int]:
    return [seeds.start, seeds.stop - 1]
