"""Loading into tensors that are there: each rank gets what it has of each tensor, however many ranks saved it.

Names are found as `longshore.save` gives them, so that the same nested state dict finds its own; what it has that the
checkpoint lacks is an error before anything is written, what the checkpoint has beside that is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from longshore import _inputs, _tree
from longshore._boxes import Box, intersection, whole
from longshore._checkpoints import Checkpoint
from longshore._errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from longshore._model import Model
from longshore._sources import as_bits

_SHOWN = 5


@dataclass(frozen=True)
class Target:
    """A tensor to fill."""

    path: _tree.Path
    #: Its name in a checkpoint, unless the checkpoint has another one at its path.
    name: str
    value: Any
    shape: tuple[int, ...]
    #: What this rank has of it.
    box: Box
    #: Stored elements in one of its own, along the last dimension.
    pack: int

    @property
    def local(self) -> Any:
        """The memory to write to."""
        return self.value.to_local() if _inputs.is_dtensor(self.value) else self.value


def targets(into: object) -> list[Target]:
    """The tensors of a nested state dict that this rank has a part of."""
    found = []
    for leaf in _tree.flatten(into, _inputs.is_tensor, allow_pickle=True).leaves:
        where = _tree.show(leaf.path)
        if _inputs.is_dtensor(leaf.value):
            box = _inputs.local_box(leaf.value, where)
            if box is None:
                continue
        else:
            if getattr(getattr(leaf.value, "device", None), "type", "") == "meta":
                raise InvalidArgument(f"{where} is a meta tensor, which has no memory to load into")
            box = whole(tuple(leaf.value.shape))
        pack = _inputs.packing(leaf.value)
        shape = _times(tuple(leaf.value.shape), pack)
        box = Box(_times(box.start, pack), _times(box.shape, pack))
        found.append(Target(leaf.path, leaf.qualified, leaf.value, shape, box, pack))
    return found


def _times(numbers: tuple[int, ...], pack: int) -> tuple[int, ...]:
    return numbers if pack == 1 else (*numbers[:-1], numbers[-1] * pack)


def files_of(checkpoint: Checkpoint, wanted: list[Target]) -> list[str] | None:
    """The names of the files that have something of the targets; None when that cannot be told by names alone."""
    found: dict[str, None] = {}
    for target in wanted:
        name = checkpoint.aliases.get(target.name, target.name)
        tensor = checkpoint.tensors.get(name)
        if tensor is None or tensor.shape != target.shape:
            return None
        for piece in tensor.pieces:
            if intersection(piece.box, target.box) is not None:
                found.setdefault(piece.file)
    return list(found)


def restore(model: Model[Any], into: Any, wanted: list[Target], *, allow_pickle: bool = False) -> None:
    """Copies from a loaded checkpoint into the targets, and its other values into the containers of `into`."""
    document = model._document
    tree = None if document is None else document.tree
    names = _tree.references(tree) if tree is not None else {}
    plans = []
    problems = []
    for target in wanted:
        name = names.get(target.path, target.name)
        name = model._alias_map.get(name, name)
        parts = model._boxes(name)
        if not parts and target.box.size == 0 and _is_stored(model, name, target.shape):
            # This rank has nothing of it, and did not load the file that it is in.
            continue
        if not parts:
            problems.append(f"{_tree.show(target.path)} is not in it as {name!r}")
            continue
        info = model.info(name)
        if info.shape != target.shape:
            problems.append(f"{_tree.show(target.path)} is {list(target.shape)} here and {list(info.shape)} there")
            continue
        plans.append((target, name, parts))
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise FailedPrecondition(f"{model.uri} does not fit: {'; '.join(problems[:_SHOWN])}{more}")
    for target, name, parts in plans:
        _fill(model, target, name, parts)
    if tree is not None:
        _set_values(into, _tree.unflatten(tree, lambda _: _TENSOR, allow_pickle=allow_pickle, where=model.uri))


def _is_stored(model: Model[Any], name: str, shape: tuple[int, ...]) -> bool:
    stored = model.checkpoint.tensors.get(name) if model.checkpoint is not None else None
    return stored is not None and stored.shape == shape


def _fill(model: Model[Any], target: Target, name: str, parts: list[tuple[Box, str]]) -> None:
    local = target.local
    copied = 0
    for box, stored in parts:
        common = intersection(box, target.box)
        if common is None:
            continue
        source = model._tensor(stored)
        if model.info(stored).raw and source.dtype != local.dtype:
            raise Unsupported(f"{model.uri}: tensor {name!r} is of a dtype that is delivered as bytes")
        _copy(local, _slices(common, target.box, target.pack), source, _slices(common, box, target.pack))
        copied += common.size
    if copied != target.box.size:
        raise NotFound(f"{model.uri}: tensor {name!r} is not complete in this load")


def _slices(common: Box, of: Box, pack: int) -> tuple[slice, ...]:
    """Where the common elements lie in a tensor that holds a box, its last dimension perhaps packed."""
    slices = common.slices(of.start)
    if pack == 1 or not slices:
        return slices
    return (*slices[:-1], slice(slices[-1].start // pack, slices[-1].stop // pack))


def _copy(local: Any, index: tuple[slice, ...], source: Any, taken: tuple[slice, ...]) -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(local, torch.Tensor):
        target = local.detach()
        if not isinstance(source, torch.Tensor):
            source = torch.from_numpy(source.copy())
        elif source.dtype == target.dtype and not target.is_conj() and not target.is_neg():
            # Bytes: torch copies not all dtypes that it has.
            source, target = as_bits(torch, source), as_bits(torch, target)
        with torch.no_grad():
            target[index].copy_(source[taken])
        return
    if torch is not None and isinstance(source, torch.Tensor):
        source = _as_numpy(torch, source, local)
    local[index if index else ...] = source[taken]


def _as_numpy(torch: Any, source: Any, like: Any) -> Any:
    """An array of a tensor's elements, also of those that numpy knows by name only."""
    try:
        return source.numpy()
    except TypeError:
        bits = source.contiguous().view(torch.uint8).numpy()
        if like.dtype.itemsize != source.element_size():
            raise InvalidArgument(f"an array of {like.dtype} cannot take elements of {source.dtype}") from None
        return bits.view(like.dtype).reshape(tuple(source.shape))


class _Tensor:
    """Stands for a tensor, which was copied already."""


_TENSOR = _Tensor()


def _set_values(into: Any, saved: Any) -> None:
    """Values that are no tensors take the place of those that are there; containers are kept."""
    if isinstance(into, MutableMapping) and isinstance(saved, Mapping):
        for key in list(into):
            if key in saved:
                into[key] = _value(into[key], saved[key])
    elif isinstance(into, list) and isinstance(saved, list):
        for index in range(min(len(into), len(saved))):
            into[index] = _value(into[index], saved[index])


def _value(here: Any, saved: Any) -> Any:
    if saved is _TENSOR or _inputs.is_tensor(here):
        return here
    is_container = isinstance(here, (MutableMapping, list)) and isinstance(saved, (Mapping, list))
    if is_container and _has_tensor(saved):
        _set_values(here, saved)
        return here
    return here if _has_tensor(saved) else saved


def _has_tensor(value: Any) -> bool:
    if value is _TENSOR:
        return True
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_tensor, value))
