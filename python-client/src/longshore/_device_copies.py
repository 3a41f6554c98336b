"""Copies from a GPU into slabs, on a stream of their own, through the driver.

The slabs are page-locked once (`lock_pages`), so that the card writes to them by itself. The side stream first waits
for what the caller's current stream has been given up to now, and nothing waits for the side stream: the caller's next
kernels may run while the copies do. They must not change what is copied, see `longshore.save`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import weakref
from typing import Any

from longshore import _cuda
from longshore._errors import Error
from longshore._slabs import Piece, SlabSession

_log = logging.getLogger("longshore")

_REGISTER_PORTABLE = 1
_EVENT_NO_TIMING = 2
_MEMORY_HOST = 1
_MEMORY_DEVICE = 2


class Event:
    """A point in a stream."""

    def __init__(self, gpu: _cuda.Gpu, stream: int) -> None:
        self._gpu = gpu
        event = ctypes.c_void_p()
        gpu.call("cuEventCreate", ctypes.byref(event), _EVENT_NO_TIMING)
        self._event = event.value
        try:
            gpu.call("cuEventRecord", self._event, stream)
        except BaseException:
            self.close()
            raise

    def make_wait(self, stream: int) -> None:
        """What is given to a stream from now on runs after this point."""
        self._gpu.call("cuStreamWaitEvent", stream, self._event, 0)

    def wait(self) -> None:
        """Until the GPU has come here."""
        self._gpu.call("cuEventSynchronize", self._event)

    def close(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            self._gpu.attempt("cuEventDestroy_v2", event)


class DeviceCopies:
    """A side stream of one GPU. Make it in the thread whose current stream it has to wait for; use it in one thread."""

    def __init__(self, device: int) -> None:
        self._gpu = _cuda.by_ordinal(f"cuda:{device}")
        self._stream: int | None = None
        self._external: Any = None
        #: Temporary tensors that copies read, until the next `mark` is over.
        self._temporary: list[Any] = []
        #: Held while the stream is given back, and by `make_wait`, which other threads call.
        self._lock = threading.Lock()
        context = ctypes.c_void_p()
        self._gpu.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._gpu.device)
        self._context = context.value or 0
        try:
            with self._gpu.current(self._context):
                stream = ctypes.c_void_p()
                self._gpu.call("cuStreamCreate", ctypes.byref(stream), _cuda.STREAM_NON_BLOCKING)
                self._stream = stream.value or 0
                before = Event(self._gpu, current_stream(device))
                before.make_wait(self._stream)
                before.close()
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        """The driver's handle of the side stream."""
        return self._stream or 0

    def copy(self, address: int, pointer: int, length: int) -> None:
        """Copies bytes of the GPU's memory to an address."""
        with self._gpu.current(self._context):
            self._gpu.call("cuMemcpyDtoHAsync_v2", address, pointer, length, self.stream)

    def copy_rows(self, address: int, pointer: int, width: int, height: int, pitch: int) -> None:
        """Copies rows at equal distances, packed."""
        copy = _cuda.Memcpy2D(
            src_memory_type=_MEMORY_DEVICE,
            src_device=pointer,
            src_pitch=pitch,
            dst_memory_type=_MEMORY_HOST,
            dst_host=address,
            dst_pitch=width,
            width=width,
            height=height,
        )
        with self._gpu.current(self._context):
            self._gpu.call("cuMemcpy2DAsync_v2", ctypes.byref(copy), self.stream)

    def gather(self, piece: Any) -> Any:
        """A contiguous copy on the GPU, made on the side stream; at most a slab's worth."""
        torch: Any = sys.modules["torch"]
        if self._external is None:
            self._external = torch.cuda.ExternalStream(self.stream, device=self._gpu.ordinal)
        with torch.cuda.stream(self._external):
            gathered = piece.contiguous()
        self._temporary.append(gathered)
        return gathered

    def make_wait(self, stream: int | None) -> None:
        """What is given to a stream (None: the current one) from now on runs after the copies asked for so far."""
        with self._lock:
            if self._stream is None:
                return
            with self._gpu.current(self._context):
                event = Event(self._gpu, self._stream)
                event.make_wait(current_stream(self._gpu.ordinal) if stream is None else stream)
                event.close()

    def mark(self) -> Mark:
        """The point up to which copies were asked for."""
        with self._gpu.current(self._context):
            event = Event(self._gpu, self.stream)
        kept, self._temporary = self._temporary, []
        return Mark(self, event, kept)

    def drain(self) -> None:
        """Waits for all copies. Never raises: after an error of the card nothing is copied any more."""
        with self._gpu.current(self._context):
            self._gpu.attempt("cuStreamSynchronize", self.stream)
        self._temporary.clear()

    def close(self) -> None:
        """Waits for the copies and gives the stream back."""
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            with self._gpu.current(self._context):
                self._gpu.attempt("cuStreamSynchronize", stream)
                self._external = None
                self._temporary.clear()
                self._gpu.attempt("cuStreamDestroy_v2", stream)
        context, self._context = self._context, 0
        if context:
            self._gpu.attempt("cuDevicePrimaryCtxRelease_v2", self._gpu.device)


class Mark:
    """A point in the side stream, and the temporary memory that is read before it."""

    def __init__(self, copies: DeviceCopies, event: Event, kept: list[Any]) -> None:
        self._copies = copies
        self._event = event
        self._kept = kept

    def wait(self) -> None:
        """Until all copies that were asked for before are done."""
        copies = self._copies
        with copies._gpu.current(copies._context):
            try:
                self._event.wait()
            finally:
                self._event.close()
        self._kept.clear()


def current_stream(device: int) -> int:
    """torch's current stream of this thread; the default stream without torch's CUDA."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.current_stream(device).cuda_stream)


def lock_pages(session: SlabSession, device: int) -> list[str]:
    """Registers the memory of a session with CUDA, also what comes later. Once a session; tells what failed."""
    with session._lock:
        for function in session.on_piece:
            if isinstance(function, _PageLock):
                return function.failures
        lock = _PageLock(_cuda.by_ordinal(f"cuda:{device}"))
        session.on_piece.append(lock)
        for piece in session.pieces:
            lock(piece)
        return lock.failures


class _PageLock:
    """Registers pieces for all GPUs of the process. What it fails for is copied to all the same, more slowly."""

    def __init__(self, gpu: _cuda.Gpu) -> None:
        self._gpu = gpu
        self.failures: list[str] = []

    def __call__(self, piece: Piece) -> None:
        gpu, context = self._gpu, ctypes.c_void_p()
        # Held as long as the registration, which is the context's.
        gpu.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu.device)
        try:
            with gpu.current(context.value or 0):
                gpu.call("cuMemHostRegister_v2", piece.address, piece.length, _REGISTER_PORTABLE)
        except Error as error:
            gpu.attempt("cuDevicePrimaryCtxRelease_v2", gpu.device)
            self.failures.append(f"slabs are not page-locked, so that copies from GPUs are slower: {error}")
            _log.warning("%s", self.failures[-1])
            return
        weakref.finalize(piece, _unlock, gpu, context.value or 0, piece.address).atexit = False


def _unlock(gpu: _cuda.Gpu, context: int, address: int) -> None:
    if gpu.driver.pid != os.getpid():
        return
    if gpu.attempt("cuCtxPushCurrent_v2", context) == _cuda.SUCCESS:
        gpu.attempt("cuMemHostUnregister", address)
        gpu.attempt("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    gpu.attempt("cuDevicePrimaryCtxRelease_v2", gpu.device)
