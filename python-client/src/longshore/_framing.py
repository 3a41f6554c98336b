"""Messages and file descriptors over the loader's unix sockets.

A message is a little-endian u32 length and that many bytes. Descriptors follow a message by SCM_RIGHTS, in batches of
at most 64, each with one data byte.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from longshore._errors import Corrupt, Error, Exhausted, Timeout, Unavailable

FDS_PER_MESSAGE_MAX = 64


class Connection:
    """Reads and writes on a socket, all within one deadline, which `arm` sets anew."""

    def __init__(self, path: str, doing: str, timeout_seconds: float, message_bytes_max: int) -> None:
        self._path = path
        self.doing = doing
        self._message_bytes_max = message_bytes_max
        self.arm(timeout_seconds)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._set_timeout()
            self.sock.connect(path)
        except BaseException as error:
            self.sock.close()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    def arm(self, timeout_seconds: float) -> None:
        """What follows has to be done within so many seconds."""
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds

    def close(self) -> None:
        """Hangs up. May be called again."""
        self.sock.close()

    def _set_timeout(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def _failed(self, error: OSError) -> Error:
        if isinstance(error, Error):
            return error
        if isinstance(error, TimeoutError):
            return Timeout(f"{self.doing} at {self._path}: no answer within {self._timeout_seconds:.1f} s")
        return Unavailable(f"{self.doing} at {self._path}: {error.strerror or error}")

    def send(self, message: bytes) -> None:
        try:
            self._set_timeout()
            self.sock.sendall(struct.pack("<I", len(message)) + message)
        except OSError as error:
            raise self._failed(error) from error

    def receive(self) -> bytes:
        (length,) = struct.unpack("<I", self._exactly(4))
        if length > self._message_bytes_max:
            limit = self._message_bytes_max >> 20
            raise Corrupt(f"{self.doing} at {self._path}: an answer of {length} bytes is over the limit of {limit} MiB")
        return bytes(self._exactly(length))

    def _exactly(self, count: int) -> bytearray:
        """Not one byte more: the next one carries descriptors. Grows with what arrives, not with what is announced."""
        data = bytearray()
        while len(data) < count:
            try:
                self._set_timeout()
                piece = self.sock.recv(min(count - len(data), 1 << 20))
            except OSError as error:
                raise self._failed(error) from error
            if not piece:
                raise Unavailable(f"{self.doing} at {self._path}: the loader closed the connection")
            data += piece
        return data

    def receive_fds(self) -> list[int]:
        """One batch of descriptors, which are the caller's to close."""
        try:
            self._set_timeout()
            data, fds, flags, _ = socket.recv_fds(self.sock, 1, FDS_PER_MESSAGE_MAX, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._failed(error) from error
        if flags & socket.MSG_CTRUNC:
            close_fds(list(fds))
            raise Exhausted(
                f"{self.doing}: this process cannot take more file descriptors; raise its limit (ulimit -n)"
            )
        if not data:
            raise Unavailable(f"{self.doing} at {self._path}: the loader closed the connection")
        return list(fds)


class Descriptors:
    """Receives descriptors as they are needed; those that were taken are closed with the next `take` or `close`."""

    def __init__(self, connection: Connection, count: int) -> None:
        self._connection = connection
        self._to_come = count
        self._ready: list[int] = []
        self._taken: list[int] = []

    def take(self, count: int) -> list[int]:
        close_fds(self._taken)
        while len(self._ready) < count:
            batch = self._connection.receive_fds()
            self._ready += batch
            self._to_come -= len(batch)
            if not batch or self._to_come < 0:
                raise Corrupt(f"{self._connection.doing}: the loader sent another number of descriptors than announced")
        self._taken = self._ready[:count]
        del self._ready[:count]
        return self._taken

    def close(self) -> None:
        close_fds(self._taken)
        close_fds(self._ready)


def close_fds(fds: list[int]) -> None:
    """Closes them all and empties the list."""
    while fds:
        os.close(fds.pop())
