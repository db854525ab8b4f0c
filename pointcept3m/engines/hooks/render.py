"""Evaluation while pretraining: held-out views are rendered, measured and saved beside the truth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointcept3m.engines import metrics, pictures
from pointcept3m.engines.hooks.builder import HOOKS
from pointcept3m.engines.loader import to_device
from pointcept3m.utils import comm
from pointcept3m.utils.hook import HookBase


@HOOKS.register_module()
class RenderEvaluator(HookBase):
    """Renders the views of the validation loader before training, every `every` epochs, and at the end.

    Reports PSNR (dB), depth errors (metres, over valid pixels), feature cosine and the covered share of pixels as
    curves under `val/` and in metrics.json, where `..._at_start` are those before training; pictures of the first
    `num_pictures` scenes go to <save_path>/pictures and to TensorBoard. The model is in eval mode meanwhile. PSNR
    chooses the best checkpoint.
    """

    def __init__(self, every: int = 1, num_pictures: int = 4, views_per_picture: int = 3):
        if every < 1:
            raise ValueError(f"RenderEvaluator: every must be at least 1 epoch, got {every}")
        self.every, self.num_pictures, self.views_per_picture = every, num_pictures, views_per_picture

    sets_metric = True

    def before_train(self) -> None:
        if self.trainer.val_loader is None:
            raise ValueError("RenderEvaluator needs held-out views: the config has no data.val, or evaluate=False")
        if self.trainer.global_step == 0:
            scores = self.evaluate("start")
            self.trainer.report(scores)
            self.trainer.results.update({f"{name}_at_start": value for name, value in scores.items()})

    def after_epoch(self) -> None:
        last = self.trainer.epoch + 1 >= self.trainer.max_epoch
        if not last and (self.trainer.epoch + 1) % self.every:
            return
        scores = self.evaluate("last" if last else f"epoch{self.trainer.epoch + 1:04d}")
        self.trainer.report(scores)
        # A model that renders no colour is judged by its depth, where less is better.
        name, sign = ("psnr", 1) if "psnr" in scores else ("depth_mae", -1)
        self.trainer.comm_info["current_metric_name"] = name
        self.trainer.comm_info["current_metric_value"] = sign * scores[name]

    @torch.no_grad()
    def evaluate(self, when: str) -> dict[str, float]:
        """The mean scores over all held-out views, of all processes; saves pictures named after `when`."""
        trainer = self.trainer
        model = trainer.bare_model
        training = model.training
        model.eval()
        rows: list[dict[str, float]] = []
        for batch in trainer.val_loader:
            trainer.check_stop()
            batch = to_device(batch, trainer.device)
            teacher_maps = model.teach(batch) if model.teacher is not None else None
            for b, view in enumerate(model.render(batch)):
                aligned = model.align(view.feature, teacher_maps[b]) if teacher_maps is not None else None
                if len(rows) < self.num_pictures and trainer.is_main:
                    self._save_picture(when, view, batch, b, aligned)
                rows.append(view_scores(view, batch, b, aligned))
        model.train(training)
        rows = [row for part in comm.all_gather(rows) for row in part]
        scores = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        trainer.logger.info(f"held-out views ({when}): " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        return scores

    def _save_picture(self, when: str, view: Any, batch: Mapping[str, Any], b: int, aligned: Any) -> None:
        columns = picture_columns(view, batch, b, aligned, slice(0, self.views_per_picture))
        name = str(batch["name"][b]) if "name" in batch else f"scene{b}"
        sheet = pictures.save_side_by_side(Path(self.trainer.save_path) / "pictures" / f"{name}_{when}.png", columns)
        self.trainer.writer.add_image(f"views/{name}", sheet, self.trainer.global_step)


def view_scores(view: Any, batch: Mapping[str, Any], b: int, aligned: tuple[Tensor, Tensor] | None) -> dict[str, float]:
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
    view: Any, batch: Mapping[str, Any], b: int, aligned: tuple[Tensor, Tensor] | None, rows: slice
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
