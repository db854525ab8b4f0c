"""Files that are written whole or not at all, and error sentences about files that are not there."""

import difflib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp-"


def atomic_write(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Calls `write(stream)` on a temporary neighbour of `path`, flushes it to disk, and renames it to `path`.

    Whoever looks at `path`, also after a crash or a full disk, finds the old file or the new one.
    Raises: whatever `write` or the disk raises; the temporary file is removed and `path` is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f"{path.name}{TEMPORARY}", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(path.parent)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary neighbour of `path` with its suffix, for writers that want a name; renamed to `path` at the end.

    As with `atomic_write`, an error in between leaves `path` as it was.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}{TEMPORARY}", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        _remove(name)
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A fresh temporary folder beside `path`, which takes the place of `path` when the block ends well.

    Whoever looks at `path` finds the old folder, or nothing, or the whole new one. After an error the temporary folder
    is removed and `path` is as before.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def atomic_copy(source: str | Path, path: str | Path) -> None:
    """Makes `path` the same file as `source` is now: by a hard link where the disk has them, else by copying.

    Safe as long as `source` is only ever replaced (`atomic_write`), never written in place.
    """
    source, path = Path(source), Path(path)
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    _remove(temporary)
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
        _remove(temporary)  # rename of two links to one file leaves both names
        _sync_folder(path.parent)
    except OSError:
        _remove(temporary)
        with open(source, "rb") as stream:
            atomic_write(path, lambda target: _copy_stream(stream, target))


def remove_leftovers(folder: str | Path) -> None:
    """Deletes temporary files that a killed writer left in `folder`."""
    for path in Path(folder).glob(f"*{TEMPORARY}*"):
        _remove(path)


def try_folder(folder: str | Path) -> None:
    """Writes a file in `folder` that is gone again. Raises the OSError of a disk that is full or not to be written to."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"x")
        stream.flush()


def file_stem(name: object) -> str:
    """A scene's name as a file may be called: it comes from a folder's, and must not lead out of ours."""
    return str(name).replace("/", "_").replace("\\", "_").lstrip(".")


def near_files(path: str | Path) -> str:
    """The end of an error sentence about a missing `path`: what does exist near it."""
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir():
            folder = folder.parent
        return f"the folder {path.parent} does not exist, {folder.resolve()} does"
    names = sorted(entry.name for entry in folder.iterdir() if TEMPORARY not in entry.name)
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if not near:
        near = [name for name in names if name.endswith(path.suffix)][:5] if path.suffix else names[:5]
    return f"near it: {', '.join(str(folder / name) for name in near)}" if near else f"nothing like it lies in {folder}"


def near_configs(path: str | Path, dataset: str = "", *roots: str | Path) -> str:
    """The end of an error sentence about a config `path` that is not there, or a name in configs/`dataset`.

    Like names in its folder; else the same or a like name in configs/*/ of the working folder or of `roots`; else what
    its folder has, where that is one of configs/; else which folders there are.
    """
    path = Path(path)
    if len(path.parts) == 1 and dataset:
        path = Path("configs", dataset, path)
    known = {str(file.relative_to(base)) for base in map(Path, (".", *roots)) for file in base.glob("configs/*/*.py")}
    known = sorted({name for name in known if "/_" not in name} | {str(file) for file in path.parent.glob("*.py") if len(path.parts) > 1})
    by_stem = {name: Path(name).stem for name in known}
    beside = [name for name in known if Path(name).parent == path.parent]
    near = _near_stems(path.stem, {name: by_stem[name] for name in beside}) or _near_stems(path.stem, by_stem)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if beside:
        return f"{path.parent} has {', '.join(Path(name).name for name in beside)}"
    folders = sorted({str(Path(name).parent) for name in known})
    return f"configs lie in {', '.join(folders)}" if folders else "there is no folder configs/ here"


def _near_stems(word: str, stems: dict[str, str]) -> list[str]:
    """At most three names whose stem is `word`, or else like it, the likest first."""
    same = [name for name, stem in stems.items() if stem == word]
    likest = difflib.get_close_matches(word, set(stems.values()), n=3, cutoff=0.7)
    return (same or [name for stem in likest for name in stems if stems[name] == stem])[:3]


def _copy_stream(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(1 << 20):
        target.write(chunk)


def _remove(path: str | Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network disks cannot flush a folder; the file itself is flushed
        pass
    finally:
        os.close(handle)
