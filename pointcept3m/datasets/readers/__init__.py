"""Readers of files that others wrote: each checks what it reads and says what is wrong by name."""

from pointcept3m.datasets.readers.ply import Ply, read_ply, write_ply
from pointcept3m.datasets.readers.sens import SensReader, write_sens

__all__ = ["Ply", "SensReader", "read_ply", "write_ply", "write_sens"]
