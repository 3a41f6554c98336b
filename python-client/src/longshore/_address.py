"""Where the loader is."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from longshore._errors import Error, InvalidArgument, PermissionDenied, Timeout, Unavailable

#: The loader's address, as `connect` takes it.
ADDRESS_VARIABLE = "LONGSHORE_LOADER"
#: The folder of the loader's sockets.
SOCKET_DIR_VARIABLE = "LONGSHORE_SOCKET_DIR"
LOADER_SOCKET = "loader.sock"
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Address:
    """A unix socket's path, or a host and port."""

    path: str | None
    host: str = ""
    port: int = 0

    @property
    def target(self) -> str:
        """The address as gRPC takes it."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.target

    def probe(self) -> None:
        """Connects and hangs up, so that a wrong address is told at once and with the system's reason."""
        try:
            if self.path is not None:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(CONNECT_SECONDS)
                    sock.connect(self.path)
            else:
                socket.create_connection((self.host, self.port), CONNECT_SECONDS).close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> Error:
        if isinstance(error, TimeoutError):
            return Timeout(f"connecting to the loader at {self}: no answer within {CONNECT_SECONDS:.0f} s")
        why = f"no loader at {self}: {error.strerror or error}"
        if isinstance(error, PermissionError):
            return PermissionDenied(f"{why}; is this user in the group that owns the socket?")
        return Unavailable(f"{why}; start one with `longshore loader`, or use longshore.load, which starts its own")


def parse(text: str) -> Address:
    """``unix:/path``, ``/path`` (of the socket or its folder), ``host:port`` or ``http://host:port``."""
    rest = text.removeprefix("unix:")
    if rest.startswith("/"):
        path = "/" + rest.lstrip("/")
        return Address(os.path.join(path, LOADER_SOCKET) if os.path.isdir(path) else path)
    host, colon, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidArgument(f"address {text!r} is not unix:/path, /path, host:port or http://host:port")
    return Address(None, host, int(port))


def configured(address: str | None) -> Address | None:
    """The address given as argument or by ``LONGSHORE_LOADER``, if any."""
    text = address if address is not None else os.environ.get(ADDRESS_VARIABLE)
    return parse(text) if text else None


def default(environ: Mapping[str, str] | None = None) -> Address:
    """The first of the folders where a loader puts its sockets that has one, else the first."""
    candidates = list(_socket_dirs(os.environ if environ is None else environ))
    found = next((path for path in candidates if (path / LOADER_SOCKET).exists()), candidates[0])
    _check_owner(found)
    return Address(str(found / LOADER_SOCKET))


def _socket_dirs(environ: Mapping[str, str]) -> Iterator[Path]:
    given = environ.get(SOCKET_DIR_VARIABLE)
    if given:
        yield Path(given)
        return
    yield Path("/run/longshore")
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"]) / "longshore"
    yield Path(f"/tmp/longshore-{os.getuid()}")  # noqa: S108 - the owner is checked


def _check_owner(folder: Path) -> None:
    """A folder that another user could have put there would let that user hand us a model of theirs."""
    if folder.parent != Path("/tmp"):  # noqa: S108
        return
    try:
        status = folder.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {0, os.getuid()} or status.st_mode & 0o002:
        raise PermissionDenied(f"{folder} is not a folder of this user alone: sockets in it are not trusted")
