"""Teacher features on disk, keyed by what went in and checked when they come out."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pointcept3m.utils.files import atomic_write

logger = logging.getLogger(__name__)

FORMAT = "1"


class FeatureCache:
    """`<folder>/<teacher fingerprint>/<first two digits>/<key>.safetensors`, one file per image.

    The key is a sha256 of the teacher's fingerprint (weights and options) and of the image (size and content): an
    image that an augmentation changed is another image, so cache teachers whose images are not augmented. Features
    are float16, or float32 where float16 would overflow; a digest of their bytes stands in the file and is
    compared on reading. What a miss returns has been rounded as the file is, so hits and misses agree to the bit.
    Files are written under another name and renamed: workers may share a folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def __call__(
        self,
        fingerprint: str,
        images: torch.Tensor,
        compute: Callable[[torch.Tensor], torch.Tensor],
        names: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Features of `images` [V, 3, H, W], float32 on their device; `compute` is called on those not on disk."""
        paths = [self.path(fingerprint, image) for image in images]
        labels = names or [path.stem[:12] for path in paths]
        found = [self._read(path, label) for path, label in zip(paths, labels, strict=True)]
        absent = [i for i, feature in enumerate(found) if feature is None]
        if absent:
            computed = compute(images[absent]).cpu()
            for i, feature in zip(absent, computed, strict=True):
                found[i] = self._write(paths[i], feature, labels[i])
        return torch.stack([feature.float() for feature in found]).to(images.device)

    def path(self, fingerprint: str, image: torch.Tensor) -> Path:
        """The file that holds the features of one image [3, H, W]."""
        image = image.detach().cpu().float().contiguous()
        digest = hashlib.sha256(f"{FORMAT} {fingerprint} {tuple(image.shape)};".encode())
        digest.update(image.numpy().tobytes())
        key = digest.hexdigest()
        return self.folder / fingerprint / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path, label: str) -> torch.Tensor | None:
        """The features in `path`; None where the file is missing, or damaged (which is logged)."""
        if not path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                feature = file.get_tensor("feature")
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("cached features of %s are unreadable and computed again (%s: %s)", label, path, error)
            return None
        if metadata.get("digest") != _digest(feature, path.stem):
            logger.warning("cached features of %s do not match their digest and are computed again (%s)", label, path)
            return None
        return feature

    def _write(self, path: Path, feature: torch.Tensor, label: str) -> torch.Tensor:
        """Stores one map [dim, h, w] atomically; returns it as a reader will see it."""
        from safetensors.torch import save

        if not torch.isfinite(feature).all():
            raise ValueError(f"the teacher gave features that are not finite for {label}; nothing was cached")
        half = feature.half()
        feature = (half if torch.isfinite(half).all() else feature.float()).contiguous()
        payload = save({"feature": feature}, metadata={"digest": _digest(feature, path.stem), "name": str(label)})
        atomic_write(path, lambda stream: stream.write(payload))
        return feature


def _digest(feature: torch.Tensor, key: str) -> str:
    """sha256 of the features and of the key they stand under, so that a file renamed to another key is caught."""
    digest = hashlib.sha256(f"{key} {feature.dtype} {tuple(feature.shape)};".encode())
    digest.update(feature.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
