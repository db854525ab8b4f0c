"""The text side of the pocket teacher "text", without its image network."""

from pathlib import Path

import torch
import torch.nn.functional as F

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.teachers.pocket import WEIGHTS, PocketTeacher, PocketText, read_pocket
from pointcept3m.models.text.base import TextEncoder


@TEXT_ENCODERS.register_module()
class PocketTextEncoder(TextEncoder):
    """Free text in the space of `PocketTeacher("text")`, 64-d: hashed character n-grams, no package and no download.

    It knows the words of generated rooms and what is spelt like them; what a made-up or foreign word lands on is
    chance. An image is the mean of the unit features of its pixels.

    weight: another file of `tools/train_pocket_teachers.py --kinds text`.
    """

    reads_images = True

    def __init__(self, weight: str | Path | None = None):
        self.weight = Path(weight) if weight else WEIGHTS / "pocket_text.safetensors"
        weights, metadata = read_pocket(self.weight, "text")
        self.dim, self.name = int(metadata["dim"]), f"pocket_text_{metadata['digest'][:8]}"
        self.network = PocketText(self.dim).eval().requires_grad_(False)
        self.network.load_state_dict({k.removeprefix("text."): v for k, v in weights.items() if k.startswith("text.")})
        self._teacher: PocketTeacher | None = None

    @property
    def image_side(self) -> str:
        return "the pocket teacher 'text', which was trained on generated rooms alone"

    def embed(self, texts: list[str]) -> torch.Tensor:
        return self.network.to(self.device)(texts)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        if self._teacher is None:
            self._teacher = PocketTeacher("text", weight=self.weight)
        return mean_of_pixels(self._teacher, images)


def mean_of_pixels(teacher: PocketTeacher, images: torch.Tensor) -> torch.Tensor:
    """[V, dim]: what a text-aligned teacher says of a whole image [V, 3, H, W], the mean of its unit features."""
    return F.normalize(teacher(images), dim=1).mean((2, 3))
