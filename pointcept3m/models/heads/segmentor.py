"""Semantic segmentation: a backbone, a linear head where it has none, and the losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS, build_model
from pointcept3m.models.losses import build_criteria

Config = Mapping[str, Any]


@MODELS.register_module()
class DefaultSegmentor(nn.Module):
    """A backbone that returns logits [N, K] itself.

    Training returns dict(loss); evaluation dict(seg_logits, loss), without loss where the batch has no `segment`.
    """

    task = "semseg"

    def __init__(self, backbone: Config | None = None, criteria: Sequence[Config] | Config | None = None):
        super().__init__()
        self.backbone = build_model(backbone)
        self.criteria = build_criteria(criteria)

    def logits(self, input_dict: dict[str, Any]) -> Tensor:
        """[N, K] float scores of each point."""
        return features_of(self.backbone(input_dict))

    def class_count(self) -> int | None:
        """K, or None where it shows in the first forward only."""
        # Backbones of this package promise that `out_channels` is the width of their output; others may mean something else.
        ours = type(self.backbone).__module__.startswith("pointcept3m.models.")
        return getattr(self.backbone, "out_channels", None) if ours else None

    def forward(self, input_dict: dict[str, Any]) -> dict[str, Tensor]:
        if "condition" in input_dict and isinstance(input_dict["condition"], list):
            # Backbones with a normalisation per data set take one word: a batch comes from one of them.
            input_dict = {**input_dict, "condition": input_dict["condition"][0]}
        seg_logits = self.logits(input_dict)
        if "segment" not in input_dict:
            if self.training:
                raise KeyError(f"{type(self).__name__}: training needs 'segment' in the batch, got {sorted(input_dict)}")
            return {"seg_logits": seg_logits}
        loss = self.criteria(seg_logits, input_dict["segment"])
        return {"loss": loss} if self.training else {"loss": loss, "seg_logits": seg_logits}


@MODELS.register_module()
class DefaultSegmentorV2(DefaultSegmentor):
    """A backbone that returns features [N, backbone_out_channels], and a linear head `seg_head`.

    freeze_backbone: the linear probe. The backbone has no gradient and stays in eval mode, so that the running
    statistics of its batch norms are those of pretraining. Pointcept's and GaussianCross's code only stop the
    gradient: batch norms go on using and updating statistics of the probing data; `frozen_norm="train"` does that.
    """

    def __init__(
        self,
        num_classes: int,
        backbone_out_channels: int,
        backbone: Config | None = None,
        criteria: Sequence[Config] | Config | None = None,
        freeze_backbone: bool = False,
        frozen_norm: str = "eval",
    ):
        super().__init__(backbone, criteria)
        if frozen_norm not in ("eval", "train"):
            raise ValueError(f"frozen_norm must be 'eval' or 'train', got {frozen_norm!r}")
        self.seg_head = nn.Linear(backbone_out_channels, num_classes) if num_classes > 0 else nn.Identity()
        self.freeze_backbone, self.frozen_norm = freeze_backbone, frozen_norm
        if freeze_backbone:
            self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DefaultSegmentorV2":
        super().train(mode)
        if self.freeze_backbone and self.frozen_norm == "eval":
            self.backbone.eval()
        return self

    def class_count(self) -> int | None:
        return self.seg_head.out_features if isinstance(self.seg_head, nn.Linear) else None

    def logits(self, input_dict: dict[str, Any]) -> Tensor:
        return self.seg_head(features_of(self.backbone(input_dict)))


def features_of(output: Any) -> Tensor:
    """The point features in a backbone's output: the output itself, or its `feat`.

    An encoder without decoder (PT-v3m1 with enc_mode) gives a chain of grids: then each point gets the features of
    its cells on all of them side by side, its own first.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("feat"), Tensor):
        feat = output["feat"]
        while "pooling_parent" in output:
            inverse, output = output["pooling_inverse"], output["pooling_parent"]
            feat = torch.cat([output["feat"], feat[inverse]], dim=1)
        return feat
    if hasattr(output, "features"):  # a sparse tensor
        return output.features
    raise TypeError(f"backbone: wanted a tensor [N, C] or a dict with 'feat', got {type(output).__name__}")
