"""One rank's part of a save: from a planner's items to what is copied into slabs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

from longshore import _inputs, _tree
from longshore._boxes import whole
from longshore._collect import Collected
from longshore._errors import InvalidArgument, Unsupported
from longshore._handle import SaveHandle
from longshore._inputs import Input
from longshore._save import begin
from longshore._service import Service
from longshore._sources import Source, TensorSource
from longshore.torch._layout import (
    Agreed,
    ObjectPath,
    Offer,
    Piece,
    coordinator_files,
    objects_file,
    pieces_of,
    small_value,
)
from longshore.torch._settings import Settings


@dataclass
class Part:
    """What a rank has to write."""

    offer: Offer
    #: The tensors, in the order of the offer's pieces.
    inputs: list[Input] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def begin(
        self, where: Service, agreed: Agreed, settings: Settings, deadline: float, *, is_coordinator: bool
    ) -> SaveHandle:
        """Starts this rank's part, and copies it. On return it is staged."""
        plan, rank = agreed.save_plan, self.offer.rank
        collected = (
            coordinator_files(rank, settings, agreed.metadata, agreed.document) if is_coordinator else Collected(rank)
        )
        for piece, found in zip(self.offer.pieces, self.inputs, strict=True):
            collected.add_tensor(*agreed.names[piece.fqn], found)
        mine = [fqn for fqn, (file, _, _) in agreed.blobs.items() if file == objects_file(rank)]
        if mine:
            collected.add_file(objects_file(rank), b"".join(self.blobs[fqn] for fqn in mine))
        return begin(
            where,
            plan,
            rank,
            maker_of=lambda file, tensor: collected.maker(tensor.tensor, is_mine=plan.files[file].rank == rank),
            content_of=collected.content,
            inline=collected.inline,
            devices=collected.devices,
            deadline=deadline,
        )


def part_of(plan: SavePlan, planner: SavePlanner, rank: int, *, gather: bool) -> Part:
    """What a plan has for a rank. Objects are pickled here, tensors are looked up when they are copied.

    With `gather` the sharded DTensors of the model are put together, whatever shards the plan has for this rank.
    """
    paths = _paths(plan.planner_data)
    part = Part(Offer(rank, paths=paths))
    state: Mapping[str, Any] = getattr(planner, "state_dict", None) or {}
    gathered = _gathered(state, paths) if gather else {}
    for fqn, found in gathered.items():
        part.offer.pieces.append(Piece(fqn, found.dtype_name, found.shape, found.box, (0,) * len(found.shape), True))
        part.inputs.append(found)
    items: dict[tuple[str, tuple[int, ...]], WriteItem] = {}
    for item in plan.items:
        if item.type == WriteItemType.BYTE_IO:
            add_object(part, item, planner, state)
        elif item.tensor_data is not None:
            items[item.index.fqn, tuple(item.tensor_data.chunk.offsets)] = item
    for piece in pieces_of(plan):
        if piece.fqn not in gathered:
            part.offer.pieces.append(piece)
            device = _inputs.cuda_device(state[piece.fqn]) if isinstance(state.get(piece.fqn), torch.Tensor) else None
            source = _source(piece, items[piece.fqn, piece.offset], planner, device)
            part.inputs.append(Input(piece.dtype, piece.shape, piece.box, device, None, source))
    if gather:
        _check_whole(part)
    return part


def add_object(part: Part, item: WriteItem, planner: SavePlanner, state: Mapping[str, Any]) -> None:
    """Pickles what is no tensor."""
    fqn = item.index.fqn
    data = planner.resolve_data(item)
    if not isinstance(data, io.BytesIO):
        raise InvalidArgument(f"the planner gave a {type(data).__name__} for the object {fqn!r}, and not bytes")
    part.blobs[fqn] = data.getvalue()
    part.offer.blobs[fqn] = len(part.blobs[fqn])
    value = small_value(state[fqn]) if fqn in state else None
    if value is not None:
        part.offer.values[fqn] = value


def _paths(planner_data: Any) -> dict[str, ObjectPath]:
    """Where things are in the state dict, when the planner says so as torch's own does."""
    if not isinstance(planner_data, Mapping):
        return {}
    return {fqn: tuple(path) for fqn, path in planner_data.items() if isinstance(path, (tuple, list))}


def is_of_model(path: ObjectPath) -> bool:
    """Whether a tensor is the model's, which other tools read."""
    return len(path) == 1 or path[0] == _tree.MODEL_KEY


def _gathered(state: Mapping[str, Any], paths: Mapping[str, ObjectPath]) -> dict[str, Input]:
    """The DTensors of the model that are to be put together; every rank of their mesh takes part."""
    found = {}
    for fqn, value in state.items():
        if is_of_model(paths.get(fqn, (fqn,))) and _inputs.is_dtensor(value):
            described = _inputs.describe(value, fqn, gather=True)
            if described is not None and described.collective:
                found[fqn] = described
    return found


def _source(piece: Piece, item: WriteItem, planner: SavePlanner, device: int | None) -> Callable[[], Source]:
    def make() -> Source:
        tensor = planner.resolve_data(item)
        if not isinstance(tensor, torch.Tensor):
            raise InvalidArgument(f"the planner gave a {type(tensor).__name__} for the tensor {piece.fqn!r}")
        tensor = tensor.detach()
        described = _inputs.describe(tensor, repr(piece.fqn))
        if described is None or (described.dtype_name, described.shape) != (piece.dtype, piece.box.shape):
            raise InvalidArgument(
                f"the planner gave {tensor.dtype} {list(tensor.shape)} for {piece.fqn!r}, which it had planned as "
                f"{piece.dtype} {list(piece.box.shape)}"
            )
        if described.device != device:
            # A planner that moves tensors: copied the plain way.
            return TensorSource(tensor.cpu())
        return described.source()

    return make


def _check_whole(part: Part) -> None:
    """For other tools every tensor of the model has to be whole."""
    for piece in part.offer.pieces:
        if is_of_model(part.offer.paths.get(piece.fqn, (piece.fqn,))) and piece.box != whole(piece.shape):
            raise Unsupported(
                f"{piece.fqn!r} is a part of a tensor that is no DTensor, and cannot be put together: use "
                "layout='sharded', or a state dict with full tensors"
            )
