"""The pocket encoder of referrals: who stands where, without weights."""

import hashlib
import re
from functools import lru_cache

import numpy as np
import torch

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.text.base import TextEncoder

ARTICLES = {"a", "an", "the"}
# Words that say little by themselves; in pairs and triples with others they count in full.
SMALL = {"is", "are", "it", "this", "that", "there", "which", "of", "to", "and", "in", "at", "with", "one"}
WEIGHTS = {1: 1.0, 2: 0.8, 3: 0.5}  # of words, neighbouring pairs and triples


@TEXT_ENCODERS.register_module()
class ReferralEncoder(TextEncoder):
    """Sentences to unit vectors, 256-d, that tell "the chair left of the desk" from "the desk left of the chair".

    Words, pairs and triples of neighbouring words, and the three-letter pieces of words (a plural is like its singular) each
    have a fixed vector of +1 and -1, the bits of their blake2 digest: a random projection of hashed counts that is the
    same on every machine. Nothing is learned: a synonym is another word. It stands in for BLIP where nothing may be
    downloaded.
    """

    dim = 256
    name = "referral_v1"

    def embed(self, texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([_vector(text) for text in texts])).to(self.device)


def referral_words(text: str) -> list[str]:
    """Lower-case words without articles, in order. Raises ValueError where there is none."""
    words = re.findall(r"[^\W_]+", text.lower())
    if not words:
        raise ValueError(f"no word in the text {text!r}")
    return [word for word in words if word not in ARTICLES] or words


def _vector(text: str) -> np.ndarray:
    words = referral_words(text)
    total = np.zeros(ReferralEncoder.dim)
    for length, weight in WEIGHTS.items():
        for start in range(len(words) - length + 1):
            gram = words[start : start + length]
            total += weight * (0.3 if length == 1 and gram[0] in SMALL else 1.0) * _signs(" ".join(gram))
    for word in words:
        if word not in SMALL:
            marked = f"<{word}>"
            pieces = [marked[i : i + 3] for i in range(len(marked) - 2)]
            total += 0.6 * sum(_signs(f"#{piece}") for piece in pieces) / len(pieces) ** 0.5
    return total.astype(np.float32)


@lru_cache(maxsize=65536)
def _signs(key: str) -> np.ndarray:
    """The digest's bits as float64 [256] of +1 and -1."""
    digest = hashlib.blake2b(key.encode(), digest_size=ReferralEncoder.dim // 8).digest()
    return np.unpackbits(np.frombuffer(digest, dtype=np.uint8)) * 2.0 - 1.0
