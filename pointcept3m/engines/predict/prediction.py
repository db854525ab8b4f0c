"""What a prediction is: classes on the points that went in, as a table, a legend and a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import atomic_write, replacing, try_folder
from pointcept3m.utils.palette import UNLABELLED, class_colors

OUTPUTS = (".ply", ".npy", ".npz", ".las", ".laz")
MANY = 30  # names of classes that no point has


@dataclass
class Prediction:
    """The classes of a scan's points, in the order in which they went in.

    label: int32 [N], -1 where a point has no finite coordinates. confidence: float32 [N], the probability of that class.
    instance: int32 [N], the number of the object, -1 none; None for models that tell no objects apart. classes,
    scores: [I], the class of each object and how sure it is. names, palette: of the classes, uint8 [K, 3] RGB.
    coord, color: as they went in. guesses: what was assumed about the scan, a sentence each.
    """

    coord: NDArray = field(repr=False)
    color: NDArray | None = field(repr=False)
    label: NDArray[np.int32] = field(repr=False)
    confidence: NDArray[np.float32] = field(repr=False)
    names: list[str]
    palette: NDArray[np.uint8] = field(repr=False)
    instance: NDArray[np.int32] | None = field(default=None, repr=False)
    classes: NDArray[np.int32] | None = field(default=None, repr=False)
    scores: NDArray[np.float32] | None = field(default=None, repr=False)
    guesses: list[str] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def counts(self) -> dict[str, int]:
        """Points by class name, of all classes, in their order."""
        return dict(zip(self.names, np.bincount(self.label[self.label >= 0], minlength=len(self.names)).tolist(), strict=True))

    @property
    def class_color(self) -> NDArray[np.uint8]:
        """uint8 [N, 3]: the colour of each point's class, grey where it has none."""
        return class_colors(self.label, self.palette)

    def table(self) -> str:
        """Points and share by class, most first, with the mean confidence and the number of objects where there are any."""
        total = max(1, len(self))
        summed = np.bincount(self.label[self.label >= 0], self.confidence[self.label >= 0], minlength=len(self.names))
        objects = None if self.classes is None else np.bincount(self.classes, minlength=len(self.names))
        width = max(map(len, [*self.names, "unlabelled"]))
        lines = [f"{'class':<{width}}  {'points':>11}  {'share':>7}  confidence" + ("" if objects is None else "  objects")]
        for k in sorted(range(len(self.names)), key=lambda k: -self.counts[self.names[k]]):
            count = self.counts[self.names[k]]
            if count:
                line = f"{self.names[k]:<{width}}  {count:>11,}  {percent(count, total):>7}  {summed[k] / count:>10.2f}"
                lines.append(line + ("" if objects is None else f"  {objects[k]:>7}"))
        none = [name for name, count in self.counts.items() if not count]
        if bad := int((self.label < 0).sum()):
            lines.append(f"{'unlabelled':<{width}}  {bad:>11,}  {percent(bad, total):>7}")
        shown = ", ".join(none[:MANY]) + (f", ... {len(none) - MANY} more" if len(none) > MANY else "")
        return "\n".join(lines + ([f"no points: {shown}"] if none else []))

    def save(self, path: str | Path, confidence: bool = False, overwrite: bool = True) -> list[Path]:
        """Writes the prediction to `path`, by its suffix, and a legend beside it; returns the files.

            .ply   x y z as they went in, red green blue of the class, label, maybe instance and confidence; the scan's own
                   colours as scan_red scan_green scan_blue
            .las .laz  the same, with label, instance, confidence as extra dimensions
            .npz   label, names, palette, maybe instance, instance_class, instance_score, confidence
            .npy   label alone

        Raises: as `check_output`; OSError of the disk, and the old file is as before.
        """
        path = check_output(path, overwrite)
        write = {".ply": self._write_ply, ".npy": self._write_npy, ".npz": self._write_npz}.get(path.suffix.lower(), self._write_las)
        write(path, confidence)
        return [path, self.save_legend(path.with_name(path.stem + ".legend.png"))]

    def save_legend(self, path: str | Path) -> Path:
        """Writes a PNG that says which colour is which class, and its share of the points; only classes that occur."""
        path = Path(path)
        rows = [(name, color, count) for (name, count), color in zip(self.counts.items(), self.palette, strict=True) if count]
        if bad := int((self.label < 0).sum()):
            rows.append(("unlabelled", np.array(UNLABELLED), bad))
        picture = draw_legend(sorted(rows, key=lambda row: -row[2]), len(self))
        atomic_write(path, lambda stream: picture.save(stream, format="PNG"))
        return path

    def _fields(self, confidence: bool) -> dict[str, NDArray]:
        fields = {"label": self.label}
        if self.instance is not None:
            fields["instance"] = self.instance
        if confidence:
            fields["confidence"] = self.confidence
        return fields

    def _write_ply(self, path: Path, confidence: bool) -> None:
        from pointcept3m.datasets.readers.ply import needs_double, write_ply

        fields = self._fields(confidence)
        if self.color is not None:
            original = to_bytes(self.color)
            fields.update({f"scan_{name}": original[:, i] for i, name in enumerate(("red", "green", "blue"))})
        with replacing(path) as temporary:
            write_ply(temporary, self.coord, self.class_color, double=needs_double(self.coord), **fields)

    def _write_las(self, path: Path, confidence: bool) -> None:
        from pointcept3m.datasets.readers.las import write_las

        with replacing(path) as temporary:
            write_las(temporary, self.coord, self.class_color, **self._fields(confidence))

    def _write_npy(self, path: Path, confidence: bool) -> None:
        atomic_write(path, lambda stream: np.save(stream, self.label, allow_pickle=False))

    def _write_npz(self, path: Path, confidence: bool) -> None:
        arrays = {**self._fields(confidence), "names": np.array(self.names), "palette": self.palette}
        if self.classes is not None:
            arrays.update(instance_class=self.classes, instance_score=self.scores)
        atomic_write(path, lambda stream: np.savez_compressed(stream, **arrays))


def check_output(path: str | Path, overwrite: bool = False, suffixes: Sequence[str] = OUTPUTS) -> Path:
    """`path`, if it can be written: one of `suffixes`, its folder there or made, nothing in the way.

    Raises: IsADirectoryError for a folder; ValueError for another suffix; FileExistsError where there is a file and `overwrite` is false;
        PermissionError or another OSError where the folder cannot be written; ImportError where laspy is needed.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"--out {path}: is a folder; wanted the name of a file in it, such as {path / 'scan.pred.ply'}")
    if path.suffix.lower() not in suffixes:
        came = f"got {path.suffix!r}" if path.suffix else "this has no suffix"
        raise ValueError(f"--out {path}: wanted a file name that ends in one of {', '.join(suffixes)}; {came}")
    if path.suffix.lower() in (".las", ".laz"):
        from pointcept3m.datasets.readers.las import import_laspy

        import_laspy()
    if path.exists() and not overwrite:
        raise FileExistsError(f"--out {path}: exists; pass --overwrite to replace it, or another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try_folder(path.parent)
    except OSError as error:
        raise type(error)(f"--out {path}: its folder cannot be written to ({error.strerror or error})") from error
    return path


def percent(count: int, total: int) -> str:
    """A share with one decimal; what is there is never 0."""
    return "< 0.1 %" if 0 < count < total / 2000 else f"{100 * count / total:.1f} %"


def to_bytes(color: NDArray) -> NDArray[np.uint8]:
    """Colours of any range as uint8."""
    from pointcept3m.datasets.scan import COLOR_RANGES, guess_color_range

    if color.dtype == np.uint8:
        return color
    gain, offset = COLOR_RANGES[guess_color_range(color.dtype, float(np.nanmin(color)), float(np.nanmax(color)))]
    return np.clip(np.rint(np.nan_to_num(color.astype(np.float32)) * gain + offset), 0, 255).astype(np.uint8)


def draw_legend(rows: Sequence[tuple[str, NDArray, int]], total: int):
    """An image with a line for each (name, colour, number of points)."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(18)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    texts = [(name, percent(count, max(1, total))) for name, _, count in rows]
    name_width = int(max((measure.textlength(name, font) for name, _ in texts), default=0))
    share_width = int(max((measure.textlength(share, font) for _, share in texts), default=0))
    row, pad, swatch = 30, 14, 34
    picture = Image.new("RGB", (3 * pad + swatch + name_width + 2 * pad + share_width, 2 * pad + row * max(1, len(rows))), "white")
    draw = ImageDraw.Draw(picture)
    for i, ((_, color, _), (name, share)) in enumerate(zip(rows, texts, strict=True)):
        top = pad + i * row
        draw.rectangle((pad, top + 4, pad + swatch, top + row - 5), fill=tuple(int(v) for v in color), outline="black")
        draw.text((2 * pad + swatch, top + row / 2), name, fill="black", font=font, anchor="lm")
        draw.text((picture.width - pad, top + row / 2), share, fill="black", font=font, anchor="rm")
    return picture
