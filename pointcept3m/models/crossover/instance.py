"""CrossOver's object level: objects of a scene in one space, whatever modality shows them (Sec. 3.1, Eq. 1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS
from pointcept3m.models.crossover.layers import (
    ProjectionHead,
    Standardize,
    choose_pairs,
    rows_of,
    scene_means,
    share_of,
    touch,
    unit,
    width_of,
)
from pointcept3m.models.crossover.losses import ContrastiveLoss
from pointcept3m.models.crossover.spatial_transformer import SpatialTransformer
from pointcept3m.ops.offsets import offset_to_batch
from pointcept3m.structures.modality_features import OBJECT_MODALITIES

Embedding = tuple[dict[str, Tensor], dict[str, Tensor]]


@MODELS.register_module("CrossOver-baseline-v1m1")
class CrossOverBaseline(nn.Module):
    """The Instance Baseline: a projection head for each modality over its frozen encoder, each object for itself.

    widths: widths of the frozen features: object_image, object_point, object_cad, object_text.
    dim: width of the common space (768). hidden: units of the heads, by modality; by default half of the width.
    base, pairs: Eq. 1 aligns every modality with `base`; pairs="all" aligns all of them, or a list of pairs.
    loss: options of `ContrastiveLoss`. standardize: puts `Standardize` before heads and transformer (ours; the paper has none).

    Modalities that take part are those that `widths` gives a width to.

    At paper size 2,809,344 parameters and a temperature.
    """

    task = "retrieval"

    def __init__(
        self,
        widths: Mapping[str, int],
        dim: int = 768,
        base: str = "image",
        pairs: str | Sequence[Sequence[str]] = "base",
        hidden: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        loss: Mapping[str, Any] | None = None,
        standardize: bool = False,
    ):
        super().__init__()
        self.modalities = tuple(name for name in OBJECT_MODALITIES if widths.get(f"object_{name}"))
        if len(self.modalities) < 2:
            raise ValueError(f"CrossOver: objects need two modalities to be aligned, widths gives {self.modalities or 'none'}")
        self.widths = {name: width_of(widths, f"object_{name}") for name in self.modalities}
        self.dim, self.pairs = dim, choose_pairs(pairs, base, self.modalities)
        hidden = hidden or {}
        self.heads = nn.ModuleDict({name: ProjectionHead(width, dim, hidden.get(name), dropout) for name, width in self.widths.items()})
        self.standardize = nn.ModuleDict({name: Standardize(width) for name, width in self.widths.items()}) if standardize else None
        self.loss = ContrastiveLoss(**(loss or {}))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """loss (Eq. 1: the sum over pairs), `<a>_<b>_loss` of each pair, temperature. The batch is CrossOverDataset's."""
        vectors, known = self.project(batch)
        return self.align(vectors, known, batch)

    def align(self, vectors: Mapping[str, Tensor], known: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Eq. 1 over the object embeddings of a batch."""
        scene = offset_to_batch(batch["object_offset"])
        losses = {f"{a}_{b}_loss": self.loss(vectors[a], vectors[b], known[a] & known[b], scene) for a, b in self.pairs}
        total = sum(losses.values()) + touch(self.parameters()).to(vectors[self.modalities[0]].device)
        return {"loss": total, **{name: loss.detach() for name, loss in losses.items()}, "temperature": (1 / self.loss.scale).detach()}

    def known(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Which objects have which modality: bool [O] each."""
        if "object_known" not in batch:
            rows_of(batch, "object_known", len(OBJECT_MODALITIES), torch.bool)
        return {name: batch["object_known"][:, OBJECT_MODALITIES.index(name)] for name in self.modalities}

    def project(self, batch: Mapping[str, Any]) -> Embedding:
        """(unit rows [O, dim], known bool [O]) by modality. Rows that are not known are what a head makes of zeros."""
        known = self.known(batch)
        return {name: self.heads[name](self.tokens(name, batch, known[name])) for name in self.modalities}, known

    def tokens(self, name: str, batch: Mapping[str, Any], known: Tensor) -> Tensor:
        """What the head of a modality sees [O, width]."""
        rows = rows_of(batch, f"object_{name}", self.widths[name])
        return rows if self.standardize is None else self.standardize[name](rows, known)

    def embed_objects(self, batch: Mapping[str, Any]) -> Embedding:
        """(unit rows float32 [O, dim], zeros where not known; bool [O]) by modality."""
        vectors, known = self.project(batch)
        return {name: torch.where(known[name][:, None], rows.float(), 0.0) for name, rows in vectors.items()}, known

    def embed_scenes(self, batch: Mapping[str, Any]) -> Embedding:
        """(unit rows float32 [B, dim], bool [B]) by modality: the mean of a scene's objects, as the paper compares it (Sec. 4.2)."""
        vectors, known = self.embed_objects(batch)
        means = {name: scene_means(rows, batch["object_offset"], known[name]) for name, rows in vectors.items()}
        return {name: unit(*mean) for name, mean in means.items()}, {name: mean[1] for name, mean in means.items()}


@MODELS.register_module("CrossOver-instance-v1m1")
class CrossOverInstance(CrossOverBaseline):
    """Instance CrossOver: point tokens see their scene before they are projected (Sec. 3.1).

    transformer: options of `SpatialTransformer`; its width is that of the point features.
    cad_location: adds the place and size of a CAD model in its own axes to its feature, as the released code does; the paper
        gives meshes no location.
    hidden: as `CrossOverBaseline`, but the image's is a quarter of its width, as in the release (384 of 1536).
    Other arguments as `CrossOverBaseline`.

    At paper size 11,008,928 parameters with location="concat" and 10,713,632 with "add", and a temperature. The release's 19.6 M (19,615,744) are the
    latter and what it never runs: a second transformer for meshes, whose location map alone is used, and two MLPs.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        transformer: Mapping[str, Any] | None = None,
        cad_location: bool = False,
        hidden: Mapping[str, int] | None = None,
        **kwargs: Any,
    ):
        narrow = {"image": share_of(widths["object_image"], 4)} if widths.get("object_image") else {}
        super().__init__(widths, hidden={**narrow, **(hidden or {})}, **kwargs)
        if "point" not in self.modalities:
            raise ValueError("CrossOver: the object level needs point features; widths lacks 'object_point'")
        self.transformer = SpatialTransformer(dim=self.widths["point"], **(transformer or {}))
        self.cad_place = None
        if cad_location:
            width = width_of(widths, "object_cad")
            self.cad_place = nn.Sequential(nn.Linear(6, width), nn.LayerNorm(width))

    def tokens(self, name: str, batch: Mapping[str, Any], known: Tensor) -> Tensor:
        rows = super().tokens(name, batch, known)
        if name == "point":
            return self.transformer(rows, rows_of(batch, "object_box", 6), known, batch["object_offset"])
        if name == "cad" and self.cad_place is not None:
            return rows + self.cad_place(rows_of(batch, "cad_box", 6))
        return rows
