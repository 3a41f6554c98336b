"""Hands memory to torch as DLPack capsules, made by ctypes.

A capsule is consumed once, by torch's `from_dlpack`; from then on the tensor's storage owns a reference to `owner`,
which the deleter drops. The deleter is called by torch, on any thread, also inside garbage collection: it takes no lock
(`dict.pop` is atomic) and raises nothing.

At interpreter exit the deleters of all live tensors are taken away: C++ may destroy storages after Python is gone,
when calling back would crash. What they hold is the operating system's to free then.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from typing import Any

CPU = 1
CUDA = 2
_UINT = 0x1


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _ManagedTensor(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


#: What torch may still point to, by address: the structure, its shape, and what keeps the memory.
_live: dict[int, tuple[_ManagedTensor, Any, object]] = {}
_exiting = False


def _forget(address: int, live: dict[int, Any] = _live) -> None:
    live.pop(address, None)


_delete = _Deleter(_forget)
_delete_address = ctypes.cast(_delete, ctypes.c_void_p).value

# Neither the function nor the structures may go when the module's globals are cleared at exit: torch points to them.
_keep = ctypes.pythonapi.Py_IncRef
_keep.argtypes = (ctypes.py_object,)
_keep.restype = None
_keep(_live)
_keep(_delete)

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_unused = ctypes.pythonapi.PyCapsule_IsValid
_is_unused.restype = ctypes.c_int
_is_unused.argtypes = (ctypes.py_object, ctypes.c_char_p)
#: The capsule keeps this pointer, not a copy.
_NAME = b"dltensor"


def export(consume: Callable[[Any], Any], address: int, length: int, device: tuple[int, int], owner: object) -> Any:
    """What `consume` makes of a capsule over `length` bytes; `owner` lives as long as that."""
    shape = (ctypes.c_int64 * 1)(length)
    managed = _ManagedTensor(
        _Tensor(address, _Device(*device), 1, _DataType(_UINT, 8, 1), shape, None, 0),
        None,
        None if _exiting else _delete_address,
    )
    key = ctypes.addressof(managed)
    _live[key] = (managed, shape, owner)
    try:
        capsule = _new_capsule(key, _NAME, None)
    except BaseException:
        _live.pop(key, None)
        raise
    try:
        return consume(capsule)
    except BaseException:
        # Consuming renames the capsule: then the deleter is the consumer's to call.
        if _is_unused(capsule, _NAME):
            _live.pop(key, None)
        raise


def _at_exit() -> None:
    global _exiting  # noqa: PLW0603 - one a process
    _exiting = True
    for managed, _, _ in list(_live.values()):
        managed.deleter = None


atexit.register(_at_exit)
