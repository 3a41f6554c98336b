"""The CUDA driver by ctypes: neither a toolkit, nor torch, nor an extension module is needed to map a GPU's memory.

`driver` loads libcuda once a process and finds the GPUs that this process sees. `Gpu.call` makes one driver call and
turns its result into this package's errors; `Gpu.attempt` is for cleaning up, where there is nobody to tell.
"""

from __future__ import annotations

import ctypes
import os
import re
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from longshore._errors import (
    Error,
    Exhausted,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    Unavailable,
    Unsupported,
)

#: What the driver installs; the name without a number belongs to toolkits.
LIBRARY = "libcuda.so.1"
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
FORKED = "CUDA was used before this process was forked, and does not work in the child: use the spawn method"

# Numbers of <cuda.h> (CUresult, CUmemAllocationType, CUmemLocationType, CUmemAllocationHandleType, CUmemAccess_flags,
# CUpointer_attribute, CUmemorytype, CUstream_flags). They are part of the driver's binary interface.
SUCCESS = 0
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
CAPTURE_ERRORS = range(900, 909)
_NO_GPU = frozenset({34, 35, 36, 100, 101, 801, 803, 804})
_BROKEN = frozenset(
    {4, 46, 214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 802, 805, 806, 807, 808, 810, 999}
)
ALLOCATION_PINNED = 1
LOCATION_DEVICE = 1
HANDLE_POSIX_FD = 1
GRANULARITY_MINIMUM = 0
ACCESS_READ = 1
POINTER_MEMORY_TYPE = 2
POINTER_DEVICE_ORDINAL = 9
MEMORY_HOST = 1
MEMORY_DEVICE = 2
STREAM_NON_BLOCKING = 1


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class AllocationProp(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("win32_metadata", ctypes.c_void_p),
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class AccessDesc(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class Memcpy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("src_x_bytes", ctypes.c_size_t),
        ("src_y", ctypes.c_size_t),
        ("src_memory_type", ctypes.c_int),
        ("src_host", ctypes.c_void_p),
        ("src_device", ctypes.c_uint64),
        ("src_array", ctypes.c_void_p),
        ("src_pitch", ctypes.c_size_t),
        ("dst_x_bytes", ctypes.c_size_t),
        ("dst_y", ctypes.c_size_t),
        ("dst_memory_type", ctypes.c_int),
        ("dst_host", ctypes.c_void_p),
        ("dst_device", ctypes.c_uint64),
        ("dst_array", ctypes.c_void_p),
        ("dst_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


_Device = ctypes.c_int
_Context = ctypes.c_void_p
_Stream = ctypes.c_void_p
_Event = ctypes.c_void_p
_Pointer = ctypes.c_uint64
_Handle = ctypes.c_uint64
_Flags = ctypes.c_uint64
_Size = ctypes.c_size_t

#: Every function that is called, with the types of its arguments; all return a CUresult. The names are those that
#: <cuda.h> maps the documented ones to.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorName": (ctypes.c_uint, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (ctypes.c_uint, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGetCount": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGet": (ctypes.POINTER(_Device), ctypes.c_int),
    "cuDeviceGetUuid_v2": (ctypes.c_void_p, _Device),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_Context), _Device),
    "cuDevicePrimaryCtxRelease_v2": (_Device,),
    "cuCtxPushCurrent_v2": (_Context,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(_Context),),
    "cuCtxGetCurrent": (ctypes.POINTER(_Context),),
    "cuCtxGetDevice": (ctypes.POINTER(_Device),),
    "cuCtxSynchronize": (),
    "cuMemGetAllocationGranularity": (ctypes.POINTER(_Size), ctypes.POINTER(AllocationProp), ctypes.c_int),
    "cuMemAddressReserve": (ctypes.POINTER(_Pointer), _Size, _Size, _Pointer, _Flags),
    "cuMemAddressFree": (_Pointer, _Size),
    "cuMemImportFromShareableHandle": (ctypes.POINTER(_Handle), ctypes.c_void_p, ctypes.c_int),
    "cuMemMap": (_Pointer, _Size, _Size, _Handle, _Flags),
    "cuMemUnmap": (_Pointer, _Size),
    "cuMemSetAccess": (_Pointer, _Size, ctypes.POINTER(AccessDesc), _Size),
    "cuMemRelease": (_Handle,),
    "cuPointerGetAttribute": (ctypes.c_void_p, ctypes.c_int, _Pointer),
    "cuMemAlloc_v2": (ctypes.POINTER(_Pointer), _Size),
    "cuMemFree_v2": (_Pointer,),
    "cuMemcpyDtoDAsync_v2": (_Pointer, _Pointer, _Size, _Stream),
    "cuStreamCreate": (ctypes.POINTER(_Stream), ctypes.c_uint),
    "cuStreamSynchronize": (_Stream,),
    "cuStreamDestroy_v2": (_Stream,),
    "cuStreamWaitEvent": (_Stream, _Event, ctypes.c_uint),
    "cuEventCreate": (ctypes.POINTER(_Event), ctypes.c_uint),
    "cuEventRecord": (_Event, _Stream),
    "cuEventSynchronize": (_Event,),
    "cuEventDestroy_v2": (_Event,),
    "cuMemHostRegister_v2": (ctypes.c_void_p, _Size, ctypes.c_uint),
    "cuMemHostUnregister": (ctypes.c_void_p,),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _Pointer, _Size, _Stream),
    "cuMemcpy2DAsync_v2": (ctypes.POINTER(Memcpy2D), _Stream),
}


class Driver:
    """The loaded library and the GPUs that this process sees. Calls let other Python threads run."""

    def __init__(self, library: str, wanted: str) -> None:
        try:
            loaded = ctypes.CDLL(library)
        except OSError as error:
            raise Unsupported(
                f"{wanted}: there is no NVIDIA driver in this process ({error}): run where {library} is installed (in "
                "a container: with the NVIDIA runtime), or load with device='host'"
            ) from error
        self.pid = os.getpid()
        self._functions: dict[str, Any] = {}
        for name, arguments in _FUNCTIONS.items():
            try:
                function = getattr(loaded, name)
            except AttributeError as error:
                raise Unsupported(
                    f"{wanted}: the NVIDIA driver is too old: {library} has no {name}; update the driver"
                ) from error
            function.argtypes = arguments
            function.restype = ctypes.c_uint
            self._functions[name] = function
        number = self.attempt("cuInit", 0)
        if number == NOT_INITIALIZED:
            raise FailedPrecondition(f"{wanted}: {self.describe('cuInit', number)}: {FORKED}")
        self.check(wanted, "cuInit", number)
        self.gpus = self._find_gpus()

    def _find_gpus(self) -> tuple[Gpu, ...]:
        doing = "looking for GPUs"
        count = ctypes.c_int()
        self.call(doing, "cuDeviceGetCount", ctypes.byref(count))
        found = []
        for ordinal in range(count.value):
            device = _Device()
            self.call(doing, "cuDeviceGet", ctypes.byref(device), ordinal)
            raw = (ctypes.c_ubyte * 16)()
            self.call(doing, "cuDeviceGetUuid_v2", ctypes.byref(raw), device)
            found.append(Gpu(self, ordinal, device.value, uuids.UUID(bytes=bytes(raw))))
        return tuple(found)

    def attempt(self, name: str, *arguments: Any) -> int:
        """Calls a function and returns its CUresult."""
        return int(self._functions[name](*arguments))

    def call(self, doing: str, name: str, *arguments: Any) -> None:
        """Calls a function, and raises when it fails."""
        self.check(doing, name, self.attempt(name, *arguments))

    def check(self, doing: str, name: str, number: int) -> None:
        """Raises the error that a CUresult means."""
        if number != SUCCESS:
            raise _error_class(number)(f"{doing}: {self.describe(name, number)}")

    def describe(self, name: str, number: int) -> str:
        """``cuMemMap: CUDA_ERROR_OUT_OF_MEMORY (2), out of memory``."""
        texts = []
        for function in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            known = self.attempt(function, number, ctypes.byref(text)) == SUCCESS and text.value is not None
            texts.append((text.value or b"").decode(errors="replace") if known else "")
        return f"{name}: {texts[0] or 'an error that this driver has no name for'} ({number})" + (
            f", {texts[1]}" if texts[1] else ""
        )


@dataclass(frozen=True)
class Gpu:
    """One of the GPUs that this process sees."""

    driver: Driver
    #: As this process counts: CUDA_VISIBLE_DEVICES makes it differ from the loader's. torch counts the same.
    ordinal: int
    device: int
    uuid: uuids.UUID

    @property
    def name(self) -> str:
        """``GPU-8f3c...``, as the loader takes it."""
        return f"GPU-{self.uuid}"

    def __str__(self) -> str:
        return f"cuda:{self.ordinal} ({self.name})"

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function, and raises when it fails."""
        self.driver.call(str(self), name, *arguments)

    def attempt(self, name: str, *arguments: Any) -> int:
        """Calls a function and returns its CUresult."""
        return self.driver.attempt(name, *arguments)

    @contextmanager
    def current(self, context: int) -> Iterator[None]:
        """Makes a context current for a while; the caller's comes back, whatever it was."""
        self.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self.attempt("cuCtxPopCurrent_v2", ctypes.byref(_Context()))


def _error_class(number: int) -> type[Error]:
    if number == OUT_OF_MEMORY:
        return Exhausted
    if number in _NO_GPU:
        return Unsupported
    return Unavailable if number in _BROKEN else Internal


_driver: Driver | None = None


def driver(wanted: str) -> Driver:
    """The driver of this process, loaded with the first use. No lock: loading it twice does no harm.

    `wanted` is the device that it is needed for, for error messages.
    """
    global _driver  # noqa: PLW0603 - one a process
    found = _driver
    if found is None:
        found = _driver = Driver(LIBRARY, wanted)
    if found.pid != os.getpid():
        raise FailedPrecondition(f"{wanted}: {FORKED}")
    return found


def by_uuid(text: str) -> Gpu:
    """The GPU of a UUID such as ``GPU-8f3c...``."""
    wanted = parse_uuid(text)
    found = driver(text)
    for gpu in found.gpus:
        if gpu.uuid == wanted:
            return gpu
    raise Unsupported(f"{text} is not visible in this process, which sees {_visible(found)}; {_ADVICE}")


def by_ordinal(text: str) -> Gpu:
    """The GPU of ``cuda:N``, or of ``cuda``: the one that is current in this thread, else the first."""
    found = driver(text)
    ordinal = _current_ordinal(found) if text == "cuda" else int(text.removeprefix("cuda:"))
    if ordinal < len(found.gpus):
        return found.gpus[ordinal]
    raise Unsupported(f"{text} is not there: this process sees {_visible(found)}; {_ADVICE}")


_ADVICE = f"make it visible ({VISIBLE_VARIABLE}, the container's GPUs), or load with device='host'"
_UUID = re.compile(r"(?:GPU|MIG)-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})", re.IGNORECASE)


def parse_uuid(text: str) -> uuids.UUID:
    """Reads ``GPU-8f3c...`` or ``MIG-...``."""
    match = _UUID.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"device {text!r} is no UUID of a GPU, such as GPU-8f3c1d2e-0000-4a5b-8c9d-0123456789ab")
    return uuids.UUID(match[1])


def _visible(found: Driver) -> str:
    names = ", ".join(str(gpu) for gpu in found.gpus) or "no GPU"
    variable = os.environ.get(VISIBLE_VARIABLE)
    return f"{names} ({VISIBLE_VARIABLE} is {'not set' if variable is None else repr(variable)})"


def _current_ordinal(found: Driver) -> int:
    context, device = _Context(), _Device()
    if found.attempt("cuCtxGetCurrent", ctypes.byref(context)) != SUCCESS or not context.value:
        return 0
    found.call("reading the current device", "cuCtxGetDevice", ctypes.byref(device))
    return next((gpu.ordinal for gpu in found.gpus if gpu.device == device.value), 0)
