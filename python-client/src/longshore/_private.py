"""A loader of this process's own, for when none is running on the machine.

It is started with the first load and ends by itself with the last lease: there is nothing to stop, even when this
process is killed, because the kernel closes the leases then. Forked children may go on using what was loaded.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
from typing import IO

from longshore import _binary
from longshore._address import Address
from longshore._errors import BY_EXIT_CODE, Cancelled, Error, Internal, NotFound, Timeout, Unavailable

#: It may have a large cache folder to look through.
START_SECONDS = 60.0
#: How long a loader that is ending may take for it.
END_SECONDS = 5.0
_LINE_BYTES_MAX = 64 << 10
_LOG_TAIL_BYTES = 2000


class PrivateLoader:
    """A loader process, its socket folder, and a thread that collects both when the process ends."""

    def __init__(self, binary: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="longshore-private-")
        self._owner = os.getpid()
        self._ended = threading.Event()
        # Has no name: the folder holds the sockets alone, and the loader removes it even when this process is killed.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = self._start(binary)
        except BaseException:
            self._log.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        try:
            self.address = self._wait_until_ready(binary)
        except BaseException:
            self._process.kill()
            self._collect()
            raise
        atexit.register(self._remove_folder)
        threading.Thread(target=self._collect, name="longshore-private-loader", daemon=True).start()

    @property
    def pid(self) -> int:
        """The loader's process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def ends_within(self, seconds: float) -> bool:
        """Waits for the end of the process; whether it came."""
        return self._ended.wait(seconds)

    def _start(self, binary: str) -> subprocess.Popen[bytes]:
        command = [binary, "loader", "--private", "--socket-dir", self._folder, "--remove-socket-dir"]
        try:
            # A session of its own: Ctrl-C at a terminal is this process's to handle.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise NotFound(f"starting a private loader: {binary}: {error.strerror or error}") from error

    def _stdout(self) -> IO[bytes]:
        stdout = self._process.stdout
        if stdout is None:  # pragma: no cover - it was asked for
            raise Internal("starting a private loader: no pipe")
        return stdout

    def _wait_until_ready(self, binary: str) -> Address:
        """Reads the one line that tells where the sockets are."""
        stdout = self._stdout()
        deadline = time.monotonic() + START_SECONDS
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    why = f"{binary} was not ready within {START_SECONDS:.0f} s{self._log_tail()}"
                    raise Timeout(f"starting a private loader: {why}")
                piece = stdout.read(1)
                if not piece:
                    code = self._process.wait()
                    why = f"{binary} ended with code {code}{self._log_tail()}"
                    raise BY_EXIT_CODE.get(code, Unavailable)(f"starting a private loader: {why}")
                line += piece
                if len(line) > _LINE_BYTES_MAX:
                    break
        try:
            return Address(str(json.loads(line)["loader_socket"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Internal(f"starting a private loader: {binary} printed {line[:200]!r}, not its sockets") from error

    def _log_tail(self) -> str:
        """The end of what the loader wrote to stderr, for an error message."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        tail = self._log.read().decode(errors="replace").strip()
        return f": {tail}" if tail else ""

    def _collect(self) -> None:
        """Drains the pipe, waits for the end of the process and removes its folder."""
        stdout = self._stdout()
        with stdout:
            while stdout.read(4096):
                pass
        self._process.wait()
        self._log.close()
        self._ended.set()
        self._remove_folder()
        atexit.unregister(self._remove_folder)

    def _remove_folder(self) -> None:
        # At exit the loader may still run, for a moment: it needs its sockets no more.
        if os.getpid() == self._owner:
            shutil.rmtree(self._folder, ignore_errors=True)


_lock = threading.Lock()
_current: PrivateLoader | None = None


def ensure() -> PrivateLoader:
    """The private loader of this process, started when there is none."""
    global _current  # noqa: PLW0603 - one a process
    with _lock:
        if _current is None or not _current.is_running:
            _current = PrivateLoader(_binary.find())
        return _current


def is_gone(loader: PrivateLoader, error: Error) -> bool:
    """Whether a call failed because the loader was ending just then, with the last lease of an earlier load."""
    return isinstance(error, (Unavailable, Cancelled)) and loader.ends_within(END_SECONDS)


def _after_fork_in_child() -> None:
    """The loader is the parent's: a child that loads starts its own. The lock may be held by a thread that is gone."""
    global _current, _lock
    _current, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
