"""The test of a pretraining: views that were never trained on are rendered and measured."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines import rendering
from pointcept3m.utils.logger import Progress

from .base import TESTERS, Scores, TesterBase


@TESTERS.register_module()
class RenderTester(TesterBase):
    """PSNR (dB), depth errors (metres), feature cosine and covered share of pixels over the views of `data.test`.

    The checkpoint must fit the model in every tensor. Pictures of the first `num_pictures` scenes, with
    `views_per_picture` views each, go to `pictures/<scene>_last.png` (`_test.png` at the end of a training).
    verbose: a log line for each scene.
    """

    task = "pretrain"
    collate = staticmethod(collate_fn)

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        num_pictures: int = 4,
        views_per_picture: int = 3,
    ):
        if num_pictures < 0 or views_per_picture < 1:
            raise ValueError(
                f"RenderTester: wanted num_pictures of at least 0 and views_per_picture of at least 1, got {num_pictures} and {views_per_picture}"
            )
        self.num_pictures, self.views_per_picture = num_pictures, views_per_picture
        self.when = "last" if model is None else "test"  # within a training, `last` are the pictures of its evaluation
        super().__init__(cfg, model, test_loader, verbose)

    @torch.no_grad()
    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        missing = [name for name in ("render", "teach", "align") if not hasattr(self.model, name)]
        if missing:
            raise TypeError(
                f"RenderTester: {type(self.model).__name__} has no {missing[0]}(); it tests models that render views, "
                "test=dict(type='SemSegTester') in the config is for segmentation"
            )
        self.model.eval()
        rows: list[dict[str, float]] = []
        with Progress(len(self.test_loader), "testing") as progress:
            for batch, b, view, aligned in rendering.rendered_scenes(self.model, self.test_loader, self.device, check_stop):
                name = rendering.scene_name(batch, b)
                if len(rows) < self.num_pictures and self.is_main:
                    path = self.save_path / "pictures" / f"{name}_{self.when}.png"
                    rendering.save_picture(path, view, batch, b, aligned, self.views_per_picture)
                rows.append(rendering.view_scores(view, batch, b, aligned))
                if self.verbose:
                    self.logger.info(f"{name}: {_numbers(rows[-1])}")
                if b == 0:
                    progress.update()
        scores = rendering.mean_scores(rows)
        self.logger.info(f"test: {_numbers(scores)}")
        return scores, {}


def _numbers(scores: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
