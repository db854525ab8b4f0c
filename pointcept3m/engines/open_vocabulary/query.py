"""Asks a scene: text, an image or a point of it in, the similarity of every point out."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointcept3m.engines.open_vocabulary.scene_embedding import Embedding
from pointcept3m.engines.open_vocabulary.vocabulary import Vocabulary
from pointcept3m.models.text import TextEncoder, embed_labels
from pointcept3m.structures.label_sets import LabelSet
from pointcept3m.utils.files import near_files

NEGATIVES = ("object", "things", "stuff", "texture")
SHARPNESS = 10.0  # of relevancy, as LERF has it
PIECE = 131_072  # points whose similarity to many texts is looked at in one piece
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 50_000_000


class SceneQuery:
    """`query(text | [texts] | image | point)` is the cosine of each point of a scene to what was asked, -1..1.

    A text is embedded as it is written: whoever asks for "somewhere to sit" has said all. Labels of a label set are
    names, not sentences, and go through the `prompt` that the features were meant for (`vocabulary`). On rooms, with
    MiniLM's space, "in a scene" around a free sentence takes a third of its average precision (0.391 to 0.269) and makes
    no difference to the name of a label (0.647 to 0.645): benchmarks/study_query.py.

    relevancy: instead of the cosine, how much likelier the text is than the likest of `negatives`, 0..1 (LERF, Kerr et
    al. 2023, Sec. 3.3). It is meant for spaces in which all cosines are alike (CLIP's); in those of rooms it ranks no better
    (0.647 to 0.632 with MiniLM, 0.612 to 0.517 with the pocket text encoder), so it is an option.
    """

    def __init__(self, embedding: Embedding, encoder: TextEncoder, prompt: str | Sequence[str], negatives: Sequence[str] = NEGATIVES):
        self.embedding, self.encoder, self.prompt = embedding, encoder, prompt
        self.negatives = tuple(negatives)
        self._sentences: dict[tuple[str, str], Tensor] = {}  # what was embedded, by encoder and text
        self.seconds = 0.0  # of the last similarity, without the embedding of the words

    def __call__(self, query: str | Sequence[str] | int | Tensor | NDArray | Path, relevancy: bool = False) -> NDArray[np.float32]:
        """float32 [N], or [K, N] for a list of texts; NaN where nothing is known of a point.

        query: a text; several; an image, as a path or as an array [H, W, 3] uint8; or the number of a point.
        Raises: TypeError, ValueError for an empty text, an image that is none, a point that is not there.
        """
        vectors = self.vectors(query)
        found = self.relevancy(vectors) if relevancy else self.similarity(vectors)
        return found if isinstance(query, (list, tuple)) else found[0]

    def vectors(self, query: str | Sequence[str] | int | Tensor | NDArray | Path) -> Tensor:
        """float32 [K, D]: what is asked for, as unit vectors."""
        if isinstance(query, str):
            return self.texts([query])
        if isinstance(query, bool) or query is None:
            raise TypeError(f"a query is a text, several, an image or the number of a point, got {query!r}")
        if isinstance(query, (int, np.integer)):
            if not 0 <= query < len(self.embedding):
                raise ValueError(f"point {query}: the scene has points 0 to {len(self.embedding) - 1}")
            return self.embedding.vectors(np.array([query]))
        if isinstance(query, (Path, np.ndarray, Tensor)):
            return self.encoder.encode_image(read_image(query))
        if not len(query):
            raise ValueError("a query of no text: wanted at least one")
        return self.texts(query)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [K, D]: texts as they are written. Those asked before are not embedded again."""
        for text in texts:
            if isinstance(text, str) and not text.strip():
                raise ValueError("an empty query: wanted words, such as 'somewhere to sit'")
        texts = [" ".join(text.split()) if isinstance(text, str) else text for text in texts]
        return embed_labels(self.encoder, texts, "{label}", self._sentences)

    def similarity(self, vectors: Tensor) -> NDArray[np.float32]:
        """float32 [K, N]: the cosine of each of `vectors` [K, D] to each point."""
        start = time.perf_counter()
        found = self.embedding.similarity(vectors)
        self.seconds = time.perf_counter() - start
        return found

    def relevancy(self, vectors: Tensor) -> NDArray[np.float32]:
        """float32 [K, N] in 0..1: the least probability of each vector against one of the negatives, over all of them."""
        found = self.similarity(torch.cat([vectors, self.texts(self.negatives)]))
        wanted, others = found[: len(vectors)], found[len(vectors) :]
        best = others.max(axis=0)  # the likest negative leaves the least probability
        return 1 / (1 + np.exp(SHARPNESS * (best - wanted)))

    def vocabulary(self, labels: LabelSet) -> Vocabulary:
        """A label set's words as vectors, in the prompt of the features."""
        return Vocabulary(labels, embed_labels(self.encoder, labels.texts, self.prompt, self._sentences), self.encoder.name, self.prompt)

    def classify(self, vocabulary: Vocabulary) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(the best label int32 [N], -1 where nothing is known; its cosine float32 [N], NaN likewise)."""
        label, score = np.full(len(self.embedding), -1, np.int32), np.full(len(self.embedding), np.nan, np.float32)
        mapping = vocabulary.labels.mapping
        for start in range(0, len(label), PIECE):
            points = slice(start, start + PIECE)
            found = self.embedding.similarity(vocabulary.embedding, points)
            best = np.nan_to_num(found, nan=-2).argmax(axis=0)  # the best word is one of the best label's
            score[points] = np.take_along_axis(found, best[None], axis=0)[0]
            label[points] = np.where(np.isnan(score[points]), -1, mapping[best])
        return label, score

    def rank(self, vocabulary: Vocabulary, points: NDArray[np.int64], number: int = 5) -> list[tuple[str, float]]:
        """The `number` labels that are likest to points on average: (name, mean cosine), the likest first."""
        total = torch.zeros(self.embedding.dim)
        for part in np.array_split(points, -(-len(points) // PIECE)):
            total += self.embedding.vectors(part).sum(0)
        cosine = vocabulary.of_classes((vocabulary.embedding @ total / len(points))[None])[0]
        best = cosine.sort(descending=True, stable=True)
        return [(vocabulary.labels.names[k], float(value)) for k, value in zip(best.indices[:number], best.values, strict=False)]


def read_image(image: Path | NDArray | Tensor | bytes) -> Tensor:
    """An image as float32 [1, 3, H, W] in 0..1: from a file, its bytes, an array uint8 [H, W, 3], or a tensor [3, H, W].

    Raises: FileNotFoundError; ValueError where it is no image, or has more than MAX_PIXELS pixels.
    """
    if isinstance(image, Tensor):
        return image[None] if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image as an array is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return _decode(image)


def _decode(image: Path | bytes) -> Tensor:
    import io

    from PIL import Image, UnidentifiedImageError

    if isinstance(image, Path) and not image.is_file():
        raise FileNotFoundError(f"{image}: no such image; {near_files(image)}")
    name = "the image" if isinstance(image, bytes) else str(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{name}: {picture.width} x {picture.height} pixels, wanted at most {MAX_PIXELS:,} in all")
            return read_image(np.array(picture.convert("RGB")))
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: no image that can be read; wanted a PNG or JPEG") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: is damaged or too large ({error})") from error


