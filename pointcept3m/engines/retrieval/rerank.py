"""Floorplan retrieval in two stages: vectors choose candidates, a re-ranker looks at the candidates' geometry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointcept3m.datasets.plan_pairs import plan_raster, scan_raster
from pointcept3m.engines.checkpoint import load_weights, saved_config
from pointcept3m.models.builder import build_model
from pointcept3m.models.crossover.rerank import PlanReranker
from pointcept3m.structures.images import read_picture
from pointcept3m.structures.scene_objects import Floorplan, read_floorplan

from .gallery import Gallery, Hit, folders_of
from .metrics import chance, hit_rate

Scores = dict[str, float]


def load_reranker(weight: str | Path, device: str | torch.device = "cpu") -> PlanReranker:
    """The re-ranker of a checkpoint, in eval mode. Raises FileNotFoundError; ValueError where the weight is of another model."""
    config = (saved_config(weight) or {}).get("model") or {}
    if config.get("type") != "CrossOver-rerank-v1m1":
        raise ValueError(f"{weight}: holds {config.get('type') or 'no config of a model'}; wanted a CrossOver-rerank-v1m1, as configs/crossover/rooms-rerank.py trains")
    model = build_model(config).to(device)
    load_weights(model, weight)
    return model.eval()


def rerank(plan: Floorplan, scenes: Sequence[str | Path], model: PlanReranker) -> NDArray[np.float32]:
    """Scores [K] of scene folders with points for a floorplan, the higher the better; plan and scans need not share axes.

    Raises: ValueError for a plan without a scale (metres_per_pixel), or naming the scene whose points show no wall.
    """
    if not scenes:
        return np.zeros(0, np.float32)
    return _scores(model, plan_raster(plan, model.size, model.cell), [scan_raster(folder, model.size, model.cell) for folder in scenes])


@torch.no_grad()
def _scores(model: PlanReranker, plan: NDArray[np.float32], scans: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Scores [K] of the rasters of K scans for that of a plan."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    scores = all_scores(model, torch.from_numpy(plan)[None].to(device), torch.from_numpy(np.stack(scans)).to(device))[0].cpu().numpy()
    model.train(training)
    return scores


def plan_to_compare(given: str | Path, metres_per_pixel: float | None = None) -> Floorplan:
    """The plan of a scene folder, or of a picture. Its scale is `metres_per_pixel`, or what the scene's floorplan.json says.

    Raises: FileNotFoundError for a scene folder without a plan; ValueError where nothing tells the scale.
    """
    path = Path(given)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (path.name == "floorplan.png" and (folder / "floorplan.json").is_file()):
        plan = read_floorplan(folder)
        if plan is None:
            raise FileNotFoundError(f"{folder}: holds no floorplan.png, and --rerank compares the lines of a floorplan")
    else:
        plan = Floorplan(read_picture(path))
    if metres_per_pixel is not None:
        plan = replace(plan, metres_per_pixel=metres_per_pixel)
    if plan.metres_per_pixel is None or plan.metres_per_pixel <= 0:
        told = "" if plan.metres_per_pixel is None else f", got {plan.metres_per_pixel}"
        raise ValueError(f"{given}: --rerank compares rooms in metres: say --metres-per-pixel, as 0.02 where a metre is 50 pixels long{told}")
    return plan


def rerank_hits(plan: Floorplan, hits: Sequence[Hit], gallery: Gallery, model: PlanReranker, say: Callable[[str], None] = print) -> list[Hit]:
    """Hits by how well the walls of their scans fit a plan, the best first, `geometry` filled; behind them, as they were, scenes
    whose folder is gone or has no points with walls, and `say` tells how many.

    Raises: ValueError where no scene is left to be compared, or the plan has no line.
    """
    drawn = plan_raster(plan, model.size, model.cell)
    folders, compared, scans, left, reason = folders_of(gallery.embeddings), [], [], [], ""
    for hit in hits:
        folder = folders[hit.number]
        try:
            if folder is None or not (Path(folder) / "coord.npy").is_file():
                raise ValueError(f"no points in {folder or 'a folder that the gallery does not know'}")
            scans.append(scan_raster(folder, model.size, model.cell))
            compared.append(hit)
        except ValueError as error:
            left.append(hit)
            reason = reason or f"{hit.name}: {error}"
    if not compared:
        raise ValueError(f"--rerank: none of {len(hits)} scenes found has points to compare with the plan; {reason}")
    if left:
        say(f"{len(left)} of {len(hits)} candidates could not be compared with the plan and stand behind the others; {reason}")
    scored = [replace(hit, geometry=float(score)) for hit, score in zip(compared, _scores(model, drawn, scans), strict=True)]
    return sorted(scored, key=lambda hit: (-hit.geometry, hit.number)) + left


@torch.no_grad()
def all_scores(model: PlanReranker, plans: Tensor, scans: Tensor, check_stop: Callable[[], None] = lambda: None, chunk: int = 64) -> Tensor:
    """Scores [N, M] of rasters [N, 2, S, S] and [M, 3, S, S]; each is encoded once."""
    encoded_plans = [torch.cat(part) for part in zip(*(model.encode_plans(part) for part in plans.split(chunk)), strict=True)]
    encoded_scans = [torch.cat(part) for part in zip(*(model.encode_scans(part) for part in scans.split(chunk)), strict=True)]
    rows = []
    for number in range(len(plans)):
        check_stop()
        parts = []
        for first in range(0, len(scans), chunk):
            some = tuple(part[first : first + chunk] for part in encoded_scans)
            own = tuple(part[number : number + 1].expand(len(some[0]), *part.shape[1:]) for part in encoded_plans)
            parts.append(model.compare(own, some))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def reorder(first: NDArray, second: NDArray, top: int) -> NDArray[np.float64]:
    """Similarities [Q, G] by which the first `top` candidates of `first` stand in the order of `second`, all others after them as they were."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    rank = np.argsort(np.argsort(-first, axis=1, kind="stable"), axis=1)
    made = -rank.astype(np.float64)  # 0 the best
    for row in range(len(first)):
        candidates = np.flatnonzero(rank[row] < top)
        order = candidates[np.argsort(-second[row, candidates], kind="stable")]
        made[row, order] = -np.arange(len(order))
    return made


def recall(similarity: NDArray, relevant: NDArray[np.bool_], ks: Sequence[int] = (1, 5)) -> Scores:
    """top<k> (share of queries [Q, G] with a relevant one among the first k, ties by chance), chance_top<k>, queries."""
    scores = {f"top{k}": float(hit_rate(similarity, relevant, k).mean()) for k in ks}
    scores |= {f"chance_top{k}": float(np.mean([chance(relevant.shape[1], int(row.sum()), k) for row in relevant])) for k in ks}
    return {**scores, "queries": len(similarity)}


def text_table(results: Mapping[str, Mapping[str, Scores]]) -> str:
    """direction -> way -> scores, as aligned lines in percent."""
    lines = [f"{'':20s}{'':32s}{'top1':>7s}{'top5':>7s}{'place':>7s}{'queries':>9s}"]
    for direction, ways in results.items():
        for way, each in ways.items():
            lines.append(f"{direction:20s}{way:32s}{each['top1'] * 100:7.1f}{each['top5'] * 100:7.1f}{each['place_top1'] * 100:7.1f}{each['queries']:9d}")
            direction = ""
    return "\n".join(lines) + "\n"
