"""The Checkpoints service in Python, with its slab socket, beside a `FakeLoader` that loads what was saved.

What a loader keeps on disk and in shared memory is in `Store`, which outlives a `FakeCheckpoints`: end one and make
another over the same store, and the loader was restarted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from fake_loader import FakeLoader, FakeModel, RpcFailure
from fake_plan import plan_of
from fake_slabs import FakeSlabs
from fake_store import Attempt, Store

from longshore._proto import checkpoint_pb2 as pb


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
        #: Watches hear nothing.
        self.is_mute = False
        self.failure: RpcFailure | None = None
        #: For tests that make another one over the same store.
        self.restarted: Callable[[FakeCheckpoints], object] = lambda _: None
        self._joining: dict[tuple[str, int], list[pb.PlanSaveRequest]] = {}
        self._closing = False
        self.slabs = FakeSlabs(store, os.path.join(self.folder, "slabs.sock"))
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
        self.slabs.close()
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
            if self.is_mute:
                context.abort(grpc.StatusCode.UNAVAILABLE, "mute")
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
