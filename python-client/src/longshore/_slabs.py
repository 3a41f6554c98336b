"""Slabs: room in shared memory of the loader's that checkpoints are copied into.

A `SlabSession` is one connection to the loader's `slabs.sock`; a process has one, which is kept over saves, so that
the memory is mapped once, and registered with CUDA once, see `_sessions`. `proto/longshore/v1/checkpoint.proto` has the
protocol.

The rule that all of this rests on: only what is sealed counts. A seal is one word in the control page, written after
the copy is complete, and then told to the loader; a loader that was restarted finds the word.

When the connection breaks, everything that is not sealed is void. `reconnect` goes on with the session, but not before
the last copy into a slab of the old connection has ended (`SlabSession` counts them), because the loader gives those
slabs out again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from longshore._errors import Corrupt, Error, FailedPrecondition, Internal, Unavailable, from_code
from longshore._framing import Connection, Descriptors
from longshore._memory import REGION_BYTES_MAX
from longshore._proto import checkpoint_pb2 as pb

PROTOCOL = 1
SOCKET_NAME = "slabs.sock"
MESSAGE_BYTES_MAX = 1 << 20
RECORD_BYTES = 128
STATE_SEALED = 2
#: Pieces of a session: at 1 GiB each, 4 TiB.
PIECES_MAX = 4096
#: How long the loader may take to answer, beside the time that it was told to wait.
ANSWER_SECONDS = 60.0
_MADV_DONTFORK = 10


@dataclass(frozen=True)
class SlabKey:
    """Bytes ``[index * slab_bytes, + slab_bytes)`` of one file of a plan."""

    attempt: str
    file: int
    index: int


@dataclass(frozen=True)
class Slab:
    """Room that was granted. Write `length` bytes at `address`, then seal it."""

    key: SlabKey
    number: int
    address: int
    length: int
    #: The bytes are durable already, from before the loader was restarted: nothing to copy, nothing to seal.
    already_durable: bool
    #: The connection it was granted on.
    generation: int
    #: Keeps the mapping.
    memory: object


class Piece:
    """A mapped piece of shared memory. Unmapped when nothing refers to it any more."""

    def __init__(self, fd: int, length: int) -> None:
        status = os.fstat(fd)
        if not 0 < length <= min(status.st_size, REGION_BYTES_MAX):
            raise Corrupt(f"slabs: a piece announced with {length} bytes has {status.st_size}")
        #: Tells whether a later connection hands the same memory over.
        self.identity = (status.st_dev, status.st_ino, length)
        try:
            # Populated: a page fault for every 4 KiB during the copy would cost more than the copy.
            self._map = mmap.mmap(fd, length, mmap.MAP_SHARED | _MAP_POPULATE)
        except OSError as error:
            raise Internal(f"slabs: mapping {length} bytes: {error.strerror or error}") from error
        # A child must not write here, and must not copy pages that a card reads.
        self._map.madvise(_MADV_DONTFORK)
        self._array = (ctypes.c_ubyte * length).from_buffer(self._map)
        self.address = ctypes.addressof(self._array)
        self.length = length

    def write_u32(self, offset: int, value: int) -> None:
        """One aligned store, which other processes see whole."""
        ctypes.c_uint32.from_address(self.address + offset).value = value


_MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


class SlabSession:
    """A connection to `slabs.sock` and the memory that came over it. Safe to use from several threads."""

    def __init__(self, path: str, expected_bytes: int = 0, clients: int = 0, adopt: str = "") -> None:
        """Connects. `expected_bytes` and `clients` tell the loader how much memory to prepare.

        `clients` is the number of processes of this node that save at the same time; 0 when that is not known. `adopt`
        is the session of another process that has let go of it.
        """
        self.path = path
        self.session = adopt
        self.slab_bytes = 0
        #: Counts connections; slabs of an earlier one are void.
        self.generation = 0
        #: Called with each piece that is new, with the lock held: to register it with CUDA.
        self.on_piece: list[Callable[[Piece], None]] = []
        self.pieces: list[Piece] = []
        self._control: Piece | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._writers = 0
        #: Of each save that uses it now, or is about to: whether it is staged, or has failed, and is about to let go.
        self.saves: list[Callable[[], bool]] = []
        self._sealed: set[SlabKey] = set()
        self._connection: Connection | None = None
        self._clients = clients
        self._connect(expected_bytes, ANSWER_SECONDS)

    def acquire(self, key: SlabKey, wait_seconds: float) -> Slab:
        """Asks for a slab and waits for a free one at most that long.

        Raises `Exhausted` or `Timeout` when none is free, `Unavailable` when the connection is gone: then `reconnect`.
        Every slab ends with `seal` or `discard`.
        """
        request = pb.SlabRequest(acquire=pb.AcquireSlab(key=_key(key), wait_ms=max(0, round(wait_seconds * 1000))))
        with self._lock:
            connection, response = self._ask(request, wait_seconds + ANSWER_SECONDS)
            try:
                grant = self._granted(response)
                self._take_pieces(connection, response, grant.new_piece_bytes)
                slab = self._slab(key, grant)
            except Error:
                # What else is in the socket is not known.
                self._hang_up()
                raise
            self._writers += 1
            return slab

    def seal(self, slab: Slab) -> None:
        """The copy is complete. Raises `Unavailable` when the slab is void: then acquire and copy again."""
        with self._lock:
            try:
                if slab.already_durable:
                    return
                if slab.generation != self.generation or self._connection is None or self._control is None:
                    raise Unavailable("slabs: the connection to the loader was lost during the copy")
                # The loader reads this word when it is started again; until then it waits for the message.
                self._control.write_u32(slab.number * RECORD_BYTES, STATE_SEALED)
                _, response = self._ask(pb.SlabRequest(seal=pb.SealSlab(slab=slab.number)), ANSWER_SECONDS)
                self._no_descriptors(response)
            finally:
                self._done()

    def discard(self, slab: Slab) -> None:
        """Gives a slab back unused. Never raises; after this nothing may be written to it."""
        with self._lock:
            try:
                if slab.generation == self.generation and not slab.already_durable:
                    self._ask(pb.SlabRequest(discard=pb.DiscardSlab(slab=slab.number)), ANSWER_SECONDS)
            except Error:
                # The connection is gone, and the slab with it.
                pass
            finally:
                self._done()

    def is_sealed(self, key: SlabKey) -> bool:
        """Whether the loader said when it was reconnected to that it has the slab of an earlier connection."""
        with self._lock:
            return key in self._sealed

    def reconnect(self, generation: int, timeout_seconds: float) -> None:
        """Goes on with the session at a loader that was restarted. Nothing to do when `generation` is an old one.

        Waits for copies into slabs of the old connection. Raises `Unavailable` while no loader listens.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            while self.generation == generation and self._writers:
                self._hang_up()
                if not self._idle.wait(max(0.0, deadline - time.monotonic())):
                    raise Unavailable("slabs: copies of the lost connection have not ended")
            if self.generation == generation:
                self._hang_up()
                self._connect(0, max(0.001, deadline - time.monotonic()))

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as is known."""
        with self._lock:
            return self._connection is not None and self._pid == os.getpid()

    def close(self) -> None:
        """Hangs up: what is not sealed is lost. The memory stays mapped while a slab refers to it."""
        with self._lock:
            # In this order: the loader frees the memory once it sees that nobody is there.
            self.pieces, self._control = [], None
            self._hang_up()

    # ---- requests

    def _connect(self, expected_bytes: int, timeout_seconds: float) -> None:
        connection = Connection(self.path, "slabs", timeout_seconds, MESSAGE_BYTES_MAX)
        try:
            hello = pb.SlabHello(
                protocol=PROTOCOL, session=self.session, expected_bytes=expected_bytes, clients=self._clients
            )
            connection.send(pb.SlabRequest(hello=hello).SerializeToString())
            response = _parse(connection.receive())
            welcome = _welcomed(response)
            fds = Descriptors(connection, response.fd_count)
            try:
                (control,) = fds.take(1)
                self._control = Piece(control, os.fstat(control).st_size)
                known = {piece.identity: piece for piece in self.pieces}
                self.pieces = []
                self._add_pieces(fds, welcome.piece_bytes, known)
            finally:
                fds.close()
        except BaseException:
            connection.close()
            raise
        self._sealed = {SlabKey(key.attempt, key.file, key.slab_index) for key in welcome.sealed}
        self.session, self.slab_bytes = welcome.session, welcome.slab_bytes
        self._connection = connection
        self.generation += 1

    def _ask(self, request: pb.SlabRequest, timeout_seconds: float) -> tuple[Connection, pb.SlabResponse]:
        if self._pid != os.getpid():
            raise FailedPrecondition("slabs: this session was opened before a fork; save in the child anew")
        connection = self._connection
        if connection is None:
            raise Unavailable("slabs: the connection to the loader was lost")
        try:
            connection.arm(timeout_seconds)
            connection.send(request.SerializeToString())
            message = connection.receive()
        except BaseException as error:
            # Also an interrupt: an answer that nobody read would be taken for that of the next request.
            self._hang_up()
            if isinstance(error, Error):
                raise Unavailable(str(error)) from error
            raise
        return connection, _parse(message)

    def _granted(self, response: pb.SlabResponse) -> pb.SlabGrant:
        if not response.HasField("grant"):
            raise Corrupt("slabs: the loader answered a request for a slab with something else")
        if response.fd_count != len(response.grant.new_piece_bytes):
            raise Corrupt("slabs: the loader announced another number of descriptors than pieces")
        return response.grant

    def _slab(self, key: SlabKey, grant: pb.SlabGrant) -> Slab:
        if grant.already_durable:
            if not 0 < grant.length_bytes <= self.slab_bytes:
                raise Corrupt(f"slabs: a slab of {grant.length_bytes} bytes")
            return Slab(key, 0, 0, grant.length_bytes, True, self.generation, None)
        if grant.piece >= len(self.pieces) or self._control is None:
            raise Corrupt(f"slabs: a slab in piece {grant.piece} of {len(self.pieces)}")
        piece = self.pieces[grant.piece]
        if not 0 < grant.length_bytes <= self.slab_bytes or grant.offset_bytes + grant.length_bytes > piece.length:
            raise Corrupt(f"slabs: a slab of {grant.length_bytes} bytes does not lie in its piece")
        if (grant.slab + 1) * RECORD_BYTES > self._control.length:
            raise Corrupt(f"slabs: slab {grant.slab} has no record in the control page")
        address = piece.address + grant.offset_bytes
        return Slab(key, grant.slab, address, grant.length_bytes, False, self.generation, piece)

    def _take_pieces(self, connection: Connection, response: pb.SlabResponse, lengths: Sequence[int]) -> None:
        fds = Descriptors(connection, response.fd_count)
        try:
            self._add_pieces(fds, lengths, {})
        finally:
            fds.close()

    def _add_pieces(self, fds: Descriptors, lengths: Sequence[int], known: dict[tuple[int, int, int], Piece]) -> None:
        if len(self.pieces) + len(lengths) > PIECES_MAX:
            raise Corrupt(f"slabs: more than {PIECES_MAX} pieces")
        for length in lengths:
            (fd,) = fds.take(1)
            status = os.fstat(fd)
            piece = known.get((status.st_dev, status.st_ino, length))
            if piece is None:
                piece = Piece(fd, length)
                for function in self.on_piece:
                    function(piece)
            self.pieces.append(piece)

    @staticmethod
    def _no_descriptors(response: pb.SlabResponse) -> None:
        if response.fd_count:
            raise Corrupt("slabs: the loader sent descriptors that nobody asked for")

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _done(self) -> None:
        self._writers -= 1
        self._idle.notify_all()


def _welcomed(response: pb.SlabResponse) -> pb.SlabWelcome:
    if not response.HasField("welcome"):
        raise Corrupt("slabs: the loader answered hello with something else")
    welcome = response.welcome
    if not 0 < welcome.slab_bytes <= REGION_BYTES_MAX:
        raise Corrupt(f"slabs: the loader announced slabs of {welcome.slab_bytes} bytes")
    if response.fd_count != 1 + len(welcome.piece_bytes):
        raise Corrupt(f"slabs: {response.fd_count} descriptors for {len(welcome.piece_bytes)} pieces")
    return welcome


def _key(key: SlabKey) -> pb.SlabKey:
    return pb.SlabKey(attempt=key.attempt, file=key.file, slab_index=key.index)


def _parse(message: bytes) -> pb.SlabResponse:
    try:
        response = pb.SlabResponse.FromString(message)
    except DecodeError as error:
        raise Corrupt(f"slabs: the loader's answer cannot be read: {error}") from error
    if response.error_code:
        raise from_code(response.error_code, response.error_message or "the loader refused a slab")
    return response
