"""CUA-O3D: a 3D backbone with one head for each 2D teacher learns their features of the points that cameras saw.

The model knows backbones and losses; where features come from is the data set's business (`SampleTargets`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pointcept3m.models.builder import MODELS
from pointcept3m.models.cua_o3d.losses import DISTILLATION_LOSSES, de_mean
from pointcept3m.models.cua_o3d.uncertainty import build_uncertainty
from pointcept3m.models.heads.segmentor import features_of
from pointcept3m.utils.registry import near_names

CHUNK = 4096  # supervised voxels whose head outputs are in memory at a time
TEMPERATURE = 0.01  # of cosines that become logits; it moves no argmax, only how votes of several views mix


@MODELS.register_module("CUA-O3D-v1m1")
class CUAO3D(nn.Module):
    """The distilled model (CUA-O3D Sec. 3.3, Fig. 3).

    backbone: config of a registered backbone whose forward returns features [N, backbone_out_channels].
    heads: teacher's name -> dict(dim=D_i, loss="cosine" | "l1" | "l2", demean=False, hidden=0). dim is the width of the
        teacher's features. A head is a linear map without bias, as in the released code; `hidden=H` puts H rectified units
        before it, the paper's "simple MLP". The paper's choice is cosine for LSeg (Eq. 1), l1 for DINOv2 (Eq. 2), cosine
        with demean for Stable Diffusion (Eq. 3, 5); the released code runs cosine for all three.
    text_head: the teacher whose space a text encoder shares, which queries are put to; the first one by default.
    uncertainty: config of `build_uncertainty`, or None: the plain sum of Eq. 4.

    Heads and losses see the supervised voxels alone (`target_index`): with 4736 channels for LSeg, DINOv2 and Stable
    Diffusion, outputs at every voxel would need twenty times the backbone's memory.
    """

    task = "distillation"

    def __init__(
        self,
        backbone: Mapping[str, Any],
        backbone_out_channels: int,
        heads: Mapping[str, Mapping[str, Any]],
        text_head: str | None = None,
        uncertainty: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if not heads:
            raise ValueError("CUA-O3D: heads must name at least one teacher")
        self.teachers = tuple(heads)
        self.text_head = text_head or self.teachers[0]
        if self.text_head not in heads:
            raise ValueError(f"CUA-O3D: text_head {self.text_head!r} is none of the heads; {near_names(self.text_head, heads)}")
        settings = {name: _head_settings(name, head) for name, head in heads.items()}
        self.dims = {name: each["dim"] for name, each in settings.items()}
        self.losses = {name: (DISTILLATION_LOSSES[each["loss"]], each["demean"]) for name, each in settings.items()}
        self.backbone = MODELS.build(backbone)
        width = backbone_out_channels
        self.heads = nn.ModuleDict({name: _head(width, each["dim"], each["hidden"]) for name, each in settings.items()})
        self.uncertainty = build_uncertainty(uncertainty, self.teachers, width) if uncertainty else None
        self.register_buffer("vocabulary", None, persistent=False)  # [T, D], and the class of each text:
        self.register_buffer("vocabulary_class", None, persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses, where the batch has targets; `seg_logits`, in evaluation and with a vocabulary.

        batch: what the backbone takes, and target_index [S] int64, the supervised voxels, with target_<teacher> [S, D_i]
        for each head. `loss` is Eq. 10 (with uncertainty) or Eq. 4; `<teacher>_loss` are the means of Eq. 1 to 3; sigmas
        stand beside. seg_logits [N, K]: cosine of each voxel to each of the K texts, divided by 0.01.
        Raises: KeyError or ValueError where targets are missing or do not fit; RuntimeError where there is nothing to do.
        """
        feature = self.point_features(batch)
        result: dict[str, Tensor] = {}
        if self.training or "target_index" in batch:
            result.update(self.distill(feature, batch))
        if not self.training and self.vocabulary is not None:
            result["seg_logits"] = self.similarity(self.project(feature)) / TEMPERATURE
        if not result:
            raise RuntimeError("CUA-O3D: neither targets in the batch nor a vocabulary: call set_vocabulary with text embeddings first")
        return result

    def point_features(self, batch: Mapping[str, Any]) -> Tensor:
        """The backbone's features [N, C], which all heads share."""
        return features_of(self.backbone(dict(batch)))

    def embed(self, batch: Mapping[str, Any], head: str | None = None) -> Tensor:
        """Features [N, D] float32 of every voxel in the space of the teacher `head` (by default `text_head`), not normalised."""
        return self.project(self.point_features(batch), head)

    def project(self, feature: Tensor, head: str | None = None) -> Tensor:
        """Backbone features [n, C] in the space of the teacher `head`: float32 [n, D]."""
        name = head or self.text_head
        if name not in self.heads:
            raise KeyError(f"CUA-O3D: no head {name!r}; {near_names(name, self.heads)}")
        return self.heads[name](feature).float()

    def similarity(self, embedding: Tensor) -> Tensor:
        """The cosine [n, K] float32 of embeddings [n, D] to each class of the vocabulary: to the nearest of its texts."""
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = F.normalize(embedding.float(), dim=-1) @ self.vocabulary.T
        if self.vocabulary_class is None:
            return cosine
        result = cosine.new_full((len(cosine), self.class_count()), -torch.inf)
        return result.scatter_reduce(1, self.vocabulary_class.expand_as(cosine), cosine, "amax")

    def distill(self, feature: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses at the supervised voxels, 0 where there are none; see `forward`."""
        rows = self._rows(feature, batch)
        chosen, losses = feature[rows], {}
        if len(rows) == 0:
            # Nothing to learn, but a gradient of 0 for every parameter: other processes wait for this one's.
            nothing = sum(parameter.sum() for parameter in self.parameters()) * 0 + feature.sum() * 0
            return {"loss": nothing, **{f"{name}_loss": nothing for name in self.teachers}}
        for name in self.teachers:
            target = batch[f"target_{name}"]
            if target.shape != (len(rows), self.dims[name]):
                raise ValueError(f"CUA-O3D: target_{name} is {list(target.shape)}, wanted {[len(rows), self.dims[name]]}; "
                                 f"does heads.{name}.dim fit the teacher's feature files?")  # fmt: skip
            losses[name] = self._compare(name, chosen, target)
        result = {f"{name}_loss": loss.mean() for name, loss in losses.items()}
        if self.uncertainty is None:
            return {"loss": sum(result.values()), **result}
        total, shown = self.uncertainty(losses, feature, rows, batch["offset"])
        return {"loss": total, **result, **shown}

    def _compare(self, name: str, feature: Tensor, target: Tensor) -> Tensor:
        """The losses [S] of the head `name` on features [S, C] with targets [S, D]."""
        criterion, demean = self.losses[name]

        def part(feature: Tensor, target: Tensor) -> Tensor:
            target = target.float()
            return criterion(self.heads[name](feature).float(), de_mean(target) if demean else target)

        if len(feature) <= CHUNK:
            return part(feature, target)
        # Outputs of a head are computed again in the backward pass, a chunk at a time: 40,000 rows of 4736 channels, their
        # norms and their gradients would take gigabytes, and the product is small beside the backbone's.
        parts = zip(feature.split(CHUNK), target.split(CHUNK), strict=True)
        return torch.cat([checkpoint(part, *each, use_reentrant=False, preserve_rng_state=False) for each in parts])

    def _rows(self, feature: Tensor, batch: Mapping[str, Any]) -> Tensor:
        for key in ("target_index", *(f"target_{name}" for name in self.teachers)):
            if key not in batch:
                raise KeyError(f"CUA-O3D: the batch lacks {key}; {near_names(key, batch)}. Does the data set name feature_teachers, "
                               "and do its transforms have SampleTargets and collect the targets?")  # fmt: skip
        rows = batch["target_index"]
        if len(rows) and int(rows.max()) >= len(feature):
            raise ValueError(f"CUA-O3D: target_index reaches voxel {int(rows.max())} of {len(feature)}")
        return rows

    def set_vocabulary(self, embedding: Tensor | None, mapping: Tensor | None = None) -> None:
        """Text embeddings [T, D] whose cosine to each voxel becomes `seg_logits`; None takes them away.

        mapping: int64 [T], the class 0..K-1 that each text speaks for, where several share one; by default text k is class k.
        Raises: ValueError where the embeddings do not have the width of the text head, or the mapping does not fit them.
        """
        if embedding is None:
            self.vocabulary = self.vocabulary_class = None
            return
        width = self.dims[self.text_head]
        if embedding.ndim != 2 or embedding.shape[1] != width:
            raise ValueError(f"CUA-O3D: text embeddings are {list(embedding.shape)}, the head {self.text_head!r} has {width} channels; "
                             "is the text encoder the one of that teacher?")  # fmt: skip
        weight = next(self.heads[self.text_head].parameters())
        if mapping is not None:
            mapping = torch.as_tensor(mapping).long()
            if mapping.shape != (len(embedding),) or not torch.equal(mapping.unique(), torch.arange(int(mapping.max()) + 1)):
                raise ValueError(f"CUA-O3D: mapping must name the class of each of {len(embedding)} texts, each class 0..K-1 at least once")
            identity = torch.equal(mapping, torch.arange(len(mapping)))
            mapping = None if identity else mapping.to(weight.device)
        self.vocabulary = F.normalize(embedding.to(weight.device, torch.float32), dim=-1)
        self.vocabulary_class = mapping

    def class_count(self) -> int | None:
        """K, the number of classes of the vocabulary, or None without one."""
        if self.vocabulary is None:
            return None
        return len(self.vocabulary) if self.vocabulary_class is None else int(self.vocabulary_class.max()) + 1


def _head_settings(name: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"loss": "cosine", "demean": False, "hidden": 0, **cfg}
    known = ("dim", "loss", "demean", "hidden")
    for key in settings:
        if key not in known:
            raise KeyError(f"CUA-O3D: heads.{name} has no {key!r}; {near_names(key, known)}")
    if not isinstance(settings.get("dim"), int) or settings["dim"] < 1:
        raise ValueError(f"CUA-O3D: heads.{name}.dim must be the width of the teacher's features, got {settings.get('dim')!r}")
    if settings["loss"] not in DISTILLATION_LOSSES:
        raise ValueError(f"CUA-O3D: heads.{name}.loss: unknown loss {settings['loss']!r}; {near_names(str(settings['loss']), DISTILLATION_LOSSES)}")
    if "." in name:
        raise ValueError(f"CUA-O3D: the head's name {name!r} must not hold a dot")
    return settings


def _head(width: int, dim: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(width, dim, bias=False)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim, bias=False))
