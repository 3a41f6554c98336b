"""A loader's other kind of host memory: files of a tmpfs that is attached nowhere, by a read-only mount of it."""

from __future__ import annotations

import ctypes
import os
from functools import cache

_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 430, 431, 432, 442
_AT_EMPTY_PATH = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *args: object) -> int:
    answer = _libc.syscall(number, *args)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(answer)


@cache
def mounts() -> tuple[int, int]:
    """Both mounts, writable and read-only; needs the right to mount."""
    context = _call(_FSOPEN, b"tmpfs", 1)
    _call(_FSCONFIG, context, 6, None, None, 0)
    writable = _call(_FSMOUNT, context, 1, 0)
    os.close(context)
    read_only = _call(_OPEN_TREE, writable, b"", _AT_EMPTY_PATH | 1 | os.O_CLOEXEC)
    attributes = (ctypes.c_uint64 * 4)(1, 0, 0, 0)
    _call(_MOUNT_SETATTR, read_only, b"", _AT_EMPTY_PATH, attributes, ctypes.sizeof(attributes))
    return writable, read_only


def read_only_file(data: bytes, flags: int = os.O_RDONLY, is_named: bool = False, is_writable: bool = False) -> int:
    """A descriptor as a loader hands it out, or, by its knobs, one that lacks something."""
    writable, read_only = mounts()
    name = f"file-{os.urandom(8).hex()}"
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o400, dir_fd=writable)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    handed = os.open(name, flags | os.O_CLOEXEC, dir_fd=writable if is_writable else read_only)
    if not is_named:
        os.unlink(name, dir_fd=writable)
    return handed
