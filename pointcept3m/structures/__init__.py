"""What flows between datasets and models: keys, points, cameras, scenes, Gaussians."""

from pointcept3m.ops.offsets import offset_to_batch, offset_to_counts
from pointcept3m.structures.gaussians import Gaussians
from pointcept3m.structures.keys import KEYS, Key, index_operator, key_of, kind_of, register_key
from pointcept3m.structures.scene import Frame, Scene, heldout

__all__ = [
    "KEYS",
    "Frame",
    "Gaussians",
    "Key",
    "Scene",
    "heldout",
    "index_operator",
    "key_of",
    "kind_of",
    "offset_to_batch",
    "offset_to_counts",
    "register_key",
]
