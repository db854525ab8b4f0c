"""A set of 3D Gaussians, as a rasterizer takes it. Knows nothing about networks or cameras."""

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """G Gaussian primitives of one scene (GaussianCross Eq. 13).

    means [G, 3] world units · quats [G, 4] wxyz, unit length · scales [G, 3] standard deviations in world units
    · opacities [G] in 0..1 · colors [G, 3] RGB in 0..1, or None · features [G, D] unbounded, or None.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.means)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != count:
                raise ValueError(f"Gaussians: {field.name} has {len(value)} rows where means has {count}")

    def __len__(self) -> int:
        return len(self.means)
