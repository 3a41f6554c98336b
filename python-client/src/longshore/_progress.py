"""Progress of a load: a bar on a terminal, a callback for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from longshore._records import LoadReport, Progress

#: `True` draws a bar, `False` nothing, `None` a bar when stderr is a terminal; a function gets every message.
ProgressOption = bool | Callable[[Progress], None] | None

_REDRAW_SECONDS = 0.1
_BAR_WIDTH = 24


class Bar:
    """Draws a line over itself on stderr."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label if len(label) <= 40 else "..." + label[-37:]
        self._stream = stream if stream is not None else sys.stderr
        self._drawn_at = 0.0
        self._width = 0

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= _REDRAW_SECONDS:
            self._drawn_at = now
            self._draw(_line(self._label, progress))

    def done(self, report: LoadReport) -> None:
        """The last line, which stays."""
        if report.reattached:
            text = f"{self._label}: in memory already, {format_bytes(report.bytes)}"
        else:
            tiers = ", ".join(f"{name} {format_bytes(count)}" for name, count in report.bytes_by_tier.items() if count)
            text = f"{self._label}: {format_bytes(report.bytes)} in {report.seconds:.2f} s"
            text += f" ({tiers})" if tiers else ""
        self._draw(text)
        self._stream.write("\n")
        self._stream.flush()

    def failed(self) -> None:
        """Clears the line for the error that follows."""
        if self._width:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()

    def _draw(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


class Callback:
    """Passes messages on."""

    def __init__(self, function: Callable[[Progress], None]) -> None:
        self.update = function

    def done(self, report: LoadReport) -> None: ...

    def failed(self) -> None: ...


def observer(option: ProgressOption, label: str) -> Bar | Callback:
    """What `load` tells its progress to."""
    if callable(option):
        return Callback(option)
    if option is None:
        option = sys.stderr is not None and sys.stderr.isatty()
    return Bar(label) if option else Callback(lambda _: None)


def _line(label: str, progress: Progress) -> str:
    done, total = progress.bytes_done, progress.bytes_total
    if not total:
        return f"{label}: {progress.step}"
    part = min(done / total, 1.0)
    filled = int(part * _BAR_WIDTH)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    rate = f" {format_bytes(int(done / progress.elapsed_seconds))}/s" if progress.elapsed_seconds > 0 else ""
    return f"{label}: {progress.step} [{bar}] {part:4.0%} {format_bytes(done)} of {format_bytes(total)}{rate}"


def format_bytes(count: float) -> str:
    """``1536`` -> ``1.5 KB``; powers of 1000."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
