"""Evaluation while pretraining: held-out views are rendered, measured and saved beside the truth."""

from pathlib import Path

import torch

from pointcept3m.engines import rendering
from pointcept3m.engines.hooks.builder import HOOKS
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
        for batch, b, view, aligned in rendering.rendered_scenes(model, trainer.val_loader, trainer.device, trainer.check_stop):
            if len(rows) < self.num_pictures and trainer.is_main:
                name = rendering.scene_name(batch, b)
                path = Path(trainer.save_path) / "pictures" / f"{name}_{when}.png"
                sheet = rendering.save_picture(path, view, batch, b, aligned, self.views_per_picture)
                trainer.writer.add_image(f"views/{name}", sheet, trainer.global_step)
            rows.append(rendering.view_scores(view, batch, b, aligned))
        model.train(training)
        scores = rendering.mean_scores(rows)
        trainer.logger.info(f"held-out views ({when}): " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        return scores
