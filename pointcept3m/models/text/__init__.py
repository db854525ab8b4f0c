"""Text encoders: the other half of a text-aligned teacher. Importing this imports no optional package."""

from pointcept3m.models.text.base import TextEncoder, embed_labels
from pointcept3m.models.text.blip import BlipTextEncoder
from pointcept3m.models.text.open_clip import OpenClipTextEncoder
from pointcept3m.models.text.pocket import PocketTextEncoder
from pointcept3m.models.text.referral import ReferralEncoder
from pointcept3m.models.text.sentence import SentenceEncoder

__all__ = [
    "BlipTextEncoder",
    "OpenClipTextEncoder",
    "PocketTextEncoder",
    "ReferralEncoder",
    "SentenceEncoder",
    "TextEncoder",
    "embed_labels",
]
