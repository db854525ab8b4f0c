"""Views rendered by a model, measured and shown beside the truth: what evaluation and test have in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.engines import metrics, pictures
from pointcept3m.engines.loader import to_device
from pointcept3m.utils import comm
from pointcept3m.utils.files import file_stem

Aligned = tuple[Tensor, Tensor] | None  # rendered and taught features of a scene's views


@torch.no_grad()
def rendered_scenes(
    model: nn.Module, loader: Iterable[Mapping[str, Any]], device: torch.device, check_stop: Callable[[], None] = lambda: None
) -> Iterator[tuple[Mapping[str, Any], int, Any, Aligned]]:
    """(batch, scene number in it, rendered view, aligned features) of each scene of `loader`, in order.

    `check_stop` is called before each batch and may raise. The model is as the caller set it; eval mode is wanted.
    """
    for batch in loader:
        check_stop()
        batch = to_device(batch, device)
        teacher_maps = model.teach(batch) if model.teacher is not None else None
        for b, view in enumerate(model.render(batch)):
            yield batch, b, view, model.align(view.feature, teacher_maps[b]) if teacher_maps is not None else None


def mean_scores(rows: list[dict[str, float]]) -> dict[str, float]:
    """The means over the scenes of all processes; each process gives its own."""
    rows = [row for part in comm.all_gather(rows) for row in part]
    if not rows:
        raise ValueError("there is no view to score: the data set is empty")
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def scene_name(batch: Mapping[str, Any], b: int) -> str:
    """The name of scene b as a file may be called."""
    return file_stem(batch["name"][b] if "name" in batch else f"scene{b}")


def save_picture(path: Path, view: Any, batch: Mapping[str, Any], b: int, aligned: Aligned, num_views: int) -> Any:
    """Writes the first `num_views` views of scene b, truth beside rendering; returns the picture, [H, W, 3] uint8."""
    return pictures.save_side_by_side(path, picture_columns(view, batch, b, aligned, slice(0, num_views)))


def view_scores(view: Any, batch: Mapping[str, Any], b: int, aligned: Aligned) -> dict[str, float]:
    """PSNR, depth errors, feature cosine and coverage of the M views of scene b, means over its views."""
    depth = batch["depth"][b]
    scores = {"coverage": view.alpha.mean().item()}
    if view.rgb is not None:
        scores["psnr"] = sum(metrics.psnr(a, t) for a, t in zip(view.rgb, batch["rgb"][b], strict=True)) / len(depth)
    scores.update({f"depth_{k}": v for k, v in metrics.depth_errors(view.depth, depth, depth > 0).items()})
    if aligned is not None:
        scores["feature_cosine"] = metrics.feature_cosine(*aligned)
    return scores


def picture_columns(
    view: Any, batch: Mapping[str, Any], b: int, aligned: Aligned, rows: slice
) -> list[tuple[str, list]]:
    """Columns for `pictures.save_side_by_side`: truth and rendering of colour, depth and features, a row per view."""
    depth = batch["depth"][b][rows]
    height, width = depth.shape[1:3]
    valid = depth[depth > 0]
    low, high = (valid.min().item(), valid.max().item()) if len(valid) else (0.0, 1.0)
    columns = [("colour: truth", [pictures.image_colors(image) for image in batch["rgb"][b][rows]])]
    if view.rgb is not None:
        columns.append(("colour: rendered", [pictures.image_colors(image) for image in view.rgb[rows]]))
    columns.append((f"depth: truth {low:.1f}-{high:.1f} m", [pictures.depth_colors(d, low, high) for d in depth]))
    columns.append(("depth: rendered", [pictures.depth_colors(d, low, high) for d in view.depth[rows]]))
    if aligned is not None:
        rendered, truth = (torch.nn.functional.normalize(f[rows], dim=-1) for f in aligned)
        components = pictures.principal_components(truth)
        for caption, maps in (("features: teacher", truth), ("features: rendered", rendered)):
            images = [pictures.resize(pictures.feature_colors(f, components), height, width) for f in maps]
            columns.append((caption, images))
    return columns
