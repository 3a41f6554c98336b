"""Maps the memory that a loader hands over, and keeps the lease as long as anything points into it.

The descriptors are sealed memfds, or files of a private mount that is read-only. They are mapped *private and
writable*: the bytes are shared with the loader and all its clients until somebody writes, and a write changes a private
copy of that page only. A write through a tensor is therefore safe (torch has no read-only tensors, and a read-only
mapping would turn one into SIGSEGV) and never reaches another process. That nobody can shrink them is required: a
truncation would turn a read into SIGBUS.

Each region is one ctypes array over the mapping. Tensors, arrays and memoryviews reference it, so that its finalizer,
which unmaps the region and gives back a share of the lease, runs after the last of them is gone.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import sys
import weakref
from collections.abc import Sequence

from longshore._errors import Corrupt, Error, Exhausted, Internal

# From <linux/fcntl.h>; the names are in Python's fcntl module since 3.8, but only where libc has them.
_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 0x0002
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_HUGE_PAGE_BYTES = 2 << 20
_MAP_FAILED = ctypes.c_void_p(-1).value

#: Larger regions are refused before anything is reserved: half of the usual user address space.
REGION_BYTES_MAX = 1 << 46

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = _libc.munmap
_munmap.restype = ctypes.c_int
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


@atexit.register
def _leave_open() -> None:
    """At exit what is loaded may be in use to the very end: the kernel closes the sockets, without a warning."""
    for lease in list(_leases):
        lease._sock.detach()


class Lease:
    """The open attach socket, closed when the last of its holders lets go.

    A holder is the model or one of its regions. After a fork both processes hold the socket, and the loader sees the
    end of the lease when both have closed it; so it is only ever closed, never shut down.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._holders: list[None] = []
        _leases.add(self)

    def hold(self) -> None:
        """Adds a holder."""
        self._holders.append(None)

    def release(self) -> None:
        """Takes a holder away.

        Runs in finalizers, on any thread and inside garbage collection: it takes no lock, because the thread that it
        interrupts could have it. `list.pop` is atomic, and closing twice is harmless.
        """
        self._holders.pop()
        if not self._holders:
            self._sock.close()

    def close(self) -> None:
        """Closes the socket at once: after an attach that failed, or when nothing needs the lease any more."""
        self._sock.close()

    @property
    def is_open(self) -> bool:
        """Whether the socket is open in this process."""
        return self._sock.fileno() >= 0


def map_region(fds: Sequence[int], lengths: Sequence[int], lease: Lease) -> memoryview:
    """Maps one region from its segments and makes it a holder of the lease. The descriptors stay the caller's.

    Returns a writable view of bytes. A region of several segments is one contiguous range of addresses.
    """
    total = sum(lengths)
    if total == 0:
        return memoryview(bytearray())
    if total > REGION_BYTES_MAX:
        raise Corrupt(f"attach: a region of {total} bytes is more than the address space holds")
    for fd, length in zip(fds, lengths, strict=True):
        _check_segment(fd, length)
    if any(length % mmap.PAGESIZE for length in lengths[:-1]):
        raise Corrupt("attach: a segment inside a region does not end at a page boundary")

    address = _reserve(total)
    try:
        at = address
        for fd, length in zip(fds, lengths, strict=True):
            flags = mmap.MAP_PRIVATE | _MAP_NORESERVE | _MAP_FIXED
            _map(at, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd)
            at += length
    except Error:
        _munmap(address, total)
        raise

    array = (ctypes.c_ubyte * total).from_address(address)
    lease.hold()
    # At interpreter exit other threads may still read: the kernel unmaps and closes then, not this finalizer.
    weakref.finalize(array, _unmap, address, total, lease).atexit = False
    return memoryview(array).cast("B")


def _unmap(address: int, length: int, lease: Lease) -> None:
    _munmap(address, length)
    lease.release()


def _check_segment(fd: int, length: int) -> None:
    """The descriptor must hold the bytes that were announced, and never fewer later."""
    size = os.fstat(fd).st_size
    if length <= 0 or size < length:
        raise Corrupt(f"attach: a segment announced with {length} bytes has {size}")
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError as error:
        raise Corrupt(f"attach: the memory received cannot be sealed: {error}") from error
    if not seals & _F_SEAL_SHRINK and not _is_read_only(fd):
        raise Corrupt("attach: the memory received is not sealed against shrinking, nor of a mount that is read-only")


def _is_read_only(fd: int) -> bool:
    """Whether a file of memory, as one that tells its seals is, has no way to be written from here.

    Its mount is read-only, so that it cannot be opened anew to write either, and no name of it is left for others.
    """
    return (
        bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)
        and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        and os.fstat(fd).st_nlink == 0
    )


def _reserve(length: int) -> int:
    """Takes a range of addresses that begins at a huge page, where the kernel can map the memfd's with one entry."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    size = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
    start = _map(None, size + _HUGE_PAGE_BYTES, _PROT_NONE, flags, -1)
    address = -(-start // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    before = address - start
    if before:
        _munmap(start, before)
    _munmap(address + size, _HUGE_PAGE_BYTES - before)
    return address


def _map(address: int | None, length: int, prot: int, flags: int, fd: int) -> int:
    mapped = _mmap(address, length, prot, flags, fd, 0)
    if mapped is None or mapped == _MAP_FAILED:
        number = ctypes.get_errno()
        why = f"attach: mapping {length} bytes: {os.strerror(number)}"
        if number == errno.ENOMEM:
            raise Exhausted(f"{why}; see ulimit -v, vm.max_map_count and vm.overcommit_memory (2 counts mapped bytes)")
        raise Internal(why)
    return int(mapped)


if sys.maxsize < 2**32:  # pragma: no cover
    raise ImportError("longshore needs a 64-bit Python")
