"""A loader in Python: the gRPC service and the attach protocol, with knobs for what a real one never does."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc

from longshore._proto import loader_pb2, model_pb2

URI = "s3://bucket/model"
F_ADD_SEALS = 1033
SEALS = 0x1 | 0x2 | 0x4 | 0x10  # seal, shrink, grow, future write
LOOPS = 64


def sealed_memfd(data: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("fake", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


@dataclass
class FakeModel:
    """Tensors and files, laid out one after the other in one region; on a GPU, files have one of their own."""

    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    #: Of tensors that are parts of others: start, shape, and the shape of the whole.
    pieces: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    alignment: int = 256
    #: Puts everything this many bytes further on.
    shift: int = 0
    #: Cuts the region into segments of this size.
    segment_bytes: int | None = None
    seals: int = SEALS
    #: Gives out memory of another kind than sealed memfds: a descriptor for these bytes.
    make_memory: Callable[[bytes], int] | None = None
    #: Where the tensors are; None for host memory.
    gpu: FakeGpu | None = None
    #: The last word on the description that an attach gets.
    edit: Callable[[loader_pb2.AttachResponse], None] = lambda _: None

    def _memory(self, data: bytes) -> int:
        return self.make_memory(data) if self.make_memory is not None else sealed_memfd(data, self.seals)

    def build(self, model_id: str, uri: str) -> Loaded:
        data = bytearray(self.shift)
        model = loader_pb2.LoadedModel(model_id=model_id, uri=uri, revision="r1", device="host")
        backing: list[Backing] = []
        for name, (dtype, shape, content) in self.tensors.items():
            data += bytes(-(len(data) - self.shift) % self.alignment)
            added = model.tensors.add(
                name=name, dtype=dtype, shape=shape, region=0, offset_bytes=len(data), length_bytes=len(content)
            )
            if name in self.pieces:
                start, extent, of_shape = self.pieces[name]
                added.piece.MergeFrom(model_pb2.Piece(start=start, shape=extent, of_shape=of_shape))
            data += content
        if self.gpu is not None:
            model.device, model.device_uuid = f"cuda:{self.gpu.device}", self.gpu.uuid
            stored = self.gpu.store(bytes(data), self.segment_bytes)
            backing.append(stored)
            model.regions.add(size_bytes=len(data), segment_bytes=stored.lengths, device=self.gpu.uuid)
            model.size_bytes, data = len(data), bytearray()
        for name, content in self.files.items():
            model.files.add(name=name, region=len(backing), offset_bytes=len(data), length_bytes=len(content))
            data += content
        model.size_bytes += len(data)
        model.tensor_count = len(self.tensors)
        if data:
            step = self.segment_bytes or len(data)
            memory = HostMemory([bytes(data[at : at + step]) for at in range(0, len(data), step)], self._memory)
            model.regions.add(size_bytes=len(data), segment_bytes=memory.lengths, device="host" if backing else "")
            backing.append(memory)
        model.warnings.append("odd but fine")
        model.skipped.add(name="notes.txt", reason="not selected")
        report = model.report
        report.seconds, report.bytes = 0.5, model.size_bytes
        report.bytes_by_tier.add(tier=model_pb2.TIER_ORIGIN, bytes=model.size_bytes)
        report.fallbacks.add(kind="origin_direct", count=2, last_detail="no worker")
        report.steps.add(step=loader_pb2.LOAD_STEP_FETCH, start_seconds=0.1, end_seconds=0.4, busy_seconds=0.6)
        return Loaded(self, model, backing)


class Backing(Protocol):
    """The memory of a region."""

    @property
    def lengths(self) -> list[int]:
        """Bytes of its segments."""

    def fds(self) -> list[int]:
        """Descriptors of it, which are the caller's to close."""


class FakeGpu(Protocol):
    """A GPU of this machine, see `gpu_support`."""

    @property
    def device(self) -> int:
        """As the loader counts."""

    @property
    def uuid(self) -> str:
        """``GPU-...``"""

    def store(self, data: bytes, segment_bytes: int | None) -> Backing:
        """Memory on it that holds these bytes."""


@dataclass
class HostMemory:
    """Segments of host memory, made anew for each client."""

    segments: list[bytes]
    make: Callable[[bytes], int]

    @property
    def lengths(self) -> list[int]:
        return [len(segment) for segment in self.segments]

    def fds(self) -> list[int]:
        return [self.make(segment) for segment in self.segments]


@dataclass
class Loaded:
    """What the loader has in memory."""

    source: FakeModel
    model: loader_pb2.LoadedModel
    backing: list[Backing]


class RpcFailure(Exception):
    """Makes a call fail with a status and, perhaps, a code of ours."""

    def __init__(self, status: grpc.StatusCode, message: str, code: str | None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class FakeLoader:
    """Listens in `folder`. `models` maps URIs to what is there."""

    def __init__(self, folder: str | None = None, services: Iterable[Any] = ()) -> None:
        self._own_folder = tempfile.TemporaryDirectory(prefix="fake-") if folder is None else None
        self.folder = folder or (self._own_folder.name if self._own_folder else "")
        self.models: dict[str, FakeModel] = {}
        self.failure: RpcFailure | None = None
        self.requests: list[loader_pb2.LoadModelRequest] = []
        self.progress: list[loader_pb2.LoadProgress] = []
        self.has_gpu_status = False
        #: Called with each LoadModel before it is answered.
        self.on_load: Callable[[], object] = lambda: None
        #: Attaches that are answered with `not_found`.
        self.evicted = 0
        #: Answers an attach in place of the protocol.
        self.attach_raw: Callable[[socket.socket], object] | None = None
        self.attach_socket = os.path.join(self.folder, "attach.sock")
        self._ids = itertools.count(1)
        self._loaded: dict[str, Loaded] = {}
        self._changed = threading.Condition()
        self._leases: list[socket.socket] = []
        self._had_lease = False
        self._handed_over = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.attach_socket)
        self._listener.listen(64)
        self._threads = ThreadPoolExecutor(LOOPS, "fake-attach")
        self._threads.submit(self._accept)
        self._server = grpc.server(ThreadPoolExecutor(8, "fake-grpc"))
        self._server.add_generic_rpc_handlers((self._handlers(), *services))
        self.socket = os.path.join(self.folder, "loader.sock")
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for lease in self._leases:
                lease.shutdown(socket.SHUT_RDWR)
        self._threads.shutdown()
        if self._own_folder:
            self._own_folder.cleanup()

    def __enter__(self) -> FakeLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- leases

    @property
    def leases(self) -> int:
        with self._changed:
            return len(self._leases)

    def wait_for_leases(self, count: int, seconds: float = 10.0) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: len(self._leases) == count, seconds)
            assert done, f"{len(self._leases)} leases after {seconds} s, not {count}"

    def wait_until_handed_over(self, count: int) -> None:
        """Until so many clients have got all their descriptors, and this loader has closed its own of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._handed_over == count, 10.0)

    def wait_for_the_last_lease(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._had_lease and not self._leases)

    # ---- gRPC

    def _handlers(self) -> Any:
        def unary(function: Callable[..., Any], request: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                self._failing(function), request.FromString, lambda answer: answer.SerializeToString()
            )

        return grpc.method_handlers_generic_handler(
            "longshore.v1.Loader",
            {
                "LoadModel": grpc.unary_stream_rpc_method_handler(
                    self._failing_stream,
                    loader_pb2.LoadModelRequest.FromString,
                    lambda answer: answer.SerializeToString(),
                ),
                "ListModels": unary(self._list, loader_pb2.ListModelsRequest),
                "UnloadModel": unary(self._unload, loader_pb2.UnloadModelRequest),
                "Status": unary(self._status, loader_pb2.LoaderStatusRequest),
            },
        )

    def _abort(self, failure: RpcFailure, context: grpc.ServicerContext) -> None:
        if failure.code is not None:
            context.set_trailing_metadata((("longshore-code", failure.code),))
        context.abort(failure.status, failure.message)

    def _failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            if self.failure:
                self._abort(self.failure, context)
            return function(request)

        return call

    def _failing_stream(
        self, request: loader_pb2.LoadModelRequest, context: grpc.ServicerContext
    ) -> Iterator[loader_pb2.LoadModelResponse]:
        self.requests.append(request)
        self.on_load()
        if self.failure:
            self._abort(self.failure, context)
        for event in self.progress:
            yield loader_pb2.LoadModelResponse(progress=event)
        model = self.models.get(request.uri)
        if model is None:
            self._abort(RpcFailure(grpc.StatusCode.NOT_FOUND, f"{request.uri} has no objects", "not_found"), context)
            return
        yield loader_pb2.LoadModelResponse(model=self._load(request, model))

    def _load(self, request: loader_pb2.LoadModelRequest, source: FakeModel) -> loader_pb2.LoadedModel:
        for known in self._loaded.values():
            if known.source is source:
                answer = loader_pb2.LoadedModel()
                answer.CopyFrom(known.model)
                answer.reattached = True
                return answer
        model_id = f"m{next(self._ids)}"
        loaded = self._loaded[model_id] = source.build(model_id, request.uri)
        loaded.model.attach_socket = self.attach_socket
        if request.HasField("parallel"):
            loaded.model.parallel.CopyFrom(request.parallel)
        return loaded.model

    def _list(self, _: loader_pb2.ListModelsRequest) -> loader_pb2.ListModelsResponse:
        return loader_pb2.ListModelsResponse(models=[loaded.model for loaded in self._loaded.values()])

    def _unload(self, request: loader_pb2.UnloadModelRequest) -> loader_pb2.UnloadModelResponse:
        gone = [key for key, each in self._loaded.items() if each.model.uri == request.uri or key == request.model_id]
        freed = sum(self._loaded.pop(key).model.size_bytes for key in gone)
        return loader_pb2.UnloadModelResponse(models=len(gone), bytes_freed=freed)

    def _status(self, _: loader_pb2.LoaderStatusRequest) -> loader_pb2.LoaderStatus:
        status = loader_pb2.LoaderStatus(version="0.1.0", arena_capacity_bytes=1000, arena_used_bytes=10)
        status.devices.add(device="host", name="memory", capacity_bytes=1000, free_bytes=900, state="ready")
        if self.has_gpu_status:
            status.pinned.MergeFrom(loader_pb2.PinnedStatus(capacity_bytes=64, staging_bytes=16, pages="4 KiB"))
            status.holder.MergeFrom(loader_pb2.HolderStatus(process=True, pid=7, uptime_seconds=1.5, models_adopted=2))
            status.holder.unknown.add(model_id="m0", reason="of a newer version", size_bytes=8, leases=1)
        status.members.add(id="w1", address="127.0.0.1:7070", weight=4, reachable=True)
        status.models.extend(loaded.model for loaded in self._loaded.values())
        return status

    # ---- attach

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.submit(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            (length,) = struct.unpack("<I", connection.recv(4, socket.MSG_WAITALL))
            request = loader_pb2.AttachRequest.FromString(connection.recv(length, socket.MSG_WAITALL))
            if self.attach_raw is not None:
                self.attach_raw(connection)
                return
            if self.evicted or request.model_id not in self._loaded:
                self.evicted = max(0, self.evicted - 1)
                self._loaded.pop(request.model_id, None)
                send_message(
                    connection,
                    loader_pb2.AttachResponse(error_code="not_found", error_message=f"no model {request.model_id}"),
                )
                return
            with self._changed:
                self._leases.append(connection)
                self._had_lease = True
                self._changed.notify_all()
            try:
                self._hand_over(connection, self._loaded[request.model_id])
                connection.recv(1)
            except OSError:
                pass
            finally:
                # Under the lock, for `close` shuts down what is in the list.
                with self._changed:
                    connection.close()
                    self._leases.remove(connection)
                    self._changed.notify_all()

    def _hand_over(self, connection: socket.socket, loaded: Loaded) -> None:
        fds = [fd for memory in loaded.backing for fd in memory.fds()]
        response = loader_pb2.AttachResponse(fd_count=len(fds))
        response.model.CopyFrom(loaded.model)
        loaded.source.edit(response)
        try:
            send_message(connection, response)
            for first in range(0, len(fds), 64):
                socket.send_fds(connection, [b"F"], fds[first : first + 64])
        finally:
            for fd in fds:
                os.close(fd)
        with self._changed:
            self._handed_over += 1
            self._changed.notify_all()


def send_message(connection: socket.socket, message: Any) -> None:
    data = message.SerializeToString()
    connection.sendall(struct.pack("<I", len(data)) + data)


def repository() -> Path:
    return Path(__file__).resolve().parents[2]
