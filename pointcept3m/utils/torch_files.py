"""Files that `torch.save` wrote with plain data in them, read without running code from them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

KINDS = ("float32", "float64", "uint8", "int16", "int32", "int64")


def load_plain(path: str | Path) -> Any:
    """What `torch.save` wrote: tensors, plain values and containers, numpy arrays of KINDS; on the CPU.

    Raises: ValueError, which names the file, where it is damaged or holds anything else.
    """
    # What numpy needs to rebuild an array. Numpy 1 and 2 have it in modules of different names.
    rebuild = np.empty(0).__reduce__()[0]
    allowed = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in KINDS)]
    allowed += [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        # Of an object that it refuses, torch says how to run it all the same, over ten lines; its name is enough.
        said = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line.split(" was not an allowed")[0].strip() for line in said if "Unsupported" in line), said[0])
        raise ValueError(f"{path}: not a plain torch file of numbers ({reason})") from error
