"""Pointcept's test of one scene, as it does it: numpy, one fragment at a time, spconv. Written anew from its description.

For each augmentation the sample is copied whole, cells are hashed and sorted, and each fragment is shifted, collected and
collated for itself. `Collect` of Pointcept 1.7 builds a tensor of the length of every single point and drops it. Cells are
sorted stably, which Pointcept does not, so that points meet in the same fragments as in ours and predictions can be compared.
"""

import copy
from collections.abc import Iterator

import numpy as np
import peer_transforms
import torch

Sample = dict
ATTRIBUTES = ("coord", "color", "normal")


def augment(sample: Sample, angle: float, scale: float, flip: bool) -> Sample:
    """Turns about z by `angle` half turns, scales, and flips x and y."""
    turn = np.eye(3)
    turn[0, 0] = turn[1, 1] = np.cos(angle * np.pi)
    turn[1, 0], turn[0, 1] = np.sin(angle * np.pi), -np.sin(angle * np.pi)
    for key in ("coord", "normal"):
        sample[key] = np.dot(sample[key], np.transpose(turn))
        if flip:
            sample[key][:, :2] = -sample[key][:, :2]
    sample["coord"] *= scale
    return sample


def fragments(sample: Sample, grid_size: float) -> Iterator[Sample]:
    """GridSample of mode "test": fragment i holds point i of every cell, cells with fewer points from their first on."""
    cells = np.floor(sample["coord"] / np.array(grid_size)).astype(int)
    cells -= cells.min(0)
    key = peer_transforms.FNV_START * np.ones(len(cells), dtype=np.uint64)
    for axis in range(3):
        key *= peer_transforms.FNV_PRIME
        key = np.bitwise_xor(key, cells.astype(np.uint64)[:, axis])
    order = np.argsort(key, kind="stable")
    _, _, counts = np.unique(key[order], return_inverse=True, return_counts=True)
    starts = np.cumsum(np.insert(counts, 0, 0)[:-1])
    for turn in range(counts.max()):
        index = order[starts + turn % counts]
        yield {**{name: sample[name][index] for name in ATTRIBUTES}, "grid_coord": cells[index], "index": index}


def collect(part: Sample) -> Sample:
    """The batch of one fragment."""
    part = {name: torch.from_numpy(value) for name, value in part.items()}
    torch.tensor([row.shape[0] for row in part["coord"]])  # made and dropped, as there
    return {
        "coord": part["coord"].float(),
        "grid_coord": part["grid_coord"],
        "index": part["index"],
        "offset": torch.tensor([len(part["coord"])]),
        "feat": torch.cat([part["color"].float(), part["normal"].float()], 1),
    }


@torch.no_grad()
def predict(sample: Sample, plan: list[tuple[float, float, bool]], grid_size: float, model: torch.nn.Module, classes: int) -> np.ndarray:
    """Classes [N] of the scene's points: the votes of all augmentations in `plan`, (angle, scale, flip) each."""
    sample = peer_transforms.center_shift(True)({name: sample[name].astype(np.float32) for name in ATTRIBUTES})
    sample["color"] = sample["color"] / 255
    votes = torch.zeros(len(sample["coord"]), classes)
    parts = []
    for step in plan:  # the whole list is there before the first forward
        parts += list(fragments(augment(copy.deepcopy(sample), *step), grid_size))
    shift = peer_transforms.center_shift(False)
    batches = [collect(shift(part)) for part in parts]
    for batch in batches:
        probability = torch.softmax(model(batch)["seg_logits"], -1)
        votes[batch["index"]] += probability
    return votes.argmax(1).numpy()
