"""Committed checkpoints: what there is, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longshore._boxes import Box, whole
from longshore._errors import InvalidArgument, NotFound
from longshore._node import _absolute
from longshore._progress import format_bytes
from longshore._proto import checkpoint_pb2 as pb
from longshore._service import Service, service
from longshore._tree import qualified

#: A list or a deletion may have to ask the origin for many objects.
CALL_SECONDS = 300.0


@dataclass(frozen=True, repr=False)
class CheckpointInfo:
    """A committed checkpoint."""

    step: int
    #: Of the checkpoint itself: `longshore.load` takes it, and so does every tool that reads the files.
    url: str
    #: Names the attempt that was committed.
    attempt: str
    #: Seconds since 1970.
    created: float
    nbytes: int
    #: Bytes that are stored for this checkpoint alone: less than `nbytes` for a delta.
    own_bytes: int
    tensor_count: int
    file_count: int
    #: Step of the checkpoint that this delta was made from; None for a full checkpoint.
    parent_step: int | None
    #: As it was given to `longshore.save`.
    metadata: Mapping[str, str]

    def __repr__(self) -> str:
        delta = "" if self.parent_step is None else f", a delta from step {self.parent_step}"
        return (
            f"<longshore.{type(self).__name__} {self.url} (step {self.step}, attempt {self.attempt}, "
            f"{self.tensor_count} tensors, {self.file_count} files, {format_bytes(self.nbytes)}{delta})>"
        )


@dataclass(frozen=True)
class CheckpointFile:
    """A file of a checkpoint. `checksum` is its CRC-64/NVME, 16 hex digits."""

    name: str
    nbytes: int
    checksum: str


@dataclass(frozen=True)
class CheckpointPiece:
    """A rectangular part of a tensor: where it lies, and in which file."""

    file: str
    offset: int
    nbytes: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    checksum: str

    @property
    def box(self) -> Box:
        return Box(self.start, self.shape)


@dataclass(frozen=True, repr=False)
class CheckpointTensor:
    """A tensor of a checkpoint, in as many pieces as it was saved in."""

    #: ``group/name``, or the name alone.
    name: str
    dtype_name: str
    shape: tuple[int, ...]
    pieces: tuple[CheckpointPiece, ...]

    def __repr__(self) -> str:
        size = format_bytes(sum(piece.nbytes for piece in self.pieces))
        count = f"{len(self.pieces)} piece{'' if len(self.pieces) == 1 else 's'}"
        return f"<longshore.CheckpointTensor {self.name} ({self.dtype_name} {list(self.shape)}, {count}, {size})>"


@dataclass(frozen=True, repr=False)
class Checkpoint(CheckpointInfo):
    """A committed checkpoint and what is in it."""

    files: tuple[CheckpointFile, ...] = ()
    tensors: Mapping[str, CheckpointTensor] = field(default_factory=dict)
    #: Other names of tensors: that of an alias to that of the tensor.
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DeleteResult:
    """What a deletion did. `objects_kept` stay because other checkpoints, deltas, need them."""

    objects_deleted: int
    bytes_freed: int
    objects_kept: int


def latest(
    uri: str | os.PathLike[str], *, address: str | None = None, timeout: float | None = None
) -> Checkpoint | None:
    """The newest committed checkpoint of a run, or None when it has none.

    `uri` is the one that was given to `longshore.save`. What is being saved, or was given up, does not count. `address`
    is that of a loader, as `longshore.connect` takes it; without a running one a private loader is used.
    """
    try:
        return get(service(address), uri, None, timeout)
    except NotFound:
        return None


def list_checkpoints(
    uri: str | os.PathLike[str], *, address: str | None = None, timeout: float | None = None
) -> list[CheckpointInfo]:
    """The committed checkpoints of a run, the newest last; empty when it has none."""
    request = pb.ListCheckpointsRequest(uri=_absolute(uri))
    response: pb.ListCheckpointsResponse = service(address).call(
        "ListCheckpoints", request, pb.ListCheckpointsResponse, timeout or CALL_SECONDS
    )
    return [CheckpointInfo(**_summary(each)) for each in response.checkpoints]


def delete(
    uri: str | os.PathLike[str], step: int, *, address: str | None = None, timeout: float | None = None
) -> DeleteResult:
    """Deletes a committed checkpoint of a run: first its commit, so that no reader finds half of it.

    Objects that deltas need stay, until those are deleted. Raises `NotFound` when the step is not committed.
    """
    request = pb.DeleteCheckpointRequest(uri=_absolute(uri), step=check_step(step))
    response: pb.DeleteCheckpointResponse = service(address).call(
        "DeleteCheckpoint", request, pb.DeleteCheckpointResponse, timeout or CALL_SECONDS
    )
    return DeleteResult(response.objects_deleted, response.bytes_freed, response.objects_kept)


def get(where: Service, uri: str | os.PathLike[str], step: int | None, timeout: float | None) -> Checkpoint:
    """The checkpoint of a step; the newest for None."""
    request = pb.GetCheckpointRequest(uri=_absolute(uri))
    if step is not None:
        request.step = check_step(step)
    return checkpoint(where.call("GetCheckpoint", request, pb.Checkpoint, timeout or CALL_SECONDS))


def check_step(step: object) -> int:
    """A step is a whole number that fits into 64 bits."""
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 64:
        raise InvalidArgument(f"a step is a whole number from 0 on, not {step!r}")
    return step


def checkpoint(message: pb.Checkpoint) -> Checkpoint:
    """Converts the message."""
    files = tuple(CheckpointFile(file.name, file.size_bytes, file.checksum) for file in message.files)
    tensors = {}
    for tensor in message.tensors:
        shape = tuple(tensor.shape)
        pieces = []
        for piece in tensor.pieces:
            box = Box(tuple(piece.start), tuple(piece.shape)) if piece.shape else whole(shape)
            name = files[piece.file].name if piece.file < len(files) else ""
            pieces.append(
                CheckpointPiece(name, piece.offset_bytes, piece.length_bytes, box.start, box.shape, piece.checksum)
            )
        tensors[tensor.name] = CheckpointTensor(tensor.name, tensor.dtype, shape, tuple(pieces))
    aliases = {qualified(each.group, each.name): qualified(each.group, each.target) for each in message.aliases}
    return Checkpoint(**_summary(message.summary), files=files, tensors=tensors, aliases=aliases)


def _summary(message: pb.CheckpointSummary) -> dict[str, Any]:
    return {
        "step": message.step,
        "url": message.url,
        "attempt": message.attempt,
        "created": message.created_ms / 1000,
        "nbytes": message.size_bytes,
        "own_bytes": message.own_bytes,
        "tensor_count": message.tensor_count,
        "file_count": message.file_count,
        "parent_step": message.parent_step if message.HasField("parent_step") else None,
        "metadata": dict(message.metadata),
    }
