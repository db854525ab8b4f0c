"""Errors that are sentences for a user, told from mistakes in the code. Imports nothing of ours and no torch."""

import copy
import dis
import errno
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
# What a disk says of itself needs no traceback, whoever asked it.
DISK = (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def raised_here(error: BaseException) -> bool:
    """Whether a `raise` statement of this package made the error (or a file is missing or must not be written, or the
    disk is full, whoever opened it).

    A TypeError that Python itself raises inside our code is a mistake of ours, and its traceback is wanted.
    """
    if isinstance(error, FileNotFoundError | FileExistsError) or (isinstance(error, OSError) and error.errno in DISK):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    ours = Path(code.co_filename).resolve().is_relative_to(PACKAGE)
    return ours and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def add_note(error: BaseException, note: str) -> None:
    """Adds a line that is shown after the error's sentence; as BaseException.add_note, which Python 3.10 lacks."""
    error.__notes__ = [*getattr(error, "__notes__", ()), note]


class RaisedElsewhere(Exception):
    """Stands as the cause of an error that another process raised; its text is the traceback there."""


class Failure:
    """An error on its way from one process to another, which `reraise` raises as it was."""

    def __init__(self, error: BaseException):
        self.error = error
        self.trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))

    @classmethod
    def of(cls, error: BaseException) -> "Failure | None":
        """None where the error would not arrive as it is: some classes of errors cannot be pickled and read back."""
        try:
            back = copy.deepcopy(error)  # by the same protocol as pickle's
        except Exception:  # whatever a foreign class raises while it is copied
            return None
        return cls(error) if type(back) is type(error) and str(back) == str(error) else None

    @classmethod
    def carried(cls, make: Callable[[], Any]) -> Any:
        """`make()`, or in its place the Failure of an error that `raised_here`. Other errors are raised."""
        try:
            return make()
        except Exception as error:
            failure = cls.of(error) if raised_here(error) else None
            if failure is None:
                raise
            return failure

    def reraise(self) -> None:
        raise self.error from RaisedElsewhere(f"in a worker process:\n{self.trace}")
