"""Arrays in a safetensors file that says what it holds and notices damage: the one format of all that a job leaves behind.

One entry of metadata, `pointcept3m.<kind>`, is a JSON header with the writer's own words, a digest of itself and one of
the arrays. A file is written whole or not at all, and its arrays are mapped, not loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.utils.files import near_files, replacing

TYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip
_checked: dict[str, tuple[int, int]] = {}  # files whose digest this process compared: size and time of change


@dataclass(frozen=True)
class Kind:
    """What a file holds: its name in the metadata, the version this code writes and reads, what mends a damaged one."""

    name: str  # with underscores: fused_features
    version: int
    again: str  # "fuse its scene again"

    @property
    def entry(self) -> str:
        """The key of the header: one alone, as safetensors writes several in no fixed order."""
        return f"pointcept3m.{self.name}"

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")


def write_checked(path: str | Path, arrays: Mapping[str, NDArray], kind: Kind, header: Mapping[str, Any]) -> None:
    """Writes `arrays` with `header` (what JSON holds), whole or not at all; the folder is made.

    The header's keys "format", "content" and "digest" are this file's own.
    """
    from safetensors.numpy import save_file

    arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    said = {**header, "format": kind.version, "content": _content_digest(arrays)}
    said["digest"] = _header_digest(said)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_file(arrays, part, metadata={kind.entry: json.dumps(said)})


def read_header(path: str | Path, kind: Kind) -> dict[str, Any]:
    """What a file says of itself, its arrays unread. Raises FileNotFoundError; ValueError where it is none of this kind."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of {kind.words}; {near_files(path)}")
    try:
        with safe_open(path, framework="np") as file:  # this checks that the arrays fit the file's size
            header = json.loads((file.metadata() or {}).get(kind.entry, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or no safetensors file ({error})") from error
    if not isinstance(header, dict) or "format" not in header:
        raise ValueError(f"{path}: a safetensors file, but none of {kind.words}")
    if header["format"] != kind.version:
        raise ValueError(f"{path}: written in format {header['format']}, this version reads {kind.version}; {kind.again}")
    if header.get("digest") != _header_digest(header):
        raise ValueError(f"{path}: what the file says of itself does not match its digest: it is damaged; {kind.again}")
    return header


def open_checked(path: str | Path, kind: Kind) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """(arrays as read-only memory maps, header). The content's digest is compared when a process first opens the file.

    Raises: as `read_header`; ValueError where the content is damaged.
    """
    path = Path(path)
    header = read_header(path, kind)
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        table = json.loads(stream.read(length))
    table.pop("__metadata__")
    content = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if path.stat().st_size > 8 + length else np.zeros(0, np.uint8)
    arrays = {}
    for key, entry in table.items():
        first, last = entry["data_offsets"]
        if entry["dtype"] not in TYPES:
            raise ValueError(f"{path}: array {key!r} of an unknown type {entry['dtype']}; the file is damaged or of a newer version")
        arrays[key] = content[first:last].view(np.ndarray).view(TYPES[entry["dtype"]]).reshape(entry["shape"])
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns)
    if _checked.get(str(path)) != stamp:
        if _content_digest(arrays) != header["content"]:
            raise ValueError(f"{path}: the content does not match its digest: the file is damaged; {kind.again}")
        _checked[str(path)] = stamp
    return arrays, header


def _header_digest(header: Mapping[str, Any]) -> str:
    """sha256 (hex) of all that a header says but this digest."""
    said = {key: value for key, value in header.items() if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _content_digest(arrays: Mapping[str, NDArray]) -> str:
    """sha256 (hex) of the arrays."""
    digest = hashlib.sha256()
    for key, value in sorted(arrays.items()):
        digest.update(f"{key} {value.dtype.str} {value.shape};".encode())
        if value.size:  # a view of nothing cannot be cast
            digest.update(memoryview(np.ascontiguousarray(value)).cast("B"))
    return digest.hexdigest()
