"""What a loader keeps on disk and in shared memory while it saves, in Python."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
import uuid
from dataclasses import dataclass, field

from longshore._proto import checkpoint_pb2 as pb

RECORD_BYTES = 128
SEALED = 2


@dataclass
class SlabRecord:
    """What the control page says about a slab, here in Python."""

    attempt: str
    file: int
    index: int
    length: int


@dataclass
class Session:
    """The shared memory of a client, as files."""

    folder: str
    slab_bytes: int
    slabs_a_piece: int
    #: Its client is connected.
    is_here: bool = False
    pieces: list[str] = field(default_factory=list)
    filling: dict[int, SlabRecord] = field(default_factory=dict)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def piece_bytes(self) -> int:
        return self.slab_bytes * self.slabs_a_piece

    def state(self, slab: int) -> int:
        with open(self.path("control"), "rb") as control:
            control.seek(slab * RECORD_BYTES)
            (word,) = struct.unpack("<I", control.read(4))
            return int(word)

    def set_state(self, slab: int, word: int) -> None:
        with open(self.path("control"), "r+b") as control:
            control.seek(slab * RECORD_BYTES)
            control.write(struct.pack("<I", word))

    def content(self, slab: int) -> bytes:
        piece, place = divmod(slab, self.slabs_a_piece)
        with open(self.path(f"piece-{piece}"), "rb") as file:
            file.seek(place * self.slab_bytes)
            return file.read(self.filling[slab].length)


@dataclass
class Attempt:
    plan: pb.SavePlan
    started: set[int] = field(default_factory=set)
    #: By file and slab.
    sealed: dict[tuple[int, int], bytes] = field(default_factory=dict)
    status: pb.SaveStatus = field(default_factory=pb.SaveStatus)

    def slabs(self, file: int, slab_bytes: int) -> int:
        return -(-self.plan.files[file].size_bytes // slab_bytes)

    def content(self, file: int) -> bytes:
        return b"".join(data for (_, _), data in sorted(each for each in self.sealed.items() if each[0][0] == file))


class Store:
    """What survives a restart."""

    def __init__(
        self, *, slab_bytes: int = 64 << 10, slabs_a_piece: int = 2, pieces_max: int = 2, folder: str | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fake-slabs-", dir=folder)
        self.sockets = os.path.join(self._folder.name, "sockets")
        os.mkdir(self.sockets)
        self.slab_bytes = slab_bytes
        self.slabs_a_piece = slabs_a_piece
        self.pieces_max = pieces_max
        self.sessions: dict[str, Session] = {}
        self.attempts: dict[str, Attempt] = {}
        self.committed: dict[tuple[str, int], str] = {}
        #: Sessions that are not gone on with.
        self.missing: set[str] = set()
        #: Attempts that stay where they are after they were staged.
        self.hold_at: int | None = None
        self.changed = threading.Condition(threading.RLock())

    def close(self) -> None:
        self._folder.cleanup()

    def new_session(self) -> str:
        name = uuid.uuid4().hex
        folder = os.path.join(self._folder.name, name)
        os.mkdir(folder)
        session = self.sessions[name] = Session(folder, self.slab_bytes, self.slabs_a_piece)
        with open(session.path("control"), "wb") as control:
            control.truncate(mmap.PAGESIZE)
        return name

    def seal(self, session: Session, slab: int) -> None:
        with self.changed:
            record = session.filling[slab]
            attempt = self.attempts[record.attempt]
            attempt.sealed[record.file, record.index] = session.content(slab)
            del session.filling[slab]
            session.set_state(slab, 0)
            self.advance(attempt)

    def advance(self, attempt: Attempt) -> None:
        """Takes an attempt as far as its bytes allow."""
        with self.changed:
            plan, status = attempt.plan, attempt.status
            if status.state in {pb.SAVE_STATE_FAILED, pb.SAVE_STATE_CANCELLED}:
                return
            del status.ranks[:]
            status.bytes_staged = sum(map(len, attempt.sealed.values()))
            all_ranks = True
            for rank in range(plan.world_size):
                files = [index for index, file in enumerate(plan.files) if file.rank == rank]
                done = rank in attempt.started and all(
                    len(attempt.content(file)) == plan.files[file].size_bytes for file in files
                )
                durable = done and (self.hold_at is None or self.hold_at >= pb.SAVE_STATE_LOCAL_DURABLE)
                all_ranks = all_ranks and done
                if rank in attempt.started:
                    status.ranks.add(rank=rank, staged=done, local_durable=durable, peer_durable=durable)
            if all_ranks:
                state = self.hold_at or pb.SAVE_STATE_COMMITTED
                status.state = state  # type: ignore[assignment]
                if state == pb.SAVE_STATE_COMMITTED:
                    status.url = f"{plan.uri}/step-{plan.step}"
                    self.committed[plan.uri, plan.step] = plan.attempt
            self.changed.notify_all()

    def files(self, uri: str, step: int) -> dict[str, bytes]:
        """What is in the origin."""
        attempt = self.attempts[self.committed[uri, step]]
        return {file.name: attempt.content(index) for index, file in enumerate(attempt.plan.files)}
