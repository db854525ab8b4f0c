"""CrossOver's scene level: one encoder a dimensionality, aligned with the fusion of a scene's objects (Sec. 3.2 and 3.3)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS
from pointcept3m.models.crossover.instance import CrossOverBaseline, Embedding
from pointcept3m.models.crossover.layers import (
    ProjectionHead,
    Standardize,
    rows_of,
    scene_means,
    share_of,
    touch,
    unit,
    width_of,
)
from pointcept3m.models.crossover.losses import ContrastiveLoss
from pointcept3m.models.crossover.scene import SceneFusion
from pointcept3m.models.heads.segmentor import features_of
from pointcept3m.ops.offsets import offset_to_counts
from pointcept3m.utils.registry import near_names

STAGES = ("scene", "unified", "joint")
DIMENSIONS = {"1D": ("text",), "2D": ("image", "floorplan"), "3D": ("point",)}


class LossWeights(nn.Module):
    """alpha, beta and gamma of Eq. 3, learned: the sum over terms of a L + a - 1 - log a, with a = exp(s) and s learned, 0 at the start.

    Free factors would all shrink to 0, which makes any loss small, and factors of a given sum would leave the hardest term for the
    easiest. The paper does not say what keeps its own up; the released code has none (all 1: learned=False). With the terms
    a - 1 - log a, as of uncertainty weighting (Kendall et al., CVPR 2018), a tends to 1 / (1 + L): never above 1, never 0.
    """

    def __init__(self, names: tuple[str, ...], learned: bool):
        super().__init__()
        self.names = names
        log_weight = torch.zeros(len(names))
        if learned:
            self.log_weight = nn.Parameter(log_weight)
        else:
            self.register_buffer("log_weight", log_weight, persistent=False)

    def forward(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(the weighed sum, the factors) of losses by the names of the terms."""
        weights = self.log_weight.exp()
        total = sum(weight * losses[name] for name, weight in zip(self.names, weights, strict=True))
        return total + (weights - 1 - self.log_weight).sum(), {name: weight.detach() for name, weight in zip(self.names, weights, strict=True)}


class ImageEncoder(nn.Module):
    """F_2D of images and floorplans alike (Sec. 3.3): tokens [CLS; mean of patches] through an MLP, the mean over views, a head."""

    def __init__(self, width: int, dim: int, dropout: float = 0.0):
        super().__init__()
        half = max(1, width // 2)
        self.mlp = nn.Sequential(nn.Linear(width, half), nn.GELU(), nn.Linear(half, half))
        self.dropout = nn.Dropout(dropout)
        self.head = ProjectionHead(half, dim, share_of(half, 4), dropout)
        self.half = half

    def forward(self, tokens: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [V, width], offset [B] -> (unit rows [B, dim], bool [B] whether a scene has a view)."""
        mean, known = scene_means(self.mlp(self.dropout(tokens)), offset)
        return self.head(mean), known

    def of_cls(self, tokens: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The release's way with floorplans: the CLS half of a token, straight into the head."""
        mean, known = scene_means(tokens[:, : self.half], offset)
        return self.head(mean), known


@MODELS.register_module("CrossOver-v1m1")
class CrossOver(nn.Module):
    """CrossOver: an object level, its fusion F_S, and encoders of whole scenes that need no objects.

    instance: config of the object level, CrossOver-instance-v1m1 (or the baseline).
    backbone: config of any registered backbone, the 3D encoder; its features [N, backbone_out_channels] are averaged over a
        scene (the release's global pooling of the paper's full-resolution map). None: no 3D encoder.
    widths: image_token, floorplan_token, text_token; images and floorplans share the encoder, so their widths are the same.
    stage: what is trained and by which loss.
        "scene": the fusion alone. F_S of all modalities but one has to find the mean features of that one (the paper names this
            stage and tells no loss; this one is ours).
        "unified": Eq. 3, the fusion and the unified encoders.
        "joint": Eq. 4, Eq. 3 and Eq. 1 together.
    freeze_instance: the object level stays as it is, in eval mode; by default in all stages but "joint".
    fusion: options of `SceneFusion`. loss: options of `ContrastiveLoss`.
    loss_weights: "learned" (Eq. 3: alpha, beta and gamma are learnable; see `LossWeights`) or "fixed", all 1 (the release).
    dropout: in the heads of scenes, and of image tokens before their MLP (ours; the release has none).
    standardize: puts `Standardize` before the encoders of tokens, images and floorplans each by their own mean (ours).
    floorplan: "token" (the paper) or "cls" (the release: its CLS token skips the MLP).

    Within a batch each scene's embedding is its own; scenes may lack any modality.
    """

    task = "retrieval"

    def __init__(
        self,
        instance: Mapping[str, Any],
        widths: Mapping[str, int],
        backbone: Mapping[str, Any] | None = None,
        backbone_out_channels: int = 0,
        dim: int = 768,
        stage: str = "unified",
        freeze_instance: bool | None = None,
        fusion: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        loss_weights: str = "learned",
        floorplan: str = "token",
        standardize: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if stage not in STAGES:
            raise ValueError(f"CrossOver: stage {stage!r} is unknown; {near_names(stage, STAGES)}")
        if loss_weights not in ("learned", "fixed"):
            raise ValueError(f"CrossOver: loss_weights must be 'learned' or 'fixed', got {loss_weights!r}")
        if floorplan not in ("token", "cls"):
            raise ValueError(f"CrossOver: floorplan must be 'token' or 'cls', got {floorplan!r}")
        self.stage, self.floorplan, self.dim = stage, floorplan, dim
        self.freeze_instance = stage != "joint" if freeze_instance is None else freeze_instance
        if stage == "joint" and self.freeze_instance:
            raise ValueError("CrossOver: stage 'joint' trains the object level (Eq. 4); freeze_instance=True contradicts it")
        self.instance = MODELS.build(instance)
        if not isinstance(self.instance, CrossOverBaseline):
            raise TypeError(f"CrossOver: instance must be CrossOver-instance-v1m1 or CrossOver-baseline-v1m1, got {instance.get('type')}")
        if self.instance.dim != dim:
            raise ValueError(f"CrossOver: the object level embeds into {self.instance.dim} dimensions, the scene level into {dim}")
        self.fusion = SceneFusion(self.instance.modalities, dim, **(fusion or {}))
        image, plan = widths.get("image_token", 0), widths.get("floorplan_token", 0)
        if image and plan and image != plan:
            raise ValueError(f"CrossOver: images and floorplans share an encoder, but widths gives {image} and {plan}")
        self.image_width = image or plan
        self.text_width = width_of(widths, "text_token") if widths.get("text_token") else 0
        self.image_encoder = ImageEncoder(self.image_width, dim, dropout) if self.image_width else None
        self.text_encoder = ProjectionHead(self.text_width, dim, dropout=dropout) if self.text_width else None
        tokens = {"image": self.image_width, "floorplan": self.image_width, "text": self.text_width}
        self.standardize = nn.ModuleDict({name: Standardize(width) for name, width in tokens.items() if width}) if standardize else None
        self.backbone = MODELS.build(backbone) if backbone else None
        self.point_head = None
        if self.backbone is not None:
            if backbone_out_channels < 1:
                raise ValueError("CrossOver: backbone_out_channels must be the width of the backbone's features")
            self.point_head = ProjectionHead(backbone_out_channels, dim, dropout=dropout)
        self.loss = ContrastiveLoss(**(loss or {}))
        parts = {"1D": self.text_encoder, "2D": self.image_encoder, "3D": self.point_head}
        self.dimensions = tuple(name for name, part in parts.items() if part is not None)
        if stage != "scene" and not self.dimensions:
            raise ValueError("CrossOver: no scene encoder: give widths of tokens, or a backbone")
        self.loss_weights = LossWeights(self.dimensions, learned=loss_weights == "learned") if self.dimensions else None
        self._freeze()

    def _freeze(self) -> None:
        if self.freeze_instance:
            self.instance.requires_grad_(False)
        if self.stage == "scene":
            for part in (self.image_encoder, self.text_encoder, self.backbone, self.point_head, self.loss_weights):
                if part is not None:
                    part.requires_grad_(False)

    def train(self, mode: bool = True) -> "CrossOver":
        """A frozen object level stays in eval mode: no dropout in what the others learn from."""
        super().train(mode)
        if self.freeze_instance:
            self.instance.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """loss, its parts `<a>_<b>_loss`, temperature, and alpha, beta, gamma as weight_1D, weight_2D, weight_3D."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_instance):
            vectors, known = self.instance.project(batch)
        if self.stage == "scene":
            losses, shown = self._leave_one_out(vectors, known, batch), {}
            total = sum(losses.values())
        else:
            losses, total, shown = self._unified(vectors, known, batch)
        if self.stage == "joint":
            objects = self.instance.align(vectors, known, batch)
            total = total + objects.pop("loss")
            shown |= {f"object_{name}": value for name, value in objects.items()}
        total = total + touch(self.parameters()).to(batch["object_offset"].device)
        detached = {name: loss.detach() for name, loss in losses.items()}
        return {"loss": total, **detached, **shown, "temperature": (1 / self.loss.scale).detach()}

    def _unified(self, vectors: Mapping[str, Tensor], known: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[dict, Tensor, dict]:
        """Eq. 3: F_S with every modality's scene vector; 2D is the sum over images and floorplans."""
        fused, has_objects = self.fuse(vectors, known, batch)
        losses = {}
        for name, (rows, present) in self.encode(batch):
            losses[f"scene_{name}_loss"] = self.loss(fused, rows, has_objects & present)
        terms = {key: sum(losses[f"scene_{name}_loss"] for name in DIMENSIONS[key] if f"scene_{name}_loss" in losses) for key in self.dimensions}
        total, weights = self.loss_weights(terms)
        return losses, total, {f"weight_{name}": weight for name, weight in weights.items()}

    def _leave_one_out(self, vectors: Mapping[str, Tensor], known: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        means = self._means(vectors, known, batch)
        losses = {}
        for name in self.instance.modalities:
            others = {key: (mean, mask & (key != name)) for key, (mean, mask) in means.items()}
            fused, present = self.fusion({key: pair[0] for key, pair in others.items()}, {key: pair[1] for key, pair in others.items()})
            mean, mask = means[name]
            losses[f"others_{name}_loss"] = self.loss(fused, unit(mean, mask), present & mask)
        return losses

    def _means(self, vectors: Mapping[str, Tensor], known: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """The mean over each scene's objects, by modality: f^q of Sec. 3.2."""
        return {name: scene_means(vectors[name], batch["object_offset"], known[name]) for name in self.instance.modalities}

    def fuse(self, vectors: Mapping[str, Tensor], known: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(F_S, unit rows [B, dim], bool [B]) of object embeddings (Eq. 2)."""
        means = self._means(vectors, known, batch)
        return self.fusion({key: pair[0] for key, pair in means.items()}, {key: pair[1] for key, pair in means.items()})

    def encode(self, batch: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """(modality, (unit rows [B, dim], bool [B])) of every scene encoder (Sec. 3.3)."""
        if self.image_encoder is not None:
            yield "image", self.image_encoder(self._tokens(batch, "image", self.image_width), batch["image_offset"])
            tokens, offset = self._tokens(batch, "floorplan", self.image_width), batch["floorplan_offset"]
            yield "floorplan", self.image_encoder(tokens, offset) if self.floorplan == "token" else self.image_encoder.of_cls(tokens, offset)
        if self.text_encoder is not None:
            mean, known = scene_means(self._tokens(batch, "text", self.text_width), batch["text_offset"])
            yield "text", (self.text_encoder(mean), known)
        if self.point_head is not None:
            yield "point", self._points(batch)

    def _tokens(self, batch: Mapping[str, Any], name: str, width: int) -> Tensor:
        rows = rows_of(batch, f"{name}_token", width)
        return rows if self.standardize is None else self.standardize[name](rows)

    def _points(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(unit rows [B, dim], bool [B]) of the clouds; the backbone sees the scenes that have points, and no others."""
        offset = batch["offset"]
        known = offset_to_counts(offset) > 0
        weight = self.point_head[0].weight
        means = weight.new_zeros(len(offset), weight.shape[1], dtype=torch.float32)
        if bool(known.any()):
            present = torch.nonzero(known).flatten()
            output = self.backbone({**batch, "offset": offset[present]})
            pooled = output if getattr(self.backbone, "pools", False) else scene_means(features_of(output), offset[present])[0]
            means = means.index_put((present,), pooled.float())
        return self.point_head(means), known

    def embed_objects(self, batch: Mapping[str, Any]) -> Embedding:
        """As the object level's: (unit rows float32 [O, dim], zeros where not known; bool [O]) by modality."""
        return self.instance.embed_objects(batch)

    def embed_scenes(self, batch: Mapping[str, Any]) -> Embedding:
        """(unit rows float32 [B, dim], zeros where a scene lacks it; bool [B]) by modality, F_S as "scene"."""
        rows, known = {}, {}
        for name, (vectors, present) in self.encode(batch):
            rows[name], known[name] = unit(vectors, present), present
        fused, present = self.fuse(*self.instance.project(batch), batch)
        return {**rows, "scene": unit(fused, present)}, {**known, "scene": present}
