"""Linear probing: how well a linear layer on frozen features names the class of each point.

Source: GaussianCross Sec. 4.2.1 (protocol of Sonata). The backbone is in eval mode and its batch-norm statistics
stay as pretraining left them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.engines import metrics
from pointcept3m.engines.loader import to_device
from pointcept3m.utils.registry import near_names


class HeadFeatures(nn.Module):
    """The features of one head of a distilled model, as a backbone gives its own: [N, D] of a batch.

    Raises: TypeError for a model without heads; KeyError, with near names, for one that it has not.
    """

    def __init__(self, model: nn.Module, head: str):
        super().__init__()
        if not (hasattr(model, "embed") and hasattr(model, "heads")):
            raise TypeError(f"linear probe: head={head!r}, but a {type(model).__name__} has no heads; wanted a distilled model (CUA-O3D)")
        if head not in model.heads:
            raise KeyError(f"linear probe: no head {head!r}; {near_names(head, model.heads)}")
        self.model, self.head = model, head

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.model.embed(batch, self.head)


@torch.no_grad()
def labelled_features(
    backbone: nn.Module, loader: Iterable[Mapping[str, Any]], device: torch.device, max_points: int | None = None, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch, the features [P, C] float32 and classes [P] int64 of the labelled points, on the CPU.

    max_points: at most so many points a batch, drawn at random by `seed`; None takes all. The backbone is in eval
    mode meanwhile and comes back in the mode it had.
    """
    training = backbone.training
    backbone.eval()
    generator = torch.Generator().manual_seed(seed)
    for batch in loader:
        batch = to_device(batch, device)
        feature, segment = backbone(batch).float().cpu(), batch["segment"].cpu()
        labelled = (segment >= 0).nonzero().squeeze(-1)
        if max_points is not None and len(labelled) > max_points:
            labelled = labelled[torch.randperm(len(labelled), generator=generator)[:max_points]]
        yield feature[labelled], segment[labelled]
    backbone.train(training)


def check_classes(segment: Tensor, num_classes: int, name: str) -> None:
    """Raises ValueError, which calls the data set `name`, where there is no label, or one beyond the classes."""
    if len(segment) == 0:
        raise ValueError(f"linear probe: no point of {name} is labelled; every segment is -1")
    largest = int(segment.max())
    if largest >= num_classes:
        raise ValueError(f"linear probe: {name} has class {largest}, but {num_classes} classes are named, 0..{num_classes - 1}")


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
    names: tuple[str, str] = ("the training data", "the validation data"),
) -> dict[str, Any]:
    """Segmentation scores (see `metrics.segmentation_scores`) of a linear layer on the frozen backbone.

    names: what an error calls the two data sets. Raises: ValueError where one has no labelled point or a class of
    `num_classes` or more.
    """
    rows = list(labelled_features(backbone, train_loader, device, max_points, seed))
    if not rows:
        raise ValueError(f"linear probe: {names[0]} is empty")
    feature, segment = (torch.cat(part) for part in zip(*rows, strict=True))
    check_classes(segment, num_classes, names[0])
    layer = fit_linear_probe(feature, segment, num_classes, steps, seed=seed)
    # Scores are added up scene by scene: the features of a whole validation split would not fit into memory.
    confusion, found = torch.zeros(num_classes, num_classes, dtype=torch.int64), []
    for feature, segment in labelled_features(backbone, val_loader, device):
        if len(segment):
            check_classes(segment, num_classes, names[1])
            with torch.no_grad():
                confusion += metrics.confusion_matrix(layer(feature).argmax(1), segment, num_classes)
        found.append(len(segment))
    if not sum(found):
        raise ValueError(f"linear probe: no point of {names[1]} is labelled; every segment is -1" if found else f"linear probe: {names[1]} is empty")
    return metrics.segmentation_scores(confusion)
