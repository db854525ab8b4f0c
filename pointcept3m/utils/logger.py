"""The log of a run: a plain file, the console, and one line of progress with the time left."""

import logging
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from . import comm

NAME = "pointcept3m"
FORMAT = "[%(asctime)s %(levelname)s] %(message)s"


class ConsoleHandler(logging.StreamHandler):
    """Writes to the present stderr (stdout is for results) and, on a terminal, clears the progress line first."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        # A traceback belongs into the file; the console gets the sentence.
        info, text = (record.exc_info, record.exc_text) if getattr(record, "file_only_traceback", False) else (None, None)
        if info is None:
            return super().format(record)
        record.exc_info = record.exc_text = None
        try:
            return super().format(record)
        finally:
            record.exc_info, record.exc_text = info, text

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream.isatty():
            self.stream.write("\r\x1b[K")
        super().emit(record)


def get_root_logger(log_file: str | Path | None = None, log_level: int = logging.INFO, file_mode: str = "a") -> logging.Logger:
    """The project's logger; with `log_file` it writes there too. Ranks other than 0 say errors only."""
    logger = logging.getLogger(NAME)
    logger.propagate = False
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        console = ConsoleHandler()
        console.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
        logger.addHandler(console)
    logger.setLevel(log_level if comm.is_main_process() else logging.ERROR)
    if log_file is not None and comm.is_main_process():
        for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_file, mode=file_mode)
        file.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(file)
    return logger


def close_log_file() -> None:
    """Stops writing to the log file."""
    logger = logging.getLogger(NAME)
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()


def format_seconds(seconds: float) -> str:
    """`h:mm:ss` or `m:ss`."""
    seconds = max(0, round(seconds))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """How much of `total` is done and how long the rest takes.

    On a terminal one line is redrawn; elsewhere a plain line comes at most every `interval` seconds and at the end.
    The time left is the time per piece over the last pieces, times the pieces left.
    """

    def __init__(self, total: int, name: str, stream: TextIO | None = None, interval: float = 15.0):
        self.total, self.name, self.interval = total, name, interval
        self.stream = stream or sys.stderr
        self.done = 0
        self.seconds_each: float | None = None
        self.start = self.last = self.last_shown = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.stream.isatty() and comm.is_main_process():
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all is done; None before the first piece is."""
        return None if self.seconds_each is None else self.seconds_each * (self.total - self.done)

    def update(self, number: int = 1, text: str = "") -> None:
        """Notes that `number` more pieces are done."""
        now = time.monotonic()
        each = (now - self.last) / max(number, 1)
        self.done += number
        # A moving average over some 20 pieces follows a changing pace without jumping about.
        weight = max(0.05, 1.0 / self.done)
        self.seconds_each = each if self.seconds_each is None else self.seconds_each + weight * (each - self.seconds_each)
        self.last = now
        self.show(text)

    def show(self, text: str = "") -> None:
        """Draws the line, unless it was drawn a moment ago."""
        if not comm.is_main_process():
            return
        now = time.monotonic()
        tty = self.stream.isatty()
        finished = self.done >= self.total
        if not finished and now - self.last_shown < (0.1 if tty else self.interval):
            return
        self.last_shown = now
        left = f"took {format_seconds(now - self.start)}" if finished else f"{format_seconds(self.seconds_left or 0)} left"
        line = f"{self.name} {self.done}/{self.total}, {left}{'  ' + text if text else ''}"
        self.stream.write(f"\r\x1b[K{line}" if tty and not finished else f"\r\x1b[K{line}\n" if tty else f"{line}\n")
        self.stream.flush()
