"""Makes tensors of torch or numpy over mapped memory. Both are imported only when they are used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import Any, Protocol

from longshore._boxes import Box
from longshore._dtypes import DTYPES
from longshore._errors import InvalidArgument, NotFound, Unsupported
from longshore._gpu import GpuRegion

#: A mapped region: of host memory, or of a GPU's.
Region = memoryview | GpuRegion


class Framework(Protocol):
    """What a Model needs of torch or numpy."""

    name: str
    #: Whether its tensors can be on a GPU.
    on_gpus: bool

    def is_raw(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether tensors of this kind are delivered as flat bytes."""

    def check_region(self, region: GpuRegion) -> None:
        """Raises when tensors over it cannot be made."""

    def tensor(self, data: Region, offset: int, length: int, dtype: str, shape: tuple[int, ...]) -> Any:
        """A view of `length` bytes at `offset` of a region; of none at all for a tensor without elements."""

    def assemble(self, parts: Sequence[tuple[Box, Any]], dtype: str, shape: tuple[int, ...], name: str) -> Any:
        """A tensor of its own from its parts, which must be all of it."""


class Torch:
    """torch tensors. In host memory writable, and a write stays in this process (the mapping is private)."""

    name = "torch"
    on_gpus = True

    def __init__(self, module: ModuleType) -> None:
        self._torch: Any = module
        #: Torch's dtype, and how many elements one of it packs, for each dtype that this torch has.
        self._types: dict[str, tuple[Any, int]] = {
            name: (getattr(module, dtype.torch), dtype.torch_pack)
            for name, dtype in DTYPES.items()
            if dtype.torch is not None and hasattr(module, dtype.torch)
        }

    def _type(self, dtype: str, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]] | None:
        """The torch dtype and shape; None when the tensor is delivered raw."""
        found, pack = self._types.get(dtype, (None, 1))
        if found is None:
            return None
        if pack == 1:
            return found, shape
        if not shape or shape[-1] % pack:
            return None
        return found, (*shape[:-1], shape[-1] // pack)

    def is_raw(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return self._type(dtype, shape) is None

    def check_region(self, region: GpuRegion) -> None:
        if region.torch_device != "cpu" and not self._torch.cuda.is_available():
            raise Unsupported(
                f"the model is on {region.gpu}, and torch {self._torch.__version__} has no CUDA in this process: "
                "install a build of torch with CUDA, or load with device='host'"
            )

    def tensor(self, data: Region, offset: int, length: int, dtype: str, shape: tuple[int, ...]) -> Any:
        torch = self._torch
        kind, dims = self._type(dtype, shape) or (torch.uint8, (length,))
        # One storage a tensor, not slices of one: saving, sharing and the search for tied weights go by storage.
        if isinstance(data, GpuRegion):
            if length == 0:
                return torch.empty(dims, dtype=kind, device=data.torch_device)
            flat = data.tensor(torch, offset, length)
        else:
            if length == 0:
                return torch.empty(dims, dtype=kind)
            if not offset % kind.itemsize:
                # As few calls and objects as can be: a model may have a hundred thousand tensors.
                flat = torch.frombuffer(data, dtype=kind, count=length // kind.itemsize, offset=offset)
                return flat if len(dims) == 1 else flat.view(dims)
            flat = torch.frombuffer(data[offset : offset + length], dtype=torch.uint8)
        if offset % kind.itemsize:
            flat = flat.clone()
        return flat.view(kind).view(dims)

    def assemble(self, parts: Sequence[tuple[Box, Any]], dtype: str, shape: tuple[int, ...], name: str) -> Any:
        _check_parts(parts, shape, name, raw=self.is_raw(dtype, shape))
        torch = self._torch
        kind, dims = self._type(dtype, shape) or (torch.uint8, shape)
        made = torch.empty(dims, dtype=kind, device=parts[0][1].device)
        for box, part in parts:
            made[_packed(box, shape, dims)] = part
        return made


class Numpy:
    """numpy arrays, read-only, in host memory."""

    name = "numpy"
    on_gpus = False

    def __init__(self, module: ModuleType, extended: ModuleType | None) -> None:
        self._numpy: Any = module
        self._extended: Any = extended

    def _type(self, dtype: str) -> Any:
        """The numpy dtype; None when the tensor is delivered raw."""
        known = DTYPES.get(dtype)
        if known is None or known.numpy is None:
            return None
        if not known.extended:
            return self._numpy.dtype(known.numpy).newbyteorder("<")
        scalar = getattr(self._extended, known.numpy, None)
        return None if scalar is None else self._numpy.dtype(scalar)

    def is_raw(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return self._type(dtype) is None

    def check_region(self, region: GpuRegion) -> None:
        require_gpus(self, f"the model is on {region.gpu}")

    def tensor(self, data: Region, offset: int, length: int, dtype: str, shape: tuple[int, ...]) -> Any:
        numpy = self._numpy
        kind = self._type(dtype)
        dims = shape
        if kind is None:
            kind, dims = numpy.dtype(numpy.uint8), (length,)
        if isinstance(data, GpuRegion):
            raise _host_only(self, f"the tensor is on {data.gpu}")
        flat = numpy.frombuffer(data[offset : offset + length].toreadonly(), dtype=numpy.uint8)
        if offset % kind.itemsize:
            flat = flat.copy()
            flat.flags.writeable = False
        return flat.view(kind).reshape(dims)

    def assemble(self, parts: Sequence[tuple[Box, Any]], dtype: str, shape: tuple[int, ...], name: str) -> Any:
        _check_parts(parts, shape, name, raw=self.is_raw(dtype, shape))
        made = self._numpy.empty(shape, dtype=self._type(dtype))
        for box, part in parts:
            made[box.slices()] = part
        made.flags.writeable = False
        return made


class Missing:
    """Neither torch nor numpy is installed: files can be used, tensors cannot."""

    name = "none"
    on_gpus = False

    def is_raw(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return True

    def check_region(self, region: GpuRegion) -> None:
        require_gpus(self, f"the model is on {region.gpu}")

    def tensor(self, data: Region, offset: int, length: int, dtype: str, shape: tuple[int, ...]) -> Any:
        raise Unsupported("tensors need torch or numpy, and neither is installed; try: pip install numpy ml_dtypes")

    def assemble(self, parts: Sequence[tuple[Box, Any]], dtype: str, shape: tuple[int, ...], name: str) -> Any:
        return self.tensor(memoryview(b""), 0, 0, dtype, shape)


def _check_parts(parts: Sequence[tuple[Box, Any]], shape: tuple[int, ...], name: str, *, raw: bool) -> None:
    """Parts do not overlap, so that they are all of a tensor when they have as many elements."""
    if raw:
        raise Unsupported(f"tensor {name!r} is stored in parts, and its dtype is delivered as bytes: load the parts")
    if sum(box.size for box, _ in parts) != prod(shape):
        raise NotFound(f"tensor {name!r} is not complete in this load: some of the files that have its parts are not")


def _packed(box: Box, shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[slice, ...]:
    """The index of a part in a tensor whose last dimension may be packed."""
    slices = box.slices()
    pack = shape[-1] // dims[-1] if dims and dims[-1] else 1
    if pack == 1:
        return slices
    return (*slices[:-1], slice(slices[-1].start // pack, slices[-1].stop // pack))


def require_gpus(framework: Framework, why: str) -> None:
    """Raises when a framework has no tensors on GPUs."""
    if not framework.on_gpus:
        raise _host_only(framework, why)


def _host_only(framework: Framework, why: str) -> Unsupported:
    who = "numpy arrays are in host memory" if framework.name == "numpy" else "tensors there need torch"
    return Unsupported(f"{why}, and {who}: use framework='torch', or load with device='host'")


def choose(name: str | None) -> Framework:
    """The framework asked for; without a name torch when it is installed, else numpy."""
    if sys.byteorder != "little":  # pragma: no cover
        raise Unsupported("tensors are stored little-endian, and this machine is not")
    if name is None:
        name = next((each for each in ("torch", "numpy") if _is_installed(each)), "none")
    if name == "torch":
        return Torch(_import("torch"))
    if name == "numpy":
        return Numpy(_import("numpy"), _import("ml_dtypes") if _is_installed("ml_dtypes") else None)
    if name == "none":
        return Missing()
    raise InvalidArgument(f"framework {name!r} is not known: choose 'torch' or 'numpy'")


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        # Not passed over in silence: a broken torch is no reason to hand out numpy arrays.
        raise Unsupported(f"framework {name!r} cannot be imported: {error}") from error
