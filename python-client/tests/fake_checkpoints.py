"""The Checkpoints service and the slab socket in Python, beside a `FakeLoader` that loads what was saved.

What a loader keeps on disk and in shared memory is in `Store`, which outlives a `FakeCheckpoints`: end one and make
another over the same store, and the loader was restarted.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import mmap
import os
import socket
import struct
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from fake_loader import FakeLoader, FakeModel, RpcFailure, send_message

from longshore._dtypes import expected_bytes
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


class FakeCheckpoints:
    """A loader that saves and loads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.sockets
        for name in ("attach.sock", "slabs.sock", "loader.sock"):
            if os.path.exists(os.path.join(self.folder, name)):
                os.unlink(os.path.join(self.folder, name))
        self.plans: list[pb.PlanSaveRequest] = []
        self.cancelled: list[str] = []
        self.failure: RpcFailure | None = None
        self.expected: list[int] = []
        #: Called with each request of the slab socket before it is answered; raises to hang up.
        self.on_slab: Callable[[pb.SlabRequest], object] = lambda _: None
        #: For tests that make another one over the same store.
        self.restarted: Callable[[FakeCheckpoints], object] = lambda _: None
        self._joining: dict[tuple[str, int], list[pb.PlanSaveRequest]] = {}
        self._closing = False
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self.slab_socket = os.path.join(self.folder, "slabs.sock")
        self._listener.bind(self.slab_socket)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        self.loader = FakeLoader(self.folder, (self._handlers(),))
        for uri, step in store.committed:
            self._publish(uri, step)
        for attempt in store.attempts.values():
            store.advance(attempt)

    @property
    def address(self) -> str:
        return f"unix:{self.loader.socket}"

    def close(self) -> None:
        """Ends as by SIGKILL, as far as clients see."""
        self._closing = True
        with self.store.changed:
            self.store.changed.notify_all()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.loader.close()

    def restart(self) -> FakeCheckpoints:
        """Ends this one and starts another over the same store and sockets."""
        self.close()
        return FakeCheckpoints(self.store)

    def __enter__(self) -> FakeCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- gRPC

    def _handlers(self) -> Any:
        def failing(function: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[..., Any]:
            def call(request: Any, context: grpc.ServicerContext) -> Any:
                try:
                    if self.failure is not None:
                        raise self.failure
                    return function(request, context)
                except RpcFailure as failure:
                    context.set_trailing_metadata((("longshore-code", failure.code or "internal"),))
                    context.abort(failure.status, failure.message)

            return call

        def unary(function: Callable[[Any, grpc.ServicerContext], Any], request: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                failing(function), request.FromString, lambda answer: answer.SerializeToString()
            )

        return grpc.method_handlers_generic_handler(
            "longshore.v1.Checkpoints",
            {
                "PlanSave": unary(self._plan, pb.PlanSaveRequest),
                "StartSave": unary(self._start, pb.StartSaveRequest),
                "CancelSave": unary(self._cancel, pb.CancelSaveRequest),
                "ListCheckpoints": unary(self._list, pb.ListCheckpointsRequest),
                "GetCheckpoint": unary(self._get, pb.GetCheckpointRequest),
                "DeleteCheckpoint": unary(self._delete, pb.DeleteCheckpointRequest),
                "WatchSave": grpc.unary_stream_rpc_method_handler(
                    self._watch, pb.WatchSaveRequest.FromString, lambda answer: answer.SerializeToString()
                ),
            },
        )

    def _plan(self, request: pb.PlanSaveRequest, _: grpc.ServicerContext) -> pb.SavePlan:
        self.plans.append(request)
        with self.store.changed:
            key = (request.uri, request.step)
            joined = self._joining.setdefault(key, [])
            joined.append(request)

            def ranks() -> set[int]:
                return {each.rank for one in joined for each in one.ranks}

            self.store.changed.notify_all()
            if not self.store.changed.wait_for(
                lambda: len(ranks()) == request.world_size, request.join_timeout_ms / 1000
            ):
                missing = set(range(request.world_size)) - ranks()
                raise RpcFailure(grpc.StatusCode.DEADLINE_EXCEEDED, f"ranks {missing} did not come", "timeout")
            if self._joining.get(key) is joined:
                del self._joining[key]
                plan = plan_of(request, [each for one in joined for each in one.ranks])
                self.store.attempts[plan.attempt] = Attempt(plan)
                joined[0].options.metadata["plan"] = plan.attempt
            return self.store.attempts[joined[0].options.metadata["plan"]].plan

    def _start(self, request: pb.StartSaveRequest, _: grpc.ServicerContext) -> pb.SaveStatus:
        with self.store.changed:
            attempt = self.store.attempts[request.plan.attempt]
            attempt.started.add(request.rank)
            for each in request.inline:
                assert len(each.content) == request.plan.files[each.file].size_bytes
                attempt.sealed[each.file, 0] = each.content
            attempt.status.MergeFrom(
                pb.SaveStatus(
                    attempt=request.plan.attempt,
                    uri=request.plan.uri,
                    step=request.plan.step,
                    world_size=request.plan.world_size,
                    state=pb.SAVE_STATE_STAGING,
                    bytes_total=sum(file.size_bytes for file in request.plan.files),
                )
            )
            self.store.advance(attempt)
            return attempt.status

    def _cancel(self, request: pb.CancelSaveRequest, _: grpc.ServicerContext) -> pb.SaveStatus:
        with self.store.changed:
            self.cancelled.append(request.attempt)
            attempt = self.store.attempts[request.attempt]
            if attempt.status.state != pb.SAVE_STATE_COMMITTED:
                attempt.status.state = pb.SAVE_STATE_CANCELLED
            self.store.changed.notify_all()
            return attempt.status

    def _watch(self, request: pb.WatchSaveRequest, context: grpc.ServicerContext) -> Iterator[pb.SaveStatus]:
        last = b""
        attempt = self.store.attempts.get(request.attempt)
        if attempt is None:
            context.set_trailing_metadata((("longshore-code", "not_found"),))
            context.abort(grpc.StatusCode.NOT_FOUND, f"no save {request.attempt}")
            return
        while not self._closing:
            with self.store.changed:
                while not self._closing and attempt.status.SerializeToString(deterministic=True) == last:
                    self.store.changed.wait(1.0)
                status = pb.SaveStatus()
                status.CopyFrom(attempt.status)
            current = status.SerializeToString(deterministic=True)
            if current != last and not self._closing:
                last = current
                if status.state == pb.SAVE_STATE_COMMITTED:
                    self._publish(status.uri, status.step)
                yield status
            if status.state >= pb.SAVE_STATE_COMMITTED:
                return

    def _get(self, request: pb.GetCheckpointRequest, _: grpc.ServicerContext) -> pb.Checkpoint:
        steps = [step for uri, step in self.store.committed if uri == request.uri]
        step = request.step if request.HasField("step") else max(steps, default=-1)
        if step not in steps:
            raise RpcFailure(grpc.StatusCode.NOT_FOUND, f"{request.uri} has no such checkpoint", "not_found")
        return self._checkpoint(request.uri, step)

    def _checkpoint(self, uri: str, step: int) -> pb.Checkpoint:
        plan = self.store.attempts[self.store.committed[uri, step]].plan
        found = pb.Checkpoint(aliases=plan.aliases)
        found.summary.MergeFrom(
            pb.CheckpointSummary(
                step=step,
                url=f"{uri}/step-{step}",
                attempt=plan.attempt,
                created_ms=plan.created_ms,
                size_bytes=sum(file.size_bytes for file in plan.files),
                metadata={key: value for key, value in plan.options.metadata.items() if key != "plan"},
            )
        )
        tensors: dict[str, pb.CheckpointTensor] = {}
        for index, file in enumerate(plan.files):
            found.files.add(name=file.name, size_bytes=file.size_bytes)
            for each in file.tensors:
                name = f"{each.tensor.group}/{each.tensor.name}".lstrip("/")
                tensor = tensors.setdefault(
                    name, pb.CheckpointTensor(name=name, dtype=each.tensor.dtype, shape=each.tensor.shape)
                )
                tensor.pieces.add(
                    file=index,
                    offset_bytes=each.offset_bytes,
                    length_bytes=each.length_bytes,
                    start=each.tensor.start or [0] * len(each.tensor.shape),
                    shape=each.tensor.piece_shape or each.tensor.shape,
                )
        found.tensors.extend(tensors.values())
        found.summary.tensor_count, found.summary.file_count = len(tensors), len(found.files)
        return found

    def _list(self, request: pb.ListCheckpointsRequest, _: grpc.ServicerContext) -> pb.ListCheckpointsResponse:
        steps = sorted(step for uri, step in self.store.committed if uri == request.uri)
        return pb.ListCheckpointsResponse(checkpoints=[self._checkpoint(request.uri, step).summary for step in steps])

    def _delete(self, request: pb.DeleteCheckpointRequest, _: grpc.ServicerContext) -> pb.DeleteCheckpointResponse:
        if self.store.committed.pop((request.uri, request.step), None) is None:
            raise RpcFailure(grpc.StatusCode.NOT_FOUND, f"step {request.step} is not committed", "not_found")
        return pb.DeleteCheckpointResponse(objects_deleted=2, bytes_freed=10)

    def _publish(self, uri: str, step: int) -> None:
        """Makes what was saved loadable."""
        content = self.store.files(uri, step)
        model = FakeModel(files={name: data for name, data in content.items() if not name.endswith(".safetensors")})
        facts = self._checkpoint(uri, step)
        for tensor in facts.tensors:
            for number, piece in enumerate(tensor.pieces):
                data = content[facts.files[piece.file].name]
                part = data[piece.offset_bytes : piece.offset_bytes + piece.length_bytes]
                name = tensor.name if len(tensor.pieces) == 1 else f"{tensor.name}#{number}"
                model.tensors[name] = (tensor.dtype, tuple(piece.shape), part)
                if len(tensor.pieces) > 1:
                    model.pieces[name] = (tuple(piece.start), tuple(piece.shape), tuple(tensor.shape))
        self.loader.models[f"{uri}/step-{step}"] = model

    # ---- slabs

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
        try:
            with connection:
                while True:
                    (length,) = struct.unpack("<I", exactly(connection, 4))
                    request = pb.SlabRequest.FromString(exactly(connection, length))
                    self.on_slab(request)
                    if session is None:
                        session = self._hello(connection, request.hello)
                    else:
                        self._answer(connection, session, request)
        except (OSError, ConnectionError):
            pass
        finally:
            if session is not None and not self._closing:
                # What it did not seal is lost.
                session.filling.clear()

    def _hello(self, connection: socket.socket, hello: pb.SlabHello) -> Session:
        assert hello.protocol == 1
        self.expected.append(hello.expected_bytes)
        store = self.store
        name = hello.session if hello.session in store.sessions else store.new_session()
        session = store.sessions[name]
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


def plan_of(request: pb.PlanSaveRequest, ranks: list[pb.RankItems]) -> pb.SavePlan:
    """Lays out: one file a group and rank; what several have alike goes to the one with the least."""
    plan = pb.SavePlan(
        uri=request.uri,
        step=request.step,
        attempt=str(uuid.uuid4()),
        world_size=request.world_size,
        options=request.options,
        created_ms=1_700_000_000_000,
    )
    load = dict.fromkeys(range(request.world_size), 0)
    owners: dict[bytes, list[int]] = {}
    messages: dict[bytes, pb.SaveTensor] = {}
    aliases: dict[bytes, pb.TensorAlias] = {}
    for items in ranks:
        for tensor in items.tensors:
            key = tensor.SerializeToString(deterministic=True)
            owners.setdefault(key, []).append(items.rank)
            messages[key] = tensor
        for alias in items.aliases:
            aliases[alias.SerializeToString(deterministic=True)] = alias
    mine: dict[tuple[str, int], list[pb.SaveTensor]] = {}
    for key, having in owners.items():
        tensor = messages[key]
        rank = min(having, key=lambda each: (load[each], each))
        load[rank] += nbytes(tensor) + 1
        mine.setdefault((tensor.group, rank), []).append(tensor)
    numbers = itertools.count(1)
    for (group, rank), tensors in sorted(mine.items()):
        number = next(numbers)
        name = f"{group or 'model'}-{number:05}-of-{len(mine):05}.safetensors"
        plan.files.append(lay_out(f"{group}/{name}" if group else name, rank, tensors))
    named: set[str] = set()
    for items in ranks:
        for file in items.files:
            if file.name not in named:
                named.add(file.name)
                plan.files.add(name=file.name, rank=items.rank, size_bytes=file.size_bytes)
    plan.aliases.extend(aliases.values())
    return plan


def lay_out(name: str, rank: int, tensors: list[pb.SaveTensor]) -> pb.PlannedFile:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for number, tensor in enumerate(tensors):
        shape = list(tensor.piece_shape or tensor.shape)
        label = tensor.name if not tensor.piece_shape else f"{tensor.name}#{number}"
        header[label] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [at, at + nbytes(tensor)]}
        at += nbytes(tensor)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = pb.PlannedFile(name=name, rank=rank, header=struct.pack("<Q", len(text)) + text)
    offset = len(file.header)
    file.size_bytes = offset + at
    for tensor in tensors:
        file.tensors.add(tensor=tensor, offset_bytes=offset, length_bytes=nbytes(tensor))
        offset += nbytes(tensor)
    return file


def nbytes(tensor: pb.SaveTensor) -> int:
    found = expected_bytes(tensor.dtype, tuple(tensor.piece_shape or tensor.shape))
    assert found is not None
    assert found >= 0
    return found


def memory_of(address: int, length: int) -> bytes:
    return ctypes.string_at(address, length)
