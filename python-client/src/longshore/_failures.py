"""Saves that failed, and who was told; saves that this process knows to be committed.

A training loop may never look at the handles that it gets. So a failure that nobody asked for is logged when its handle
is dropped, and the next save of the run warns of it.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import OrderedDict

from longshore._errors import SaveFailedWarning

_log = logging.getLogger("longshore")

#: Failures that are kept for the next save of their run, and steps that are known to be committed.
UNTOLD_MAX = 64
COMMITTED_MAX = 4096


class Failure:
    """That a save failed, once it has, and whether anybody heard of it. Has no traceback, which would keep tensors."""

    def __init__(self, uri: str, step: int) -> None:
        self.uri = uri
        self.step = step
        self.reason: str | None = None
        #: Somebody was given the error, or made the save end.
        self.is_told = False

    def __str__(self) -> str:
        return f"the save of step {self.step} to {self.uri} failed: {self.reason}"

    def set(self, reason: str) -> None:
        """The save has failed; only the first reason counts."""
        with _lock:
            if self.reason is None:
                self.reason = reason
                if not self.is_told:
                    _untold.append(self)
                    del _untold[:-UNTOLD_MAX]

    def dropped(self) -> None:
        """Nobody has the handle any more."""
        if self.reason is not None and not self.is_told:
            _log.error("%s; nobody had asked for its outcome", self)


_lock = threading.Lock()
_untold: list[Failure] = []
_committed: OrderedDict[tuple[str, int], None] = OrderedDict()


def warn_of(uri: str, stacklevel: int = 2) -> None:
    """Warns of the saves of a run that failed without anybody having asked, each once."""
    with _lock:
        found = [each for each in _untold if _run(each.uri) == _run(uri)]
        for each in found:
            _untold.remove(each)
    for each in found:
        if not each.is_told:
            each.is_told = True
            warnings.warn(str(each), SaveFailedWarning, stacklevel=stacklevel + 1)


def add_committed(uri: str, step: int) -> None:
    """A step was seen to be committed."""
    with _lock:
        _committed[_run(uri), step] = None
        if len(_committed) > COMMITTED_MAX:
            _committed.popitem(last=False)


def may_be_committed(uri: str, step: int) -> bool:
    """Whether a step was seen to be committed; it may have been deleted since."""
    with _lock:
        return (_run(uri), step) in _committed


def forget_committed(uri: str, step: int) -> None:
    """A step is not committed any more."""
    with _lock:
        _committed.pop((_run(uri), step), None)


def forget_all() -> None:
    """For tests."""
    with _lock:
        _untold.clear()
        _committed.clear()


def _run(uri: str) -> str:
    """Alike for the URL as it was given and as the loader writes it."""
    return uri.removeprefix("file://").rstrip("/")
