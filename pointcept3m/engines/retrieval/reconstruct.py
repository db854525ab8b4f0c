"""How well objects come back from their embeddings: decoded Gaussians beside what retrieval and mean shapes give, and what they cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointcept3m.engines.loader import to_device
from pointcept3m.models.crossover.decoder import ObjectDecoder, balls, chamfer, orbit, render
from pointcept3m.structures.gaussians import Gaussians

VIEWS = 4  # pictures of an object that are compared, a quarter turn apart
LIFT = 0.4  # radians above the horizon
SOLID = 0.3  # opacity from which a Gaussian's centre counts as a point of the shape
BYTES_OF_POINT = 3 * 4 + 3  # float32 place, uint8 colour
BYTES_OF_GAUSSIAN = (3 + 4 + 3 + 1 + 3) * 4


@dataclass
class Objects:
    """K objects with points: embeddings modality -> [K, D], known modality -> bool [K], cloud and color [K, S, 3], labels and names
    (scene/id) [K]."""

    vectors: dict[str, Tensor]
    known: dict[str, Tensor]
    cloud: Tensor
    color: Tensor
    labels: list[str]
    names: list[str]

    def take(self, rows: Sequence[int] | Tensor) -> "Objects":
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return Objects(
            {m: v[rows] for m, v in self.vectors.items()}, {m: v[rows] for m, v in self.known.items()}, self.cloud[rows], self.color[rows],
            [self.labels[row] for row in rows.tolist()], [self.names[row] for row in rows.tolist()],
        )  # fmt: skip


@torch.no_grad()
def gather_objects(model: ObjectDecoder, loader: Iterable[Mapping[str, Any]], check_stop: Any = lambda: None) -> Objects:
    """All objects of a loader over ObjectCloudDataset that have points, on the CPU. Raises ValueError where there are none."""
    device = next(model.parameters()).device
    parts: dict[str, list] = {key: [] for key in ("vectors", "known", "cloud", "color")}
    labels, names = [], []
    for batch in loader:
        check_stop()
        batch = to_device(batch, device)
        vectors, known = model.embed_objects(batch)
        keep = torch.nonzero(batch["object_has_cloud"]).flatten()
        parts["vectors"].append({m: v[keep].cpu() for m, v in vectors.items()})
        parts["known"].append({m: v[keep].cpu() for m, v in known.items()})
        parts["cloud"].append(batch["object_cloud"][keep].cpu())
        parts["color"].append(batch["object_cloud_color"][keep].cpu())
        scene = torch.bucketize(keep, batch["object_offset"], right=True).tolist()
        flat = [label for each in batch["labels"] for label in each]
        labels += [flat[row] for row in keep.tolist()]
        names += [f"{batch['name'][number]}/{identity}" for number, identity in zip(scene, batch["object_id"][keep].tolist(), strict=True)]
    if not labels:
        raise ValueError("reconstruction: no object has points; ObjectCloudDataset's min_points says how many it needs")
    joined = {key: {m: torch.cat([part[m] for part in parts[key]]) for m in model.modalities} for key in ("vectors", "known")}
    return Objects(**joined, cloud=torch.cat(parts["cloud"]), color=torch.cat(parts["color"]), labels=labels, names=names)


class Judge:
    """Compares shapes with an object's own points: pictures from VIEWS sides, and chamfer distance."""

    def __init__(self, point_scale: float, size: int = 64):
        self.point_scale, self.size = point_scale, size
        self.cameras = orbit(torch.arange(VIEWS) / VIEWS + 1 / 8, torch.full((VIEWS,), LIFT), size)

    def pictures(self, gaussians: Gaussians) -> Tensor:
        """[VIEWS, size, size, 3]."""
        return render(gaussians, *self.cameras, self.size)[0]

    def ball(self, cloud: Tensor, color: Tensor) -> Gaussians:
        """Points [S, 3] as what is rendered."""
        return balls(cloud, color, self.point_scale)

    def score(self, made: Gaussians, cloud: Tensor, wanted: Tensor) -> dict[str, float]:
        """psnr (dB, of all pixels of all pictures `wanted`) and chamfer (half sides of the object) of one shape."""
        error = (self.pictures(made) - wanted).square().mean().clamp(min=1e-10)
        solid = made.means[made.opacities >= SOLID]
        solid = solid if len(solid) else made.means
        return dict(psnr=float(-10 * torch.log10(error)), chamfer=float(chamfer(solid[None], cloud[None])[0]))


def mean_clouds(train: Objects, count: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """label -> (points [count, 3], colours) drawn from all training objects of the label, and under "" of all."""
    generator = torch.Generator().manual_seed(seed)
    groups: dict[str, list[int]] = {"": list(range(len(train.labels)))}
    for row, label in enumerate(train.labels):
        groups.setdefault(label, []).append(row)
    size, made = train.cloud.shape[1], {}
    for label, rows in groups.items():
        owner = torch.tensor(rows)[torch.randint(len(rows), (count,), generator=generator)]
        point = torch.randint(size, (count,), generator=generator)
        made[label] = (train.cloud[owner, point], train.color[owner, point])
    return made


def nearest(train: Objects, test: Objects, modality: str) -> Tensor:
    """For each test object the training object with the most similar embedding in `modality`: rows int64 [K]."""
    similarity = test.vectors[modality] @ train.vectors[modality].T
    return similarity.masked_fill(~train.known[modality][None], -2).argmax(1)


@torch.no_grad()
def compare(model: ObjectDecoder, train: Objects, test: Objects, size: int = 64, check_stop: Any = lambda: None) -> dict[str, dict[str, float]]:
    """Scores psnr, chamfer and objects of each way to get a test object back, means over the objects that have the modality.

    "decoded <m>": Gaussians of its embedding in m · "nearest <m>": points of the training object nearest in m · "class mean" and
    "mean": points drawn from training objects of its label (which is given away), of all · "own points": others of its own points,
    the limit of what can be reached. Clouds have S / 2 points each, the decoder its Gaussians. Objects of a label that training lacks have no "class mean".
    """
    device = next(model.parameters()).device
    judge, half = Judge(model.point_scale, size), test.cloud.shape[1] // 2
    means = mean_clouds(train, half)
    decoded = {m: _decode(model, rows, device) for m, rows in test.vectors.items()}
    near = {m: nearest(train, test, m) for m in test.vectors}
    found: dict[str, list[dict[str, float]]] = {}
    for row, label in enumerate(test.labels):
        check_stop()
        cloud, color = test.cloud[row], test.color[row]
        # the target is one half of the object's points, "own points" the other
        target, wanted = cloud[:half], judge.pictures(judge.ball(cloud[:half], color[:half]))
        ways = {"own points": judge.ball(cloud[half:], color[half:]), "mean": judge.ball(*means[""])}
        if label in means:
            ways["class mean"] = judge.ball(*means[label])
        for m in test.vectors:
            if test.known[m][row]:
                ways[f"decoded {m}"] = decoded[m][row]
                other = int(near[m][row])
                ways[f"nearest {m}"] = judge.ball(train.cloud[other, :half], train.color[other, :half])
        for way, made in ways.items():
            found.setdefault(way, []).append(judge.score(made, target, wanted))
    order = ["own points", *(f"{way} {m}" for way in ("decoded", "nearest") for m in test.vectors), "class mean", "mean"]
    return {
        way: {**{key: float(np.mean([each[key] for each in found[way]])) for key in ("psnr", "chamfer")}, "objects": len(found[way])}
        for way in order if way in found
    }  # fmt: skip


def storage(model: ObjectDecoder, points: Sequence[int]) -> dict[str, float]:
    """Bytes: of an embedding in float32, of the decoded Gaussians, of an object's coloured points (the mean over `points`, their
    numbers), of the decoder that all objects share; and how many objects it takes until decoder and embeddings are smaller."""
    embedding, cloud = 4.0 * model.instance.dim, float(np.mean(points)) * BYTES_OF_POINT
    decoder = 4.0 * sum(p.numel() for name, p in model.named_parameters() if not name.startswith("instance."))
    worth = decoder / (cloud - embedding) if cloud > embedding else float("inf")
    return dict(embedding=embedding, gaussians=float(model.gaussians * BYTES_OF_GAUSSIAN), points=cloud, ratio=cloud / embedding, decoder=decoder, worth_from=worth)


def text_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as aligned lines."""
    lines = [f"{'from':20s}{'PSNR dB':>9s}{'chamfer':>9s}{'objects':>9s}"]
    lines += [f"{way:20s}{each['psnr']:9.2f}{each['chamfer']:9.4f}{each['objects']:9d}" for way, each in results.items()]
    return "\n".join(lines) + "\n"


@torch.no_grad()
def sheet(model: ObjectDecoder, train: Objects, objects: Objects, size: int = 96) -> list[tuple[str, list[np.ndarray]]]:
    """Columns for `pictures.save_side_by_side`: the object's points, decoded from each modality, the nearest training object by the
    first of them. What an object lacks is grey."""
    device = next(model.parameters()).device
    judge = Judge(model.point_scale, size)

    def picture(gaussians: Gaussians) -> np.ndarray:
        return (judge.pictures(gaussians)[0].clamp(0, 1) * 255).round().byte().numpy()

    columns = [("points", [picture(judge.ball(*pair)) for pair in zip(objects.cloud, objects.color, strict=True)])]
    nothing = np.full((size, size, 3), 200, np.uint8)
    for m, rows in objects.vectors.items():
        made = _decode(model, rows, device)
        images = [picture(one) if known else nothing for one, known in zip(made, objects.known[m].tolist(), strict=True)]
        columns.append((f"from {m}", images))
    first = next(iter(objects.vectors))
    near = nearest(train, objects, first).tolist()
    columns.append((f"nearest {first}", [picture(judge.ball(train.cloud[row], train.color[row])) for row in near]))
    return columns


def _decode(model: ObjectDecoder, rows: Tensor, device: torch.device, chunk: int = 64) -> list[Gaussians]:
    training = model.training
    model.eval()
    made = [_cpu(one) for part in rows.split(chunk) for one in model.decode(part.to(device)).each()]
    model.train(training)
    return made


def _cpu(gaussians: Gaussians) -> Gaussians:
    return Gaussians(*(getattr(gaussians, key).cpu() for key in ("means", "quats", "scales", "opacities", "colors")))
