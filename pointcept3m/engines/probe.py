"""Linear probing: how well a linear layer on frozen features names the class of each point.

Source: GaussianCross Sec. 4.2.1 (protocol of Sonata). The backbone is in eval mode and its batch-norm statistics
stay as pretraining left them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.engines import metrics
from pointcept3m.engines.loader import to_device


@torch.no_grad()
def extract_features(
    backbone: nn.Module, loader: Iterable[Mapping[str, Any]], device: torch.device, max_points: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features [P, C] float32 and classes [P] int64 of the labelled points of all batches, on the CPU.

    max_points: at most so many points a batch, drawn at random by `seed`; None takes all. The backbone is in eval
    mode meanwhile and comes back in the mode it had.
    """
    training = backbone.training
    backbone.eval()
    generator = torch.Generator().manual_seed(seed)
    features, segments = [], []
    for batch in loader:
        batch = to_device(batch, device)
        feature, segment = backbone(batch).float().cpu(), batch["segment"].cpu()
        labelled = (segment >= 0).nonzero().squeeze(-1)
        if max_points is not None and len(labelled) > max_points:
            labelled = labelled[torch.randperm(len(labelled), generator=generator)[:max_points]]
        features.append(feature[labelled])
        segments.append(segment[labelled])
    backbone.train(training)
    return torch.cat(features), torch.cat(segments)


def fit_linear_probe(
    feature: Tensor, segment: Tensor, num_classes: int, steps: int = 600, batch_size: int = 8192, lr: float = 0.02, seed: int = 0
) -> nn.Linear:
    """The linear layer [C] -> [num_classes] with the lowest cross-entropy on the given points, by AdamW.

    feature [P, C], segment [P] in 0..num_classes - 1. Features are standardised while fitting, since backbones differ
    in scale by orders of magnitude; the standardisation is folded into the layer that is returned.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = feature.mean(0), feature.std(0).clamp(min=1e-6)
    feature = (feature - mean) / std
    layer = nn.Linear(feature.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(feature), (min(batch_size, len(feature)),), generator=generator)
        loss = F.cross_entropy(layer(feature[rows]), segment[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        layer.weight.div_(std)
        layer.bias.sub_(layer.weight @ mean)
    return layer


def linear_probe(
    backbone: nn.Module,
    train_loader: Iterable[Mapping[str, Any]],
    val_loader: Iterable[Mapping[str, Any]],
    num_classes: int,
    device: torch.device,
    max_points: int = 20_000,
    steps: int = 600,
    seed: int = 0,
) -> dict[str, Any]:
    """Segmentation scores (see `metrics.segmentation_scores`) of a linear layer on the frozen backbone."""
    layer = fit_linear_probe(*extract_features(backbone, train_loader, device, max_points, seed), num_classes, steps, seed=seed)
    feature, segment = extract_features(backbone, val_loader, device)
    with torch.no_grad():
        prediction = torch.cat([layer(chunk).argmax(1) for chunk in feature.split(65536)])
    return metrics.segmentation_scores(metrics.confusion_matrix(prediction, segment, num_classes))
