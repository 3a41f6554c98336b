"""The loader that checkpoints go to: the running one of this machine, else a private one.

A process has one `Service` for each address, which is kept: its channel, and the slab session beside it. When the
loader is restarted, calls go to the new one; when it was a private one and is gone, another one is started, which goes
on with what the first one left.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator
from typing import Any

import grpc

from longshore import _address, _private, _slabs
from longshore._address import Address
from longshore._errors import Error, Unavailable, Unsupported, from_rpc
from longshore._node import Node

_log = logging.getLogger("longshore")

SERVICE = "/longshore.v1.Checkpoints/"


class Service:
    """Calls to the Checkpoints service. Safe to use from several threads, but not after a fork."""

    def __init__(self, address: Address | None) -> None:
        """`address` is that of a loader that somebody started; None for a private one."""
        self._given = address
        self._lock = threading.Lock()
        self._private: _private.PrivateLoader | None = None
        self._node = Node(self._find())

    @property
    def address(self) -> str:
        """Where the loader is."""
        return self._node.address

    def call(self, name: str, request: Any, answer: Any, timeout: float | None) -> Any:
        """One call; raises this package's errors. One to a private loader that is just ending is made again."""
        try:
            return self._node._call(name, request, answer, timeout, SERVICE)
        except Error as error:
            if self._private is None or not _private.is_gone(self._private, error):
                raise
        self.reopen()
        return self._node._call(name, request, answer, timeout, SERVICE)

    def stream(self, name: str, request: Any, answer: Any, timeout: float | None = None) -> Generator[Any, None, None]:
        """A call with a stream of answers; raises this package's errors."""
        node = self._node
        method = node._open().unary_stream(
            SERVICE + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        call: Any = method(request, timeout=timeout)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc(error, name, node.address) from error
        finally:
            call.cancel()

    def slab_socket(self) -> str:
        """Path of the slab socket, which is beside the loader's."""
        path = self._node._address.path
        if path is None:
            raise Unsupported(
                f"saving needs the unix sockets of a loader on this machine, and {self.address} is none: checkpoints "
                "go through memory that both share"
            )
        return os.path.join(os.path.dirname(path), _slabs.SOCKET_NAME)

    def reopen(self) -> None:
        """Looks for the loader again, after a call said that it is gone. Raises `Unavailable` while none listens."""
        with self._lock:
            found = self._find()
            found.probe()
            # The old node is left to those who are using it.
            self._node = Node(found)

    def locate(self) -> str:
        """The path of the slab socket of the loader that runs now. Raises `Unavailable` while none listens."""
        self.reopen()
        return self.slab_socket()

    def _find(self) -> Address:
        if self._given is not None:
            return self._given
        self._private = _private.ensure()
        return self._private.address


_services: dict[str, Service] = {}
_services_lock = threading.Lock()


def service(address: str | None = None) -> Service:
    """The service at an address as `longshore.connect` takes it; without one a private loader's when none runs."""
    configured = _address.configured(address)
    found: Address | None = configured or _address.default()
    if found is not None:
        try:
            found.probe()
        except Unavailable as error:
            if configured is not None:
                raise
            _log.info("%s; using a private loader", error)
            found = None
    key = "" if found is None else str(found)
    with _services_lock:
        known = _services.get(key)
        if known is None:
            known = _services[key] = Service(found)
        return known


def _after_fork_in_child() -> None:
    """Connections are the parent's; making a new one tells whether gRPC may be used here."""
    global _services, _services_lock
    _services, _services_lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
