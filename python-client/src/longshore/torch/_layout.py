"""How what torch.distributed.checkpoint plans becomes a checkpoint of ours.

Each rank offers the items of its `SavePlan`; the coordinator names the tensors as `longshore.save` would, lays the
checkpoint out at the loader, and tells all ranks. Pieces of DTensors and ShardedTensors are pieces of whole tensors.
Pickled objects go to one file a rank. `.metadata` is what torch.distributed.checkpoint reads, `state.json` is what
`longshore.load` reads.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItemType

from longshore import _collect, _tree
from longshore._boxes import Box, whole
from longshore._checkpoints import get
from longshore._dtypes import DTYPES
from longshore._errors import FailedPrecondition, Internal, NotFound, Unsupported
from longshore._proto import checkpoint_pb2 as pb
from longshore._save import plan_save
from longshore._service import Service
from longshore.torch._settings import Settings
from longshore.torch._target import Target

METADATA_FILE = ".metadata"
#: Of `Metadata.storage_data`.
FORMAT = "longshore.dcp"
VERSION = 1
#: Larger values are left out of `state.json`.
VALUE_BYTES_MAX = 256 << 10

_OF_TORCH = {known.torch: (name, known.torch_pack) for name, known in DTYPES.items() if known.torch is not None}

ObjectPath = tuple[str | int, ...]


def objects_file(rank: int) -> str:
    """The file of a rank's pickled objects."""
    return f"dcp/objects-{rank:05}.bin"


@dataclass(frozen=True)
class Piece:
    """A tensor, or a part of one, in elements as they are stored."""

    fqn: str
    dtype: str
    shape: tuple[int, ...]
    box: Box
    #: Torch's offset of it, which names it in plans.
    offset: tuple[int, ...]
    #: Put together from the shards of several ranks, each of which offers it.
    gathered: bool = False


@dataclass
class Offer:
    """What one rank brings."""

    rank: int
    pieces: list[Piece] = field(default_factory=list)
    #: Pickled objects, by name, with their size.
    blobs: dict[str, int] = field(default_factory=dict)
    #: The objects themselves, pickled, as far as they are small.
    values: dict[str, bytes] = field(default_factory=dict)
    paths: dict[str, ObjectPath] = field(default_factory=dict)


@dataclass(repr=False)
class Agreed:
    """What all ranks are told."""

    #: A `pb.SavePlan`.
    plan: bytes
    #: Group and name of each tensor.
    names: dict[str, tuple[str, str]]
    #: File, offset and length of each pickled object.
    blobs: dict[str, tuple[str, int, int]]
    #: The content of `.metadata` and of `state.json`, which the coordinator writes.
    metadata: bytes
    document: bytes

    def __repr__(self) -> str:
        return f"<Agreed {len(self.names)} tensors, {len(self.blobs)} objects>"

    @property
    def save_plan(self) -> pb.SavePlan:
        return pb.SavePlan.FromString(self.plan)


def stored_dtype(dtype: torch.dtype, fqn: str) -> tuple[str, int]:
    """The name of a dtype in files, and how many stored elements one of its own has."""
    found = _OF_TORCH.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise Unsupported(f"{fqn!r} has the dtype {dtype}, which safetensors files do not have")
    return found


def times(numbers: Sequence[int], pack: int) -> tuple[int, ...]:
    """Elements of torch as stored ones."""
    return tuple(numbers) if pack == 1 or not numbers else (*numbers[:-1], numbers[-1] * pack)


def pieces_of(plan: SavePlan) -> list[Piece]:
    """The tensors and parts of tensors of a plan. Parts without elements are left out; of a tensor without any all is
    one piece.
    """
    found: dict[tuple[str, Box], Piece] = {}
    for item in plan.items:
        if item.type == WriteItemType.BYTE_IO:
            continue
        data = item.tensor_data
        if data is None:
            raise Internal(f"the plan has no shape for {item.index.fqn!r}")
        dtype, pack = stored_dtype(data.properties.dtype, item.index.fqn)
        if data.properties.layout != torch.strided:
            raise Unsupported(f"{item.index.fqn!r} is a sparse tensor: store its indices and values, or to_dense()")
        shape = times(data.size, pack)
        box = Box(times(data.chunk.offsets, pack), times(data.chunk.sizes, pack))
        if prod(shape) == 0:
            box = whole(shape)
        elif box.size == 0:
            continue
        found[item.index.fqn, box] = Piece(item.index.fqn, dtype, shape, box, tuple(data.chunk.offsets))
    return list(found.values())


def small_value(value: object) -> bytes | None:
    """An object pickled, for `state.json`; None when it cannot be or is large."""
    try:
        data = pickle.dumps(value)
    except Exception:  # noqa: BLE001 - of any class; torch.save, which has the last word, may still take it
        return None
    return data if len(data) <= VALUE_BYTES_MAX else None


def lay_out(
    where: Service,
    target: Target,
    settings: Settings,
    offers: Sequence[Offer],
    *,
    metadata: Metadata | None,
    deadline: float,
) -> Agreed:
    """On the coordinator: names everything and plans it at the loader. `metadata` is the planner's, if it has any."""
    _check_free(where, target)
    names, document = _name_tensors(offers)
    ranks = [pb.RankItems(rank=offer.rank) for offer in offers]
    blobs: dict[str, tuple[str, int, int]] = {}
    for offer, items in zip(offers, ranks, strict=True):
        for piece in offer.pieces:
            items.tensors.append(save_tensor(piece, names[piece.fqn]))
        at = 0
        for fqn, size in offer.blobs.items():
            blobs[fqn] = objects_file(offer.rank), at, size
            at += size
        if offer.blobs:
            items.files.add(name=objects_file(offer.rank), size_bytes=at)
    content = pickle.dumps(_finished(metadata or _rebuilt(offers), names, blobs))
    own = coordinator_files(offers[0].rank, settings, content, document)
    ranks[0].files.extend(own.items.files)
    request = pb.PlanSaveRequest(uri=target.uri, step=target.step, world_size=len(offers), options=settings.options())
    plan = plan_save(where, request, ranks, deadline)
    return Agreed(plan.SerializeToString(), names, blobs, content, document)


def _check_free(where: Service, target: Target) -> None:
    """Refuses a step that is committed already, before anything is copied for it."""
    try:
        found = get(where, target.uri, target.step, None)
    except (NotFound, FailedPrecondition):
        # Nothing is there, or what somebody has not committed: the loader knows whose attempt counts.
        return
    raise FailedPrecondition(
        f"{found.url} is committed already, by attempt {found.attempt}: choose another step, or delete that one first"
    )


def save_tensor(piece: Piece, name: tuple[str, str]) -> pb.SaveTensor:
    """The message of a plan."""
    message = pb.SaveTensor(group=name[0], name=name[1], dtype=piece.dtype, shape=piece.shape)
    if piece.box != whole(piece.shape):
        message.start.extend(piece.box.start)
        message.piece_shape.extend(piece.box.shape)
    return message


def coordinator_files(rank: int, settings: Settings, metadata: bytes, document: bytes) -> _collect.Collected:
    """The files that the coordinator adds: ours, and those that the writer was given."""
    found = _collect.Collected(rank)
    found.add_file(METADATA_FILE, metadata)
    found.add_file(_tree.STATE_FILE, document)
    for name, content in settings.files.items():
        _collect._add(found, name, content)
    return found


@dataclass(frozen=True)
class _Slot:
    """A tensor of the tree."""

    fqn: str


def _name_tensors(offers: Sequence[Offer]) -> tuple[dict[str, tuple[str, str]], bytes]:
    """The group and name of each tensor, and the document of the tree."""
    leaves: dict[str, Any] = {}
    paths: dict[str, ObjectPath] = {}
    for offer in offers:
        leaves.update((piece.fqn, _Slot(piece.fqn)) for piece in offer.pieces)
        # Of ranks of the same job, which torch.distributed exchanges pickled objects with all the time.
        leaves.update((fqn, pickle.loads(value)) for fqn, value in offer.values.items())  # noqa: S301
        for fqn, path in offer.paths.items():
            paths.setdefault(fqn, path)
    root: dict[str, Any] = {}
    # In the order of the first rank's state dict.
    order = {fqn: index for index, fqn in enumerate(paths)}
    for fqn in sorted(leaves, key=lambda fqn: order.get(fqn, len(order))):
        set_element(root, paths.get(fqn, (fqn,)), leaves[fqn])
    flat = _tree.flatten(root, lambda value: isinstance(value, _Slot), allow_pickle=True)
    return {leaf.value.fqn: (leaf.group, leaf.name) for leaf in flat.leaves}, flat.document()


def _finished(
    metadata: Metadata, names: Mapping[str, tuple[str, str]], blobs: Mapping[str, tuple[str, int, int]]
) -> Metadata:
    """Metadata with the places of what is stored, in plain types: it can be read without this package."""
    tensors = {fqn: _tree.qualified(*name) for fqn, name in names.items()}
    storage = {"format": FORMAT, "version": VERSION, "tensors": tensors, "objects": dict(blobs)}
    return dataclasses.replace(metadata, storage_data=storage)


def _rebuilt(offers: Sequence[Offer]) -> Metadata:
    """Metadata for planners that do not show theirs."""
    found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    paths: dict[str, ObjectPath] = {}
    for offer in offers:
        paths.update(offer.paths)
        found.update((fqn, BytesStorageMetadata()) for fqn in offer.blobs)
        for piece in offer.pieces:
            dtype, pack = torch_dtype(piece.dtype)
            entry = found.setdefault(
                piece.fqn,
                TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(over(piece.shape, pack)), []),
            )
            chunk = ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(over(piece.box.shape, pack)))
            if isinstance(entry, TensorStorageMetadata) and chunk not in entry.chunks:
                entry.chunks.append(chunk)
    return Metadata(dict(found), planner_data={fqn: paths[fqn] for fqn in found if fqn in paths} or None)


def torch_dtype(name: str) -> tuple[torch.dtype, int]:
    """The torch dtype of a stored one, and how many stored elements one of its own has."""
    known = DTYPES.get(name)
    dtype = getattr(torch, known.torch, None) if known is not None and known.torch is not None else None
    if known is None or not isinstance(dtype, torch.dtype):
        raise Unsupported(f"this torch has no dtype for {name}")
    return dtype, known.torch_pack


def over(numbers: Sequence[int], pack: int) -> tuple[int, ...]:
    """Stored elements as elements of torch."""
    return tuple(numbers) if pack == 1 or not numbers else (*numbers[:-1], numbers[-1] // pack)


def chunks_of(metadata: Metadata) -> set[MetadataIndex]:
    """Everything that a checkpoint has, by the names that plans use."""
    found: set[MetadataIndex] = set()
    for fqn, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            found.update(MetadataIndex(fqn, chunk.offsets) for chunk in entry.chunks)
        else:
            found.add(MetadataIndex(fqn))
    return found
