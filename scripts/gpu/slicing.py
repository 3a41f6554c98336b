"""Tensor parallelism on the generated model: the rules that a rank asks for, and what it must then hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from compare import as_bytes, in_files

#: Rows, columns, and a matrix that is taken for two fused ones (`FUSED` parts of equal size).
ROWS = ("*.q_proj.weight", "*.k_proj.weight", "*.v_proj.weight", "*.gate_proj.weight", "*embed_tokens.weight")
COLUMNS = ("*.o_proj.weight", "*.down_proj.weight")
FUSED = "*.up_proj.weight"


def rules(longshore: Any, long: int) -> dict[str, Any]:
    """As the client takes them; `long` is the number of rows of the fused matrix."""
    split = longshore.Split
    return {
        **{pattern: split(0) for pattern in ROWS},
        **{pattern: split(1) for pattern in COLUMNS},
        FUSED: split(0, [long // 2, long - long // 2]),
    }


def long_side(files: Sequence[str]) -> int:
    """Rows of the fused matrix in these files."""
    return next(shape[0] for name, (_, _, shape) in in_files(files).items() if name.endswith(FUSED[1:]))


def _piece(tensor: torch.Tensor, dim: int, rank: int, world: int) -> torch.Tensor:
    return tensor.chunk(world, dim)[rank]


def expected(name: str, tensor: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """The rank's part of a tensor."""
    if any(name.endswith(pattern[1:]) for pattern in ROWS):
        return _piece(tensor, 0, rank, world)
    if any(name.endswith(pattern[1:]) for pattern in COLUMNS):
        return _piece(tensor, 1, rank, world)
    if name.endswith(FUSED[1:]):
        return torch.cat([_piece(half, 0, rank, world) for half in tensor.chunk(2, 0)])
    return tensor


def differences(
    tensors: Mapping[str, torch.Tensor], files: Sequence[str], rank: int, world: int
) -> tuple[int, list[str]]:
    """Tensors that were compared, and what differs."""
    wrong = []
    wanted = in_files(files)
    if wanted.keys() != tensors.keys():
        wrong.append(f"{len(tensors)} tensors, {len(wanted)} wanted")
    for name, (flat, _, shape) in wanted.items():
        if name not in tensors:
            continue
        part = expected(name, flat.view(torch.bfloat16).view(shape), rank, world)
        found = tensors[name]
        if found.shape != part.shape:
            wrong.append(f"{name} has shape {list(found.shape)}, wanted {list(part.shape)}")
        elif not torch.equal(as_bytes(found).cpu(), as_bytes(part)):
            wrong.append(f"{name} has other bytes than its slice")
    return len(wanted), wrong
