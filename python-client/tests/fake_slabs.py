"""The slab socket in Python."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable

from fake_loader import send_message
from fake_store import SEALED, Session, SlabRecord, Store

from longshore._proto import checkpoint_pb2 as pb


class FakeSlabs:
    """Serves slabs of a store at a path."""

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        #: What clients said that they would stage, one a hello.
        self.expected: list[int] = []
        #: Called with each request before it is answered; raises to hang up.
        self.on_request: Callable[[pb.SlabRequest], object] = lambda _: None
        self._closing = False
        self._connections: list[socket.socket] = []
        for session in store.sessions.values():
            session.is_here = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Ends as by SIGKILL, as far as clients see."""
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        session: Session | None = None
        with connection:
            try:
                while True:
                    (length,) = struct.unpack("<I", exactly(connection, 4))
                    request = pb.SlabRequest.FromString(exactly(connection, length))
                    self.on_request(request)
                    if session is None:
                        session = self._hello(connection, request.hello)
                    else:
                        self._answer(connection, session, request)
            except (OSError, ConnectionError):
                pass
            finally:
                if session is not None:
                    self._left(session)

    def _left(self, session: Session) -> None:
        """Before the client can see that the connection has ended, and come back."""
        session.is_here = False
        if not self._closing:
            # What it did not seal is lost.
            session.filling.clear()

    def _hello(self, connection: socket.socket, hello: pb.SlabHello) -> Session:
        assert hello.protocol == 1
        self.expected.append(hello.expected_bytes)
        store = self.store
        if hello.session in store.missing:
            send_message(connection, pb.SlabResponse(error_code="not_found", error_message="begin a new one"))
            raise ConnectionError
        name = hello.session if hello.session in store.sessions else store.new_session()
        session = store.sessions[name]
        if session.is_here:
            # As the real one: it has to see the end of one connection before the next one goes on.
            send_message(connection, pb.SlabResponse(error_code="not_found", error_message="it has a client"))
            raise ConnectionError
        session.is_here = True
        welcome = pb.SlabWelcome(session=name, slab_bytes=store.slab_bytes)
        welcome.piece_bytes.extend([session.piece_bytes()] * len(session.pieces))
        for slab, record in list(session.filling.items()):
            if session.state(slab) == SEALED:
                welcome.sealed.add(attempt=record.attempt, file=record.file, slab_index=record.index)
                store.seal(session, slab)
        session.filling.clear()
        send_fds(connection, pb.SlabResponse(welcome=welcome), [session.path("control"), *session.pieces])
        return session

    def _answer(self, connection: socket.socket, session: Session, request: pb.SlabRequest) -> None:
        if request.HasField("acquire"):
            self._acquire(connection, session, request.acquire)
            return
        if request.HasField("seal"):
            assert session.state(request.seal.slab) == SEALED, "the word comes before the message"
            self.store.seal(session, request.seal.slab)
        else:
            session.filling.pop(request.discard.slab, None)
        send_message(connection, pb.SlabResponse())

    def _acquire(self, connection: socket.socket, session: Session, acquire: pb.AcquireSlab) -> None:
        key, store = acquire.key, self.store
        with store.changed:
            attempt = store.attempts.get(key.attempt)
            if attempt is None or attempt.status.state > pb.SAVE_STATE_LOCAL_DURABLE:
                send_message(
                    connection, pb.SlabResponse(error_code="failed_precondition", error_message="no such save")
                )
                return
            size = attempt.plan.files[key.file].size_bytes
            length = min(store.slab_bytes, size - key.slab_index * store.slab_bytes)
            if (key.file, key.slab_index) in attempt.sealed:
                grant = pb.SlabGrant(length_bytes=length, already_durable=True)
                send_message(connection, pb.SlabResponse(grant=grant))
                return
            new: list[str] = []
            free = self._free(session)
            if free is None and len(session.pieces) < store.pieces_max:
                path = session.path(f"piece-{len(session.pieces)}")
                with open(path, "wb") as piece:
                    piece.truncate(session.piece_bytes())
                session.pieces.append(path)
                new, free = [path], self._free(session)
            if free is None:
                send_message(connection, pb.SlabResponse(error_code="exhausted", error_message="no slab is free"))
                return
            session.filling[free] = SlabRecord(key.attempt, key.file, key.slab_index, length)
            session.set_state(free, 1)
            piece_index, place = divmod(free, session.slabs_a_piece)
            grant = pb.SlabGrant(
                slab=free, piece=piece_index, offset_bytes=place * session.slab_bytes, length_bytes=length
            )
            grant.new_piece_bytes.extend([session.piece_bytes()] * len(new))
        send_fds(connection, pb.SlabResponse(grant=grant), new)

    @staticmethod
    def _free(session: Session) -> int | None:
        every = range(len(session.pieces) * session.slabs_a_piece)
        return next((slab for slab in every if slab not in session.filling), None)


def exactly(connection: socket.socket, count: int) -> bytes:
    data = connection.recv(count, socket.MSG_WAITALL)
    if len(data) != count:
        raise ConnectionError
    return data


def send_fds(connection: socket.socket, response: pb.SlabResponse, paths: list[str]) -> None:
    response.fd_count = len(paths)
    fds = [os.open(path, os.O_RDWR) for path in paths]
    try:
        send_message(connection, response)
        for first in range(0, len(fds), 64):
            socket.send_fds(connection, [b"F"], fds[first : first + 64])
    finally:
        for fd in fds:
            os.close(fd)
