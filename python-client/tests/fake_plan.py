"""Lays checkpoints out, in Python."""

from __future__ import annotations

import itertools
import json
import struct
import uuid
from typing import Any

from longshore._dtypes import expected_bytes
from longshore._proto import checkpoint_pb2 as pb


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
