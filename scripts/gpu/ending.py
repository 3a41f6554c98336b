"""What a report does when it is asked to end: nothing that it started lives on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from daemons import family

#: Of prctl(2): children of children that end come to this process, not to init, so that it can end them.
PR_SET_CHILD_SUBREAPER = 36
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ending:
    """The first signal ends the run as an exception does, through every `finally`; what cleans up is not disturbed."""

    def __init__(self) -> None:
        #: The exit code that was asked for, or 0.
        self.asked = 0
        self._shields = 0

    def listen(self) -> None:
        """From now on."""
        for number in SIGNALS:
            # `nohup` stays in force.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = 128 + number
        if not self._shields:
            raise SystemExit(self.asked)

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """What is in here runs to its end; a signal that comes meanwhile counts behind it."""
        heard = self.asked
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self.asked and not heard and not self._shields:
            raise SystemExit(self.asked)


def end_children(seconds: float = 20) -> None:
    """Ends whatever this process started, directly or not, and still runs: asked first, then killed."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        asked: set[int] = set()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            while _reaped():
                pass
            alive = family(os.getpid())[1:]
            if not alive:
                return
            # Those too that only appeared when their parent ended.
            for pid in alive:
                if pid not in asked:
                    asked.add(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.02)


def _reaped() -> bool:
    """Whether a child that has ended was taken note of."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False
