"""Images for people: depth as colour, features as their principal components, truth beside rendering."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def depth_colors(depth: Tensor, low: float, high: float) -> np.ndarray:
    """[H, W] metres as [H, W, 3] uint8, near bright and far dark; pixels without depth (0) are black."""
    from matplotlib import colormaps

    values = depth.detach().cpu().float().numpy()
    scaled = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    colors = colormaps["magma_r"](scaled)[..., :3]
    colors[values <= 0] = 0
    return (colors * 255).astype(np.uint8)


def principal_components(feature: Tensor, num: int = 3) -> tuple[Tensor, Tensor]:
    """Mean [C] and the `num` directions [C, num] of largest variance of feature [..., C], signs fixed.

    Source: PCA by the eigenvectors of the covariance; the sign of each makes its largest entry positive, so that
    the same features give the same colours in every run.
    """
    flat = feature.reshape(-1, feature.shape[-1]).double()
    mean = flat.mean(0)
    centred = flat - mean
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -num:].flip(1)
    sign = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    return mean.float(), (basis * sign).float()


def feature_colors(feature: Tensor, components: tuple[Tensor, Tensor] | None = None) -> np.ndarray:
    """[H, W, C] features as [H, W, 3] uint8: three principal components stretched between their 2nd and 98th percentile."""
    mean, basis = components or principal_components(feature)
    values = (feature.float() - mean) @ basis
    flat = values.reshape(-1, 3)
    low, high = (torch.quantile(flat[:: max(1, len(flat) // 100_000)], q, dim=0) for q in (0.02, 0.98))
    scaled = ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return (scaled * 255).byte().cpu().numpy()


def image_colors(rgb: Tensor) -> np.ndarray:
    """[H, W, 3] in 0..1 as uint8."""
    return (rgb.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An [h, w, 3] uint8 image enlarged or reduced to [height, width, 3] without smoothing."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST))


def save_side_by_side(path: Path, columns: list[tuple[str, list[np.ndarray]]]) -> np.ndarray:
    """Writes a PNG with a captioned column of equally large images each; returns it as [H, W, 3] uint8."""
    from PIL import Image, ImageDraw

    height, width = columns[0][1][0].shape[:2]
    bar, gap = 14, 4
    rows = max(len(images) for _, images in columns)
    sheet = Image.new("RGB", (len(columns) * (width + gap) - gap, bar + rows * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for c, (caption, images) in enumerate(columns):
        draw.text((c * (width + gap) + 2, 1), caption, fill="black")
        for r, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (c * (width + gap), bar + r * (height + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return np.asarray(sheet)
