"""The slab sessions of this process: one for each loader, kept between saves, let go of when others need the memory."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from longshore._errors import NotFound, PermissionDenied, Unavailable
from longshore._slabs import SlabSession

_log = logging.getLogger("longshore")

#: How long the loader may take to see that another process has hung up, so that its session can be gone on with.
ADOPT_SECONDS = 2.0
#: How long a loader that went away during the plan, the start, or before the first slab is waited for.
RESTART_SECONDS = 60.0
_PAUSE_SECONDS = 0.02
#: How long a save that is staged, or has failed, may take to let go of its session; it has nothing left to copy then.
LET_GO_SECONDS = 10.0

_sessions: dict[str, SlabSession] = {}
#: By path, the session of a process that this one goes on for.
_adopted: dict[str, str] = {}
_release_after_saves = False
_sessions_lock = threading.Condition(threading.Lock())


@contextlib.contextmanager
def borrowed(
    path: str,
    expected_bytes: int = 0,
    clients: int = 0,
    is_over: Callable[[], bool] = lambda: False,
    deadline: float = math.inf,
) -> Iterator[SlabSession]:
    """The session of this process with the loader of a socket, opened with the first use, for one save.

    `is_over` says whether that save is staged, or has failed: others may know before the thread that copied lets go.
    Raises `Unavailable` when no loader listens, or one comes back too late; `deadline` is a time of `time.monotonic`.
    """
    until = min(deadline, time.monotonic() + RESTART_SECONDS)
    while True:
        try:
            with _sessions_lock:
                session = _sessions.get(path)
                if session is None:
                    session = _sessions[path] = _open(path, expected_bytes, clients)
                session.saves.append(is_over)
            break
        except Unavailable:
            if is_over() or time.monotonic() >= until:
                raise
        time.sleep(_PAUSE_SECONDS)
    try:
        yield session
    finally:
        with _sessions_lock:
            session.saves.remove(is_over)
            _sessions_lock.notify_all()
        if _release_after_saves:
            _take_idle()


def release_staging(*, after_saves: bool | None = None) -> None:
    """Gives the memory that this process's saves are staged in back to the loader, unless a save is using it.

    A process keeps it between its saves, because mapping it, and locking its pages for a GPU, takes longer than many a
    copy. Where `--checkpoint-memory` is small, that can leave too little for another process of the node which saves
    next: call this in the one that does not. The loader has the memory for others within half a minute. The next save
    here asks for it anew. A save uses the memory until `SaveHandle.staged` is done, or it has failed.

    `after_saves` says whether from now on every save of this process gives the memory back when it is staged; None
    leaves that as it is.
    """
    global _release_after_saves  # noqa: PLW0603 - one a process
    if after_saves is not None:
        _release_after_saves = after_saves
    _let_go()
    _take_idle()


def hand_over() -> dict[str, str]:
    """Lets go of the sessions that no save is using, for another process to go on with: their names by socket."""
    _let_go()
    return {path: session.session for path, session in _take_idle().items()}


def adopt(sessions: Mapping[str, str]) -> None:
    """Takes over, with the next save, what another process has let go of by `hand_over`."""
    with _sessions_lock:
        _adopted.update({path: name for path, name in sessions.items() if path not in _sessions})


def close_all() -> None:
    """Hangs up, for the end of a process or a test. What is staged is the loader's to finish."""
    with _sessions_lock:
        found = list(_sessions.values())
        _sessions.clear()
        _adopted.clear()
    for session in found:
        session.close()


def _open(path: str, expected_bytes: int, clients: int) -> SlabSession:
    adopted = _adopted.pop(path, "")
    deadline = time.monotonic() + ADOPT_SECONDS
    while adopted:
        try:
            return SlabSession(path, expected_bytes, clients, adopted)
        except NotFound as error:
            # Not yet, or not any more.
            if time.monotonic() >= deadline:
                _log.info("%s", error)
                break
            time.sleep(_PAUSE_SECONDS)
        except PermissionDenied as error:
            _log.info("%s", error)
            break
    return SlabSession(path, expected_bytes, clients)


def _let_go() -> None:
    """Waits for the threads of saves that are over, and have not let go of their session yet."""

    def is_awaited() -> bool:
        return any(session.saves and all(is_over() for is_over in session.saves) for session in _sessions.values())

    with _sessions_lock:
        if not _sessions_lock.wait_for(lambda: not is_awaited(), LET_GO_SECONDS):
            _log.warning("a save that is over still uses the memory it was staged in: that memory is not given back")


def _take_idle() -> dict[str, SlabSession]:
    """Closes the sessions that nobody uses."""
    with _sessions_lock:
        idle = {path: session for path, session in _sessions.items() if not session.saves}
        for path in idle:
            del _sessions[path]
    for session in idle.values():
        session.close()
    return idle


def _after_fork_in_child() -> None:
    """The session is the parent's: the child's copy of the socket would keep it open after the parent's end."""
    global _sessions, _adopted, _sessions_lock
    for each in _sessions.values():
        connection = each._connection
        if connection is not None:
            connection.close()
    _sessions, _adopted, _sessions_lock = {}, {}, threading.Condition(threading.Lock())


os.register_at_fork(after_in_child=_after_fork_in_child)
# Not those in use: a thread may be copying, until the very end.
atexit.register(_take_idle)
