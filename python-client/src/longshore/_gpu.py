"""Maps the GPU memory that a loader hands over, and keeps the lease as long as anything points into it.

The descriptors are shareable handles of the driver. They are mapped one after the other into one range of addresses of
the device's primary context, which is the one that torch uses too, and *read-only*: all processes see the same memory,
and a GPU has no copy on write. A process that must write takes a private copy (`copy`).

`GpuRegion` owns the mapping. The model and every tensor made from it hold it (the tensors by their DLPack deleter), so
that it is unmapped, and its share of the lease given back, after the last of them is gone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any

from longshore import _cuda, _dlpack
from longshore._cuda import Gpu
from longshore._errors import Corrupt, Exhausted, FailedPrecondition, Internal, Unsupported
from longshore._memory import REGION_BYTES_MAX, Lease

_log = logging.getLogger("longshore")


class _Held:
    """What one region holds of the driver, in the order in which it was taken, and the lease that it has a share of."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.pid = os.getpid()
        self.context: int | None = None
        self.lease: Lease | None = None
        self.on_card = False
        self._undo: list[tuple[Any, ...]] = []

    def retain_context(self) -> int:
        """The primary context, which is made when torch has not done so yet."""
        context = ctypes.c_void_p()
        self.gpu.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.gpu.device)
        self.context = context.value or 0
        return self.context

    def undo_with(self, *call: Any) -> None:
        """Adds a call that `release` makes, the last first."""
        self._undo.append(call)

    def done(self, *call: Any) -> None:
        """Makes a call that was meant for `release` now."""
        self.gpu.call(*call)
        self._undo.remove(call)

    def release(self) -> None:
        """Gives everything back. Runs in finalizers, on any thread and inside garbage collection: never raises.

        `cuMemUnmap` does not wait for kernels that still read the memory, and would make them fail, with the whole
        context: so the context is waited for. That is not allowed while a CUDA graph is captured, which it would spoil:
        then the region waits for the next one that is mapped or released.
        """
        if self.pid != os.getpid():
            # CUDA does not survive a fork; the mapping is the parent's. The child's end of the lease is its own.
            self._end_lease()
            return
        if self.on_card and _is_capturing():
            _waiting.append(self)
            return
        if self.context is not None:
            pushed = self.gpu.attempt("cuCtxPushCurrent_v2", self.context) == _cuda.SUCCESS
            must_wait = bool(self._undo) and self.gpu.attempt("cuCtxSynchronize") in _cuda.CAPTURE_ERRORS
            while self._undo and not must_wait:
                self._give_back(*self._undo.pop())
            if pushed:
                self.gpu.attempt("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
            if must_wait:
                # From here on another thread may release it.
                _waiting.append(self)
                return
            self._give_back("cuDevicePrimaryCtxRelease_v2", self.gpu.device)
            self.context = None
        self._end_lease()

    def _give_back(self, name: str, *arguments: Any) -> None:
        """Most often this fails because a fault has ended the context: then its memory goes with the process."""
        number = self.gpu.attempt(name, *arguments)
        if number != _cuda.SUCCESS and len(_failures) < _FAILURES_MAX:
            _failures.append(f"{self.gpu}: {self.gpu.driver.describe(name, number)}")

    def _end_lease(self) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release()


#: Regions that could not be given back because a CUDA graph was being captured.
_waiting: list[_Held] = []

#: What failed in finalizers, which log nothing, because logging takes locks: the next load tells.
_failures: list[str] = []
_FAILURES_MAX = 100


def _tell_failures() -> None:
    told, _failures[:] = list(_failures), []
    for failure in told:
        _log.warning("GPU memory that was not given back, until this process ends: %s", failure)


def _release_waiting() -> None:
    for _ in range(len(_waiting)):
        try:
            held = _waiting.pop(0)
        except IndexError:
            return
        held.release()


def _release(held: _Held) -> None:
    _release_waiting()
    held.release()


def _is_capturing() -> bool:
    torch: Any = sys.modules.get("torch")
    try:
        return torch is not None and torch.cuda.is_initialized() and bool(torch.cuda.is_current_stream_capturing())
    except (AttributeError, RuntimeError):
        # A context that a fault has ended captures nothing any more.
        return False


class GpuRegion:
    """A region of a model in the memory of a GPU, as long as this object lives."""

    def __init__(self, held: _Held, address: int, nbytes: int) -> None:
        self.gpu = held.gpu
        self.address = address
        self.nbytes = nbytes
        self.dlpack_device = _dlpack_device(held.gpu, address)
        self._pid = held.pid
        held.on_card = self.dlpack_device[0] == _dlpack.CUDA
        # At interpreter exit other threads may still read: the process's end unmaps then, not this finalizer.
        self._finalizer = weakref.finalize(self, _release, held)
        self._finalizer.atexit = False

    def close(self) -> None:
        """Gives the memory back now; only while there are no tensors over it. May be called again."""
        self._finalizer()

    @property
    def torch_device(self) -> str:
        """Where tensors over it are: ``cuda:N``, also when the loader counts otherwise."""
        kind, ordinal = self.dlpack_device
        return f"cuda:{ordinal}" if kind == _dlpack.CUDA else "cpu"

    def tensor(self, torch: Any, offset: int, length: int) -> Any:
        """A torch tensor over some of its bytes, as uint8, with a storage of its own."""
        if not self._finalizer.alive:
            raise Internal(f"{self.gpu}: the memory was given back")
        if os.getpid() != self._pid:
            raise FailedPrecondition(f"this model on {self.gpu} was loaded before a fork; {_cuda.FORKED}")
        return _dlpack.export(torch.from_dlpack, self.address + offset, length, self.dlpack_device, self)


def _dlpack_device(gpu: Gpu, address: int) -> tuple[int, int]:
    """What the driver says about the memory; tensors must be on that device."""
    kind, ordinal = ctypes.c_int(), ctypes.c_int()
    gpu.call("cuPointerGetAttribute", ctypes.byref(kind), _cuda.POINTER_MEMORY_TYPE, address)
    if kind.value == _cuda.MEMORY_HOST:
        return _dlpack.CPU, 0
    if kind.value != _cuda.MEMORY_DEVICE:
        raise Unsupported(f"{gpu}: the driver calls its memory type {kind.value}, which is not known")
    gpu.call("cuPointerGetAttribute", ctypes.byref(ordinal), _cuda.POINTER_DEVICE_ORDINAL, address)
    return _dlpack.CUDA, ordinal.value


def map_region(gpu: Gpu, fds: Sequence[int], lengths: Sequence[int], size: int, lease: Lease) -> GpuRegion:
    """Maps one region from its segments, read-only, and makes it a holder of the lease.

    The descriptors stay the caller's. The region may be shorter than its segments, which are whole granules; all
    segments must be needed.
    """
    total = sum(lengths)
    if not 0 < size <= total <= REGION_BYTES_MAX or total - lengths[-1] >= size:
        raise Corrupt(f"attach: the segments of a region of {size} bytes on {gpu} have {total} bytes")
    _release_waiting()
    _tell_failures()
    held = _Held(gpu)
    try:
        with gpu.current(held.retain_context()):
            _check_granularity(gpu, lengths)
            address = _reserve(held, total)
            at = address
            for fd, length in zip(fds, lengths, strict=True):
                _map_segment(held, fd, at, length)
                at += length
            access = _cuda.AccessDesc(_cuda.Location(_cuda.LOCATION_DEVICE, gpu.device), _cuda.ACCESS_READ)
            gpu.call("cuMemSetAccess", address, total, ctypes.byref(access), 1)
            region = GpuRegion(held, address, size)
    except BaseException:
        held.release()
        raise
    lease.hold()
    held.lease = lease
    return region


def _check_granularity(gpu: Gpu, lengths: Sequence[int]) -> None:
    prop = _cuda.AllocationProp(
        type=_cuda.ALLOCATION_PINNED,
        handle_types=_cuda.HANDLE_POSIX_FD,
        location=_cuda.Location(_cuda.LOCATION_DEVICE, gpu.device),
    )
    granule = ctypes.c_size_t()
    gpu.call("cuMemGetAllocationGranularity", ctypes.byref(granule), ctypes.byref(prop), _cuda.GRANULARITY_MINIMUM)
    if granule.value == 0:
        raise Internal(f"{gpu}: the driver reports a granularity of 0 bytes")
    for length in lengths:
        if length == 0 or length % granule.value:
            raise Corrupt(f"attach: a segment of {length} bytes on {gpu} is not a multiple of {granule.value} bytes")


def _reserve(held: _Held, length: int) -> int:
    address = ctypes.c_uint64()
    held.gpu.call("cuMemAddressReserve", ctypes.byref(address), length, 0, 0, 0)
    held.undo_with("cuMemAddressFree", address.value, length)
    return address.value


def _map_segment(held: _Held, fd: int, address: int, length: int) -> None:
    handle = ctypes.c_uint64()
    held.gpu.call("cuMemImportFromShareableHandle", ctypes.byref(handle), fd, _cuda.HANDLE_POSIX_FD)
    release = ("cuMemRelease", handle.value)
    held.undo_with(*release)
    held.gpu.call("cuMemMap", address, length, 0, handle.value, 0)
    held.undo_with("cuMemUnmap", address, length)
    # The mapping keeps the memory.
    held.done(*release)


def copy(source: GpuRegion) -> GpuRegion:
    """A private copy in memory of this process's own, readable and writable, made on the device."""
    gpu, size = source.gpu, source.nbytes
    held = _Held(gpu)
    try:
        with gpu.current(held.retain_context()):
            address = _allocate(held, size)
            # A stream of its own, which waits for nothing that this process computes.
            stream = ctypes.c_void_p()
            gpu.call("cuStreamCreate", ctypes.byref(stream), _cuda.STREAM_NON_BLOCKING)
            destroy = ("cuStreamDestroy_v2", stream.value)
            held.undo_with(*destroy)
            gpu.call("cuMemcpyDtoDAsync_v2", address, source.address, size, stream)
            gpu.call("cuStreamSynchronize", stream)
            held.done(*destroy)
            return GpuRegion(held, address, size)
    except BaseException:
        held.release()
        raise


def _allocate(held: _Held, size: int) -> int:
    address = ctypes.c_uint64()
    number = held.gpu.attempt("cuMemAlloc_v2", ctypes.byref(address), size)
    if number == _cuda.OUT_OF_MEMORY:
        raise Exhausted(
            f"{held.gpu}: no room for a private copy of {size} bytes beside the loader's memory: free some of this "
            f"process's, or give the loader less (--gpu-memory); {held.gpu.driver.describe('cuMemAlloc_v2', number)}"
        )
    held.gpu.driver.check(str(held.gpu), "cuMemAlloc_v2", number)
    held.undo_with("cuMemFree_v2", address.value)
    return address.value
