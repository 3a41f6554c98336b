"""The CUDA driver by ctypes: plain copies that stand as limits, memory that crosses processes. Nothing of Longshore.

It runs over the fake driver too. A call that fails raises with the driver's own name for the reason.
"""

from __future__ import annotations

import ctypes as c
import mmap
import os
import socket
import time
from collections.abc import Sequence

MIB = 1 << 20
_POSIX_FD = 1
_PINNED = 1
_DEVICE = 1
_READ_WRITE = 3


class DriverError(Exception):
    """A call that failed."""


class _Location(c.Structure):
    _fields_ = (("type", c.c_int), ("id", c.c_int))


class _Flags(c.Structure):
    _fields_ = (("compression", c.c_ubyte), ("rdma", c.c_ubyte), ("usage", c.c_ushort), ("reserved", c.c_ubyte * 4))


class _Properties(c.Structure):
    _fields_ = (
        ("type", c.c_int),
        ("handle_types", c.c_int),
        ("location", _Location),
        ("win32", c.c_void_p),
        ("flags", _Flags),
    )


class _Access(c.Structure):
    _fields_ = (("location", _Location), ("flags", c.c_int))


class Driver:
    """libcuda, initialised."""

    def __init__(self) -> None:
        self._library = c.CDLL("libcuda.so.1")
        self.call("cuInit", c.c_uint(0))

    def call(self, name: str, *arguments: object) -> None:
        """One call; what it returns other than 0 is raised."""
        function = getattr(self._library, name)
        function.restype = c.c_uint
        code = function(*arguments)
        if code:
            text = c.c_char_p()
            self._library.cuGetErrorName(c.c_uint(code), c.byref(text))
            raise DriverError(f"{name}: {(text.value or b'unknown').decode()} ({code})")

    def context(self, device: int = 0) -> None:
        """Makes the device's primary context current on this thread."""
        context = c.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", c.byref(context), c.c_int(device))
        self.call("cuCtxSetCurrent", context)

    def free_bytes(self) -> int:
        """What the device has left; needs a context."""
        free, total = c.c_size_t(), c.c_size_t()
        self.call("cuMemGetInfo_v2", c.byref(free), c.byref(total))
        return free.value

    def create(self, size: int, device: int = 0) -> tuple[int, int]:
        """Physical memory and its size in whole granules. Needs no context."""
        wanted = _Properties(_PINNED, _POSIX_FD, _Location(_DEVICE, device))
        granule = c.c_size_t()
        self.call("cuMemGetAllocationGranularity", c.byref(granule), c.byref(wanted), c.c_uint(1))
        size = -(-size // granule.value) * granule.value
        handle = c.c_uint64()
        self.call("cuMemCreate", c.byref(handle), c.c_size_t(size), c.byref(wanted), c.c_uint64(0))
        return handle.value, size

    def export(self, handle: int) -> int:
        """A descriptor for it."""
        fd = c.c_int(-1)
        self.call("cuMemExportToShareableHandle", c.byref(fd), c.c_uint64(handle), c.c_uint(_POSIX_FD), c.c_uint64(0))
        return fd.value

    def take(self, fd: int) -> int:
        """The memory behind a descriptor."""
        handle = c.c_uint64()
        self.call("cuMemImportFromShareableHandle", c.byref(handle), c.c_void_p(fd), c.c_uint(_POSIX_FD))
        return handle.value

    def map(self, handle: int, size: int, device: int = 0) -> int:
        """Maps it to be read and written; gives its address."""
        address = c.c_uint64()
        nothing = c.c_uint64(0)
        self.call("cuMemAddressReserve", c.byref(address), c.c_size_t(size), c.c_size_t(0), nothing, nothing)
        at = c.c_uint64(address.value)
        self.call("cuMemMap", at, c.c_size_t(size), c.c_size_t(0), c.c_uint64(handle), nothing)
        access = _Access(_Location(_DEVICE, device), _READ_WRITE)
        self.call("cuMemSetAccess", at, c.c_size_t(size), c.byref(access), c.c_size_t(1))
        return address.value

    def streams(self, count: int) -> list[c.c_void_p]:
        """New streams that do not wait for the default one."""
        made = []
        for _ in range(count):
            stream = c.c_void_p()
            self.call("cuStreamCreate", c.byref(stream), c.c_uint(1))
            made.append(stream)
        return made

    def wait(self, streams: Sequence[c.c_void_p]) -> None:
        """Until all of their work is done."""
        for stream in streams:
            self.call("cuStreamSynchronize", stream)

    def page_locked(self, size: int) -> tuple[int, str]:
        """Page-locked memory that was touched: its address and how it was made."""
        try:
            address = c.c_void_p()
            self.call("cuMemHostAlloc", c.byref(address), c.c_size_t(size), c.c_uint(0))
            return int(address.value or 0), "cuMemHostAlloc"
        except (AttributeError, DriverError):
            memory = mmap.mmap(-1, size)
            memory.madvise(mmap.MADV_HUGEPAGE)
            found = c.addressof(c.c_char.from_buffer(memory))
            self.call("cuMemHostRegister_v2", c.c_void_p(found), c.c_size_t(size), c.c_uint(0))
            # Kept for ever: the process is the limit's alone.
            _KEPT.append(memory)
            return found, "cuMemHostRegister"


_KEPT: list[mmap.mmap] = []


class Copies:
    """The limits: plain loops of large copies on two streams."""

    def __init__(self, buffer_bytes: int, piece_bytes: int) -> None:
        self._driver = driver = Driver()
        driver.context()
        self._piece = piece_bytes
        self._source, self.made_by = driver.page_locked(buffer_bytes)
        c.memset(self._source, 7, buffer_bytes)
        handle, self._size = driver.create(2 * buffer_bytes)
        self._target = driver.map(handle, self._size)
        self._buffer = buffer_bytes
        self._streams = driver.streams(2)

    def to_device(self, total_bytes: int) -> tuple[float, float, int]:
        """Seconds, CPU seconds and bytes of copying page-locked memory to the device."""
        return self._run("cuMemcpyHtoDAsync_v2", total_bytes, self._source, c.c_void_p)

    def on_device(self, total_bytes: int) -> tuple[float, float, int]:
        """The same from one half of the device's memory to the other."""
        return self._run("cuMemcpyDtoDAsync_v2", total_bytes, self._target + self._buffer, c.c_uint64)

    def _run(self, name: str, total_bytes: int, source: int, kind: type) -> tuple[float, float, int]:
        driver, piece = self._driver, self._piece
        driver.wait(self._streams)
        cpu, start = time.process_time(), time.perf_counter()
        done = count = 0
        while done < total_bytes:
            at = done % self._buffer
            size = min(piece, self._buffer - at)
            stream = self._streams[count % 2]
            driver.call(name, c.c_uint64(self._target + at), kind(source + at), c.c_size_t(size), stream)
            done, count = done + size, count + 1
        driver.wait(self._streams)
        return time.perf_counter() - start, time.process_time() - cpu, done


def pattern(size: int) -> bytes:
    """Bytes that no fresh memory holds."""
    block = bytes((at * 31 + at // 256) & 0xFF for at in range(64 << 10))
    return (block * (-(-size // len(block))))[:size]


def create_and_wait(channel: socket.socket, size: int) -> None:
    """The process that makes memory, hands it over, and is killed. It never has a context."""
    driver = Driver()
    handle, whole = driver.create(size)
    socket.send_fds(channel, [str(whole).encode()], [driver.export(handle)])
    channel.recv(1)


def write_or_read(fd: int, size: int, write: bool) -> bool:
    """Imports memory, and writes the pattern or says whether it is there."""
    driver = Driver()
    driver.context()
    address = driver.map(driver.take(fd), size)
    wanted = pattern(MIB)
    for at in (0, size // 2, size - MIB):
        place = c.c_uint64(address + at)
        if write:
            driver.call("cuMemcpyHtoD_v2", place, wanted, c.c_size_t(MIB))
        else:
            found = c.create_string_buffer(MIB)
            driver.call("cuMemcpyDtoH_v2", found, place, c.c_size_t(MIB))
            if found.raw != wanted:
                return False
    driver.call("cuCtxSynchronize")
    return True


def parent_channel() -> socket.socket:
    """The socket that the parent gave as standard input."""
    return socket.socket(fileno=os.dup(0))
