"""Masked Scene Contrast: a backbone learns to find the same place in two augmented, partly hidden views of a scene."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS
from pointcept3m.models.heads.segmentor import features_of
from pointcept3m.models.msc import losses
from pointcept3m.models.msc.masking import cross_masks
from pointcept3m.models.msc.matching import match_points
from pointcept3m.utils.registry import near_names

View = dict[str, Tensor]


@MODELS.register_module("MSC-v1m1")
class MaskedSceneContrast(nn.Module):
    """Masked Scene Contrast (Wu et al., CVPR 2023) with Pointcept's arguments; PointContrast with mask_rate=0.

    backbone: config of a backbone whose forward takes a view and returns features [N, backbone_out_channels].
    backbone_in_channels: width of `feat`, which the learned `mask_token` replaces at hidden points.
    mask_grid_size, mask_rate: metres, and the share of cells hidden in each view; see `cross_masks`.
    view1_mix_prob, view2_mix_prob: with this probability the scenes 0 and 1, 2 and 3, ... of a view are laid over each
    other before the backbone ("view mixing"); matches stay within the scenes. With both 0, nothing is mixed.
    matching_max_k, matching_max_radius (metres), matching_max_pair: see `match_points`. nce_t: the temperature.
    contrast_weight, reconstruct_weight: factors of the contrastive loss and of each reconstruction loss.
    reconstruct_color, reconstruct_normal: what is predicted at hidden points, from `viewX_color` and `viewX_normal`.

    Processes do not exchange features: pairs are compared within each process's batch, as in Pointcept, and DDP
    averages the gradients. Pointcept also averages the value of the contrastive loss in place, which divides its
    gradient once more by the number of processes W; contrast_weight=1/W does the same here.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        backbone_in_channels: int,
        backbone_out_channels: int,
        mask_grid_size: float = 0.1,
        mask_rate: float = 0.4,
        view1_mix_prob: float = 0,
        view2_mix_prob: float = 0,
        matching_max_k: int = 8,
        matching_max_radius: float = 0.03,
        matching_max_pair: int = 8192,
        nce_t: float = 0.4,
        contrast_weight: float = 1,
        reconstruct_weight: float = 1,
        reconstruct_color: bool = True,
        reconstruct_normal: bool = True,
    ):
        super().__init__()
        if not 0 <= mask_rate <= 0.5:
            raise ValueError(
                f"MSC: mask_rate must lie in [0, 0.5], since no place is hidden in both views; got {mask_rate}"
            )
        positive = dict(
            mask_grid_size=mask_grid_size,
            matching_max_k=matching_max_k,
            matching_max_radius=matching_max_radius,
            matching_max_pair=matching_max_pair,
            nce_t=nce_t,
        )
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"MSC: {name} must be positive, got {value}")
        self.mask_grid_size, self.mask_rate = mask_grid_size, mask_rate
        self.mix_prob = (view1_mix_prob, view2_mix_prob)
        self.matching = dict(max_k=matching_max_k, max_radius=matching_max_radius, max_pair=matching_max_pair)
        self.nce_t, self.contrast_weight, self.reconstruct_weight = nce_t, contrast_weight, reconstruct_weight

        self.backbone = MODELS.build(backbone)
        self.mask_token = nn.Parameter(torch.empty(1, backbone_in_channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.color_head = nn.Linear(backbone_out_channels, 3) if reconstruct_color else None
        self.normal_head = nn.Linear(backbone_out_channels, 3) if reconstruct_normal else None

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of one batch: `loss`, `nce_loss`, `color_loss` and `normal_loss` where asked for, and two cosines.

        batch, for each X of 1 and 2: viewX_coord [N, 3], viewX_origin_coord [N, 3] (the same points in metres, before
        what tells the views apart), viewX_feat [N, backbone_in_channels], viewX_offset [B], viewX_grid_coord [N, 3]
        where the backbone needs it, viewX_color and viewX_normal [N, 3] where they are reconstructed.

        `pos_sim` and `neg_sim` are the mean cosines of pairs and non-pairs. Where nothing matches or nothing is hidden
        the loss concerned is 0, with gradient 0.
        Raises: KeyError or ValueError where an entry is missing or does not fit.
        """
        views = [self._view(batch, number) for number in (1, 2)]
        if views[0]["offset"].shape != views[1]["offset"].shape:
            raise ValueError(f"MSC: the views have {len(views[0]['offset'])} and {len(views[1]['offset'])} scenes")
        places = [views[0]["origin_coord"], views[0]["offset"], views[1]["origin_coord"], views[1]["offset"]]
        hidden = cross_masks(*places, self.mask_grid_size, self.mask_rate)
        feats = [self._encode(*each) for each in zip(views, hidden, self.mix_prob, strict=True)]
        match = match_points(*places, **self.matching)
        nce_loss, pos_sim, neg_sim = losses.contrastive_loss(*feats, match, self.nce_t)
        loss = nce_loss * self.contrast_weight
        result = dict(nce_loss=nce_loss, pos_sim=pos_sim, neg_sim=neg_sim)
        hidden_feat = torch.cat([feat[mask] for feat, mask in zip(feats, hidden, strict=True)])
        for name, head, criterion in (
            ("color", self.color_head, losses.color_loss),
            ("normal", self.normal_head, losses.normal_loss),
        ):
            if head is not None:
                target = torch.cat([view[name][mask] for view, mask in zip(views, hidden, strict=True)])
                result[f"{name}_loss"] = criterion(head(hidden_feat), target)
                loss = loss + result[f"{name}_loss"] * self.reconstruct_weight
        return {"loss": loss, **result}

    def _view(self, batch: Mapping[str, Any], number: int) -> View:
        """The entries of one view under their plain names, checked."""
        needed = ["coord", "origin_coord", "feat", "offset"]
        needed += ["color"] if self.color_head is not None else []
        needed += ["normal"] if self.normal_head is not None else []
        for key in needed:
            if f"view{number}_{key}" not in batch:
                raise KeyError(f"MSC: the batch lacks view{number}_{key}; {near_names(f'view{number}_{key}', batch)}")
        view = {key: batch[f"view{number}_{key}"] for key in needed}
        if f"view{number}_grid_coord" in batch:
            view["grid_coord"] = batch[f"view{number}_grid_coord"]
        count = len(view["coord"])
        for key, value in view.items():
            if key != "offset" and len(value) != count:
                raise ValueError(
                    f"MSC: view{number}_{key} has {len(value)} rows where view{number}_coord has {count}; was it not "
                    "sampled with the points? (Update(keys_dict=dict(index_valid_keys=[...])) before GridSample)"
                )
        if view["feat"].shape[1] != self.mask_token.shape[1]:
            raise ValueError(
                f"MSC: view{number}_feat has {view['feat'].shape[1]} columns, backbone_in_channels is {self.mask_token.shape[1]}"
            )
        return view

    def _encode(self, view: View, hidden: Tensor, mix_prob: float) -> Tensor:
        """Backbone features [N, C] of one view, the hidden points showing the mask token."""
        feat = torch.where(hidden[:, None], self.mask_token.to(view["feat"].dtype), view["feat"])
        offset = view["offset"]
        if random.random() < mix_prob:
            offset = torch.cat([offset[1:-1:2], offset[-1:]])
        given = {key: view[key] for key in ("origin_coord", "coord", "grid_coord") if key in view}
        return features_of(self.backbone({**given, "feat": feat, "offset": offset}))
