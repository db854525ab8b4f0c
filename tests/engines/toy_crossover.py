"""A model with CrossOver's interface that trains in a second: one linear map a modality, scenes as means."""

import torch
from torch import nn
from torch.nn import functional as F

from pointcept3m.models.builder import MODELS
from pointcept3m.structures.modality_features import OBJECT_MODALITIES
from tests.datasets.crossover_scenes import WIDTHS


@MODELS.register_module(force=True)
class ToyCrossOver(nn.Module):
    def __init__(self, width=8, bad=False):
        super().__init__()
        self.bad = bad
        self.heads = nn.ModuleDict({name: nn.Linear(size, width) for name, size in WIDTHS.items()})

    def embed_objects(self, batch):
        known = {name: batch["object_known"][:, column] for column, name in enumerate(OBJECT_MODALITIES)}
        rows = {name: F.normalize(self.heads[name](batch[f"object_{name}"]), dim=1) * known[name][:, None] for name in known}
        if self.bad:
            rows["image"] = rows["image"] * float("nan")
        return rows, known

    def embed_scenes(self, batch):
        vectors, known = {}, {}
        for name in ("image", "floorplan", "text"):
            counts = torch.diff(batch[f"{name}_offset"], prepend=torch.zeros_like(batch[f"{name}_offset"][:1]))
            tokens = batch[f"{name}_token"]
            head = self.heads["text" if name == "text" else "image"]
            rows = head(tokens[:, : head.in_features])
            scene = torch.repeat_interleave(torch.arange(len(counts)), counts)
            total = torch.zeros(len(counts), rows.shape[1]).index_add(0, scene, rows)
            known[name] = counts > 0
            vectors[name] = F.normalize(total, dim=1) * known[name][:, None]
        return vectors, known

    def forward(self, batch):
        rows, known = self.embed_objects(batch)
        loss = 0.0
        for name in ("point", "cad", "text"):
            both = known["image"] & known[name]
            logits = rows["image"][both] @ rows[name][both].T / 0.2
            loss = loss + F.cross_entropy(logits, torch.arange(len(logits)))
        return {"loss": loss}
