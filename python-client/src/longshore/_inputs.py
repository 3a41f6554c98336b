"""What can be saved: tensors of torch on any device, DTensors, and numpy arrays, as the service describes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from longshore._boxes import Box, whole
from longshore._dtypes import DTYPES
from longshore._errors import InvalidArgument, Unsupported
from longshore._proto import checkpoint_pb2 as pb
from longshore._sources import ArraySource, CudaSource, Source, TensorSource

_OF_TORCH = {known.torch: (name, known.torch_pack) for name, known in DTYPES.items() if known.torch is not None}
_OF_NUMPY = {known.numpy: name for name, known in DTYPES.items() if known.numpy is not None}


@dataclass(frozen=True)
class Input:
    """A tensor, or the part of one that this rank has."""

    #: As the safetensors format writes it.
    dtype_name: str
    #: Of the whole tensor.
    shape: tuple[int, ...]
    #: What this rank has of it.
    box: Box
    #: The GPU it is on, as this process counts; None for memory that the CPU reads.
    device: int | None
    #: Equal for tensors that are the same view of the same memory; None when that is not known.
    identity: Hashable | None
    #: Gives the bytes of the box.
    source: Callable[[], Source]
    #: `source` has to be called on all ranks that have the tensor.
    collective: bool = False

    @property
    def is_empty(self) -> bool:
        """There is nothing to store: other ranks have all elements. Of a tensor without any, everybody has all."""
        return self.box.size == 0 and self.box != whole(self.shape)

    def to_proto(self, group: str, name: str) -> pb.SaveTensor:
        """The message of a plan."""
        message = pb.SaveTensor(group=group, name=name, dtype=self.dtype_name, shape=self.shape)
        if self.box != whole(self.shape):
            message.start.extend(self.box.start)
            message.piece_shape.extend(self.box.shape)
        return message


def is_tensor(value: object) -> bool:
    """Whether a value of a state dict is stored as a tensor."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    return (torch is not None and isinstance(value, torch.Tensor)) or (
        numpy is not None and isinstance(value, numpy.ndarray)
    )


def is_dtensor(value: object) -> bool:
    """Whether a value is a DTensor."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def describe(value: Any, where: str, *, gather: bool = False) -> Input | None:
    """What this rank has of a tensor; None when it is none of those that have it. `where` names it in errors.

    With `gather` a DTensor that is dealt out counts as whole: its ranks put it together when its turn comes.
    """
    if not is_dtensor(value):
        return _of_array(value, where) if not hasattr(value, "untyped_storage") else _of_tensor(value, where)
    box = local_box(value, where)
    if box is None:
        return None
    tensor = value.to_local().detach()
    local = _of_tensor(tensor, where)
    if not any(placement.is_shard() for placement in value.placements):
        return local
    shape = tuple(value.shape)
    # All ranks have to find the same ties, also those that have no element of a tensor.
    memory = local.identity or ("storage", tensor.untyped_storage()._cdata)
    identity = ("DTensor", memory, box, shape, value.placements)
    if gather:
        return Input(
            local.dtype_name,
            _stored(tensor, shape),
            whole(_stored(tensor, shape)),
            local.device,
            identity,
            lambda: _gathered(value, where),
            collective=True,
        )
    if local.shape != box.shape:
        raise Unsupported(f"{where}: packed elements of a DTensor are not stored: use layout='huggingface'")
    return Input(local.dtype_name, shape, box, local.device, identity, local.source)


def _stored(tensor: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the whole, as it is stored: packed elements count one by one."""
    pack = packing(tensor)
    return shape if pack == 1 else (*shape[:-1], shape[-1] * pack)


def _gathered(value: Any, where: str) -> Source:
    return _of_tensor(value.full_tensor().detach(), where).source()


def local_box(value: Any, where: str) -> Box | None:
    """What this rank has of a DTensor; None when it is not in its mesh."""
    from torch.distributed.tensor import Partial
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(isinstance(placement, Partial) for placement in value.placements):
        raise InvalidArgument(f"{where} is a DTensor whose ranks have not summed it up yet (Partial): redistribute it")
    if value.device_mesh.get_coordinate() is None:
        return None
    shape, start = compute_local_shape_and_global_offset(tuple(value.shape), value.device_mesh, value.placements)
    box = Box(tuple(map(int, start)), tuple(map(int, shape)))
    if tuple(value.to_local().shape) != box.shape:
        raise Unsupported(
            f"{where}: the local part of this DTensor, {list(value.to_local().shape)} with placements "
            f"{value.placements}, is no rectangle of the whole: use layout='huggingface'"
        )
    # A rank without elements has offsets past the end in some dimension.
    return box if 0 not in box.shape else Box((0,) * len(box.shape), box.shape)


def _of_tensor(tensor: Any, where: str) -> Input:
    torch: Any = sys.modules["torch"]
    _check_kind(torch, tensor, where)
    found = _OF_TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if found is None:
        raise Unsupported(f"{where} has the dtype {tensor.dtype}, which safetensors files do not have")
    name, pack = found
    shape = tuple(tensor.shape)
    if pack != 1:
        if not shape:
            raise Unsupported(f"{where}: a scalar of packed {tensor.dtype}")
        shape = (*shape[:-1], shape[-1] * pack)
    device = cuda_device(tensor)

    def source() -> Source:
        return TensorSource(tensor) if device is None else CudaSource(tensor, device)

    identity = None
    if tensor.numel():
        view = (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        identity = (*view, str(tensor.dtype), tensor.is_conj(), tensor.is_neg())
    return Input(name, shape, whole(shape), device, identity, source)


def packing(value: Any) -> int:
    """Stored elements in one element of a tensor, along its last dimension."""
    return _OF_TORCH.get(str(value.dtype).removeprefix("torch."), ("", 1))[1]


def cuda_device(tensor: Any) -> int | None:
    """The GPU whose memory a tensor is in."""
    return int(tensor.device.index) if tensor.device.type == "cuda" else None


def _check_kind(torch: Any, tensor: Any, where: str) -> None:
    """What has no bytes of its own, or another layout, is refused by name."""
    if tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor":
        raise InvalidArgument(f"{where} is a meta tensor, which has no values: materialize it, or leave it out")
    if tensor.is_quantized:
        raise Unsupported(f"{where} is a quantized tensor: store its int_repr(), scale and zero point")
    if tensor.is_nested:
        raise Unsupported(f"{where} is a nested tensor: store its values() and offsets()")
    if tensor.layout != torch.strided:
        raise Unsupported(f"{where} is a sparse tensor ({tensor.layout}): store its indices and values, or to_dense()")
    if torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor):
        raise Unsupported(f"{where} is a {type(tensor).__name__}, which has no memory of its own: store its parts")


def _of_array(array: Any, where: str) -> Input:
    name = _OF_NUMPY.get(array.dtype.name)
    if name is None:
        raise Unsupported(f"{where} has the dtype {array.dtype}, which safetensors files do not have")
    identity = None
    if array.size:
        identity = ("numpy", array.ctypes.data, array.shape, array.strides, array.dtype.str, array.dtype.name)
    return Input(name, tuple(array.shape), whole(array.shape), None, identity, lambda: ArraySource(array))
