"""Points as text, one a line: .xyz, .txt, .csv, .asc and .pts, with or without a line of names, as scanners and CloudCompare write them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MARKS = ("#", "//")  # begin a comment; a line of names may lie in one, as CloudCompare writes it
HEAD_BYTES, HEAD_LINES = 1 << 16, 50


def read_text(path: str | Path) -> tuple[NDArray[np.float64], list[str]]:
    """(numbers [N, C], the names of the columns in lower case, or [] where the file has none).

    Columns are parted by blanks, commas, semicolons or tabs. Lines before the first one of numbers may be comments, names,
    or the number of points.

    Raises: ValueError that names the file, and the line where it can: empty, no numbers, rows of differing length.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        raise ValueError(f"{path}: is no text; wanted lines of numbers x y z, maybe red green blue")
    names, skipped, separator = _read_head(path, head.decode("utf-8-sig", "replace").splitlines()[:HEAD_LINES])
    try:
        table = np.loadtxt(path, delimiter=separator, skiprows=skipped, comments=MARKS, ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        where = f" (rows are counted from 0 below line {skipped})" if skipped else ""
        raise ValueError(f"{path}: cannot be read as lines of numbers: {error}{where}") from error
    if names and len(names) != table.shape[1]:
        raise ValueError(f"{path}: names {len(names)} columns ({', '.join(names)}) and has {table.shape[1]}")
    return table, names


def _read_head(path: Path, lines: list[str]) -> tuple[list[str], int, str | None]:
    """(names of the columns, lines before the numbers, what parts them: None is blanks)."""
    names: list[str] = []
    for number, line in enumerate(lines):
        mark = next((mark for mark in MARKS if line.startswith(mark)), "")
        text = line.removeprefix(mark).strip()
        separator = next((sign for sign in ";," if sign in text), None)
        words = [word.strip().strip('"') for word in text.split(separator)]
        if not mark and len(words) > 1 and all(map(_is_number, words)):
            return names, number, separator
        if {"x", "y", "z"} <= set(map(str.lower, words)):
            names = [word.lower() for word in words]
        elif not mark and text and not (len(words) == 1 and words[0].isdigit()):
            raise ValueError(f"{path}: line {number + 1} is {text[:40]!r}; wanted numbers x y z, maybe red green blue, or their names")
    raise ValueError(f"{path}: has no line of numbers among its first {len(lines)}; wanted x y z, maybe red green blue")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
