"""Linear probes of a distilled model: what its heads' features tell of classes (CUA-O3D Tables 5 and 10)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.models.builder import MODELS
from pointcept3m.models.cua_o3d.model import _head, _head_settings
from pointcept3m.models.heads.segmentor import DefaultSegmentor, features_of
from pointcept3m.utils.registry import near_names

MODES = ("concat", "average", "single")
FROZEN = ("backbone.", "heads.")


@MODELS.register_module("CUA-O3D-Probe")
class CUAO3DProbe(DefaultSegmentor):
    """Backbone and heads of a distilled model, frozen, and linear layers without bias that are trained on the heads' features.

    backbone, backbone_out_channels, heads: as in the distillation's config, so that its weight fits.
    mode: "concat", one layer on the features of all heads side by side; "average", one layer a head, whose logits are averaged and
        whose losses are added up; "single", one layer on one head.
    probe_heads: which heads, by default all.
    frozen_norm: "eval" keeps the running statistics of batch norms as the distillation left them; the release stops gradients
        alone, so that they go on moving: "train" does that.

    Heads without hidden units are linear maps of one and the same C-d feature (C: backbone_out_channels), so whatever their
    widths, a concat probe is a linear layer of rank at most C on that feature; its gain over a probe of the backbone is one of
    scale and start, not of information. Layer and head are therefore multiplied first: with LSeg, DINOv2 and Stable Diffusion no
    row of 4736 numbers a voxel is ever made.
    """

    def __init__(
        self,
        num_classes: int,
        backbone_out_channels: int,
        heads: Mapping[str, Mapping[str, Any]],
        backbone: Mapping[str, Any] | None = None,
        criteria: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        mode: str = "concat",
        probe_heads: Sequence[str] | None = None,
        frozen_norm: str = "eval",
    ):
        super().__init__(backbone, criteria)
        if mode not in MODES:
            raise ValueError(f"CUA-O3D-Probe: mode must be one of {', '.join(MODES)}, got {mode!r}; {near_names(str(mode), MODES)}")
        if frozen_norm not in ("eval", "train"):
            raise ValueError(f"CUA-O3D-Probe: frozen_norm must be 'eval' or 'train', got {frozen_norm!r}")
        chosen = (probe_heads,) if isinstance(probe_heads, str) else tuple(heads if probe_heads is None else probe_heads)
        for name in chosen:
            if name not in heads:
                raise ValueError(f"CUA-O3D-Probe: no head {name!r}; {near_names(name, heads)}")
        if not chosen or len(set(chosen)) < len(chosen) or (mode == "single" and len(chosen) > 1):
            wanted = "one head" if mode == "single" else "at least one head, none twice"
            raise ValueError(f"CUA-O3D-Probe: mode {mode!r} wants {wanted} in probe_heads, got {', '.join(chosen) or 'none'}")
        settings = {name: _head_settings(name, head) for name, head in heads.items()}
        self.heads = nn.ModuleDict({name: _head(backbone_out_channels, each["dim"], each["hidden"]) for name, each in settings.items()})
        self.dims = {name: settings[name]["dim"] for name in chosen}
        widths = self.dims.values() if mode == "average" else [sum(self.dims.values())]
        self.seg_head = nn.ModuleList(nn.Linear(width, num_classes, bias=False) for width in widths)
        self.mode, self.frozen_norm, self.num_classes = mode, frozen_norm, num_classes
        for frozen in (self.backbone, self.heads):
            frozen.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_refuse_random_heads)
        self.train(self.training)

    def train(self, mode: bool = True) -> "CUAO3DProbe":
        super().train(mode)
        if self.frozen_norm == "eval":
            self.backbone.eval()
            self.heads.eval()
        return self

    def class_count(self) -> int:
        return self.num_classes

    def layer_logits(self, feature: Tensor) -> list[Tensor]:
        """Logits [n, K] of each layer, of backbone features [n, C]."""
        parts = list(self.seg_head[0].weight.split(list(self.dims.values()), dim=1)) if self.mode != "average" else [layer.weight for layer in self.seg_head]
        logits = [_applied(self.heads[name], part, feature) for name, part in zip(self.dims, parts, strict=True)]
        return logits if self.mode == "average" else [torch.stack(logits).sum(0)]

    def logits(self, input_dict: dict[str, Any]) -> Tensor:
        return torch.stack(self.layer_logits(features_of(self.backbone(input_dict)))).mean(0)

    def forward(self, input_dict: dict[str, Any]) -> dict[str, Tensor]:
        if self.mode != "average" or "segment" not in input_dict:
            return super().forward(input_dict)
        each = self.layer_logits(features_of(self.backbone(input_dict)))
        loss = torch.stack([self.criteria(logits, input_dict["segment"]) for logits in each]).sum()
        return {"loss": loss} if self.training else {"loss": loss, "seg_logits": torch.stack(each).mean(0)}


def _applied(head: nn.Module, weight: Tensor, feature: Tensor) -> Tensor:
    """`weight` [K, D] on the head's features [n, D]; a linear head is multiplied into it, [K, C], before a voxel is looked at."""
    if isinstance(head, nn.Linear):
        return F.linear(feature, weight @ head.weight)
    return F.linear(head(feature), weight)


def _refuse_random_heads(module: CUAO3DProbe, state: Mapping[str, Any], *_: Any) -> None:
    """A weight that has a part of what is frozen would leave the rest random, and the probe would be of noise."""
    frozen = [key for key in module.state_dict() if key.startswith(FROZEN)]
    lacking = [key for key in frozen if key not in state]
    if lacking and len(lacking) < len(frozen):
        raise ValueError(
            f"CUA-O3D-Probe: the weights lack {len(lacking)} of {len(frozen)} tensors that stay frozen ({', '.join(lacking[:3])}"
            f"{', ...' if len(lacking) > 3 else ''}): a probe of what is random; wanted the weights of a distillation with these heads"
        )
