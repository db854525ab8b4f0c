"""Reading and writing the two kinds of picture of an RGB-D frame, with errors that name the file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "PPM")  # of frames
PICTURE_FORMATS = (*FORMATS, "WEBP", "BMP", "TIFF", "GIF")  # of what people have
MAX_PIXELS = 50_000_000  # no frame of an RGB-D camera is larger; a header that claims more is damaged


def _open(path: Path, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        image = Image.open(path, formats=formats)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise ValueError(f"{path}: not a readable {', '.join(formats)} image ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{path}: {image.width} x {image.height} pixels; wanted at most {MAX_PIXELS}")
    return image


def _pixels(image: Image.Image, path: Path) -> NDArray:
    try:
        return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: the image is cut short or damaged ({error})") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image, from its header alone."""
    with _open(Path(path)) as image:
        return image.height, image.width


def read_color(path: str | Path) -> NDArray[np.uint8]:
    """An 8-bit picture as [H, W, 3] uint8 RGB. Raises ValueError where it is damaged or not 8-bit."""
    path = Path(path)
    with _open(path) as image:
        if image.mode not in ("RGB", "RGBA", "L", "P"):
            raise ValueError(f"{path}: wanted an 8-bit RGB picture, got mode {image.mode!r}")
        try:
            image = image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: the image is cut short or damaged ({error})") from error
        return _pixels(image, path)


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """A picture as people have it, [H, W, 3] uint8 RGB: turned as its EXIF says, what is transparent on white, 1 bit as black and white.

    Raises: as `read_color`.
    """
    picture = read_with_alpha(path)
    if picture.shape[2] == 3:
        return picture
    alpha = picture[..., 3:].astype(np.float32) / 255
    return np.rint(picture[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def read_with_alpha(path: str | Path) -> NDArray[np.uint8]:
    """As `read_picture`, [H, W, 4] with how opaque a pixel is where the file says it. Raises: as `read_color`."""
    path = Path(path)
    with _open(path, PICTURE_FORMATS) as image:
        if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr"):
            raise ValueError(f"{path}: wanted a picture of 8 bits a channel, or black and white, got mode {image.mode!r}")
        try:
            image = ImageOps.exif_transpose(image)
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: the image is cut short or damaged ({error})") from error
        return _pixels(image, path)


def read_integer_image(path: str | Path, wanted: str = "one integer channel") -> NDArray[np.int32]:
    """A one-channel 8- or 16-bit picture (depth, labels) as [H, W] int32. Raises ValueError for any other."""
    path = Path(path)
    with _open(path) as image:
        mode = image.mode
        pixels = _pixels(image, path)
    if mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N") or pixels.ndim != 2:
        raise ValueError(f"{path}: wanted {wanted}, got mode {mode!r} with shape {pixels.shape}")
    return pixels.astype(np.int32)


def read_depth(
    path: str | Path, units_per_metre: float = 1000.0, invalid: tuple[int, ...] = (0,)
) -> NDArray[np.float32]:
    """A 16-bit depth picture as [H, W] float32 metres, 0 where the sensor saw nothing.

    Args:
        units_per_metre: 1000 for millimetres, 5000 for TUM.
        invalid: raw values that mean "nothing"; 7-Scenes uses 65535 besides 0.

    Raises: ValueError where the picture is not one channel of 16 bits (an 8-bit one has lost its depth).
    """
    path = Path(path)
    with _open(path) as image:
        mode = image.mode
    if mode in ("L", "P", "1", "RGB", "RGBA"):
        raise ValueError(f"{path}: wanted depth as one channel of 16 bits, got an 8-bit image of mode {mode!r}")
    raw = read_integer_image(path, "depth as one channel of 16 bits")
    depth = raw.astype(np.float32) / np.float32(units_per_metre)
    depth[np.isin(raw, invalid)] = 0
    return depth


def write_depth(path: str | Path, depth: NDArray) -> None:
    """Writes metres as a 16-bit PNG of millimetres; what does not fit into 65.535 m becomes 0 (invalid)."""
    millimetres = np.rint(np.nan_to_num(np.asarray(depth, np.float64), nan=0.0, posinf=0.0, neginf=0.0) * 1000)
    millimetres[(millimetres < 0) | (millimetres > 65534)] = 0
    Image.fromarray(millimetres.astype(np.uint16)).save(path)
