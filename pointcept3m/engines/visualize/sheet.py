"""Figures of pictures: titles, legends, colour bars, crosses, and sheets of panels with a row for every scene."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import atomic_write
from pointcept3m.utils.palette import score_colors

Image = NDArray[np.uint8]
INK = (34, 34, 34)
GAP = 12  # pixels between panels


@dataclass(frozen=True)
class ClassLegend:
    """A swatch and a name for each class: names [K], colors uint8 [K, 3]."""

    title: str
    names: Sequence[str]
    colors: NDArray[np.uint8]


@dataclass(frozen=True)
class ScaleLegend:
    """A colour bar from `low` to `high` in matplotlib's colour map `colormap`."""

    title: str
    low: float
    high: float
    colormap: str = "inferno"


Legend = ClassLegend | ScaleLegend


@functools.lru_cache(maxsize=8)
def font(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib and has the letters of most languages."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def text_width(text: str, size: int) -> int:
    """Pixels that `text` takes."""
    return int(np.ceil(font(size).getlength(text)))


def draw_cross(image: Image, x: float, y: float, size: int = 13, color: tuple[int, int, int] = (230, 0, 0)) -> Image:
    """The picture with a cross at (x, y), edged in white so that it shows on any colour; [H, W, 3] uint8."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for width, reach, ink in ((8, size + 2, (255, 255, 255)), (4, size, color)):
        for sign in (1, -1):
            draw.line((x - reach, y - sign * reach, x + reach, y + sign * reach), fill=ink, width=width)
    return np.asarray(picture)


def crop_together(images: Sequence[Image], margin: int = 6) -> list[Image]:
    """The pictures without the white rim that all of them share; all white, they stay as they are."""
    seen = np.any([(image != 255).any(axis=2) for image in images], axis=0)
    if not seen.any():
        return list(images)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    return [image[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1] for image in images]


def legend_picture(legend: Legend, width: int, size: int = 15) -> Image:
    """A legend as a picture `width` pixels wide and as high as it needs; entries flow over several lines."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    line, swatch, start = int(size * 1.7), size, text_width(legend.title, size) + size
    if isinstance(legend, ScaleLegend):
        sheet = Pillow.new("RGB", (width, line), "white")
        draw = ImageDraw.Draw(sheet)
        low, high = f"{legend.low:.2f}", f"{legend.high:.2f}"
        draw.text((0, line // 2), legend.title, INK, font(size), anchor="lm")
        left = start + text_width(low, size) + size // 2
        length = max(20, min(16 * size, width - left - text_width(high, size) - size))
        bar = score_colors(np.linspace(0, 1, length), name=legend.colormap)
        draw.text((start, line // 2), low, INK, font(size), anchor="lm")
        sheet.paste(Pillow.fromarray(np.repeat(bar[None], swatch, axis=0)), (left, (line - swatch) // 2))
        draw.text((left + length + size // 2, line // 2), high, INK, font(size), anchor="lm")
        return np.asarray(sheet)
    places, x, y = [], start, 0
    for name in legend.names:
        need = swatch + size // 3 + text_width(name, size) + size
        if x + need > width and x > start:
            x, y = start, y + line
        places.append((x, y))
        x += need
    sheet = Pillow.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((0, line // 2), legend.title, INK, font(size), anchor="lm")
    for (x, y), name, color in zip(places, legend.names, np.asarray(legend.colors).tolist(), strict=True):
        top = y + (line - swatch) // 2
        draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=tuple(color))
        draw.text((x + swatch + size // 3, y + line // 2), name, INK, font(size), anchor="lm")
    return np.asarray(sheet)


def compose(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[Image]]], legends: Sequence[Legend] = (), size: int = 20) -> Image:
    """A sheet with a column for each title and a row (name, pictures) for each scene, legends below; [H, W, 3] uint8.

    The pictures of a row are equally large. Raises: ValueError where a row has another number of pictures than titles.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    for name, images in rows:
        if len(images) != len(titles):
            raise ValueError(f"row {name!r} has {len(images)} pictures for {len(titles)} titles")
    name_bar = int(size * 1.7) if len(rows) > 1 or rows[0][0] else 0
    title_bar = int(size * 1.8) if any(titles) else 0
    widest = max(image.shape[1] for _, images in rows for image in images)
    columns = [max(widest, text_width(title, size) + GAP) for title in titles]
    width = name_bar + sum(columns) + GAP * (len(columns) + 1)
    heights = [max(images[0].shape[0], text_width(name, size) + GAP if name_bar else 0) for name, images in rows]
    keys = [legend_picture(legend, width - name_bar - 2 * GAP, max(13, int(size * 0.8))) for legend in legends]
    height = title_bar + sum(heights) + GAP * (len(rows) + 1) + sum(key.shape[0] + GAP // 2 for key in keys) + (GAP if keys else 0)
    sheet = Pillow.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = np.cumsum([name_bar + GAP, *(column + GAP for column in columns)])
    for title, left, column in zip(titles, lefts, columns, strict=False):
        draw.text((left + column // 2, title_bar // 2 + 2), title, INK, font(size), anchor="mm")
    top = title_bar + GAP
    for (name, images), row_height in zip(rows, heights, strict=True):
        if name_bar:
            sheet.paste(_upright(name, row_height, name_bar, size), (GAP // 2, top))
        for image, left, column in zip(images, lefts, columns, strict=False):
            sheet.paste(Pillow.fromarray(image), (int(left) + (column - image.shape[1]) // 2, top + (row_height - image.shape[0]) // 2))
        top += row_height + GAP
    for key in keys:
        sheet.paste(Pillow.fromarray(key), (name_bar + GAP, top))
        top += key.shape[0] + GAP // 2
    return np.asarray(sheet)


def _upright(text: str, height: int, width: int, size: int) -> Any:
    """A line of text that runs upwards, `height` long."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    strip = Pillow.new("RGB", (height, width), "white")
    ImageDraw.Draw(strip).text((height // 2, width // 2), text, INK, font(size), anchor="mm")
    return strip.rotate(90, expand=True)


def save_png(path: str | Path, image: Image) -> None:
    """Writes a PNG, whole or not at all."""
    from PIL import Image as Pillow

    atomic_write(path, lambda stream: Pillow.fromarray(image).save(stream, format="PNG"))
