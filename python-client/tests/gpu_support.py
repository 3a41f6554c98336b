"""The fake CUDA driver, for this process and those it starts, and what the tests learn from it.

The client is told nothing: in this process a path stands for `libcuda.so.1`, in others LD_LIBRARY_PATH leads to it.
What is device memory to the driver is host memory to torch, because the driver says so (`cuPointerGetAttribute`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_loader import Backing, repository

from longshore import _cuda

DEVICES = 2
MEMORY_MIB = 256
GRANULE = 2 << 20
ACCESS_READ_WRITE = 3
#: What the driver writes down for each process, in this order.
_FIELDS = (
    "role",
    "contexts",
    "handles",
    "mappings",
    "mapped_bytes",
    "reservations",
    "registrations",
    "registered_bytes",
    "streams",
    "events",
)


class FakeCuda:
    """An installed fake driver and its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = ("--devices", str(DEVICES), "--memory-mib", str(MEMORY_MIB))
        self.environ: dict[str, str] = json.loads(self._install(*options))
        self.library = str(folder / "lib/libcuda.so.1")

    def _install(self, *options: str) -> str:
        program = repository() / "target/debug/fake-cuda-install"
        if not program.is_file():
            pytest.fail(f"{program} is missing: run `cargo build --workspace --bins`", pytrace=False)
        run = subprocess.run([program, self.folder, *options], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def state(self) -> Any:
        """Memory of the devices, calls by role, faults that happened."""
        return json.loads(self._install("--state", "--devices", str(DEVICES)))

    def arm(self, *faults: str) -> None:
        """Makes calls fail; they are counted from the driver's start."""
        self._install("--state", "--faults", ",".join(faults))

    def calls(self) -> dict[str, int]:
        """How often each call was made by clients."""
        found: dict[str, int] = self.state()["calls"]["client"]
        return found

    def usage(self, pid: int | None = None) -> dict[str, int]:
        """What a process has of the driver, or had when it ended."""
        gc.collect()
        path = self.folder / "state/processes" / str(pid or os.getpid())
        numbers = struct.unpack_from(f"<{len(_FIELDS)}Q", path.read_bytes())
        return {name: number for name, number in zip(_FIELDS, numbers, strict=True) if number and name != "role"}

    def used_bytes(self, device: int) -> int:
        """Memory of a device that anybody holds."""
        return int(self.state()["devices"][device]["used_bytes"])

    def gpu(self, device: int) -> Gpu:
        """One of its devices, as a loader that sees all of them would use it."""
        return Gpu(self.library, _cuda.driver("the tests").gpus[device])


@dataclass
class DeviceMemory:
    """Segments on a GPU, held by their descriptors."""

    lengths: list[int]
    held: list[int]

    def fds(self) -> list[int]:
        return [os.dup(fd) for fd in self.held]

    def __del__(self) -> None:
        while self.held:
            os.close(self.held.pop())

    def content(self) -> bytes:
        """What they hold now, whoever wrote it."""
        return b"".join(os.pread(fd, length, 0) for fd, length in zip(self.held, self.lengths, strict=True))


class Gpu:
    """Makes memory like a loader: created and filled in this process, then kept by descriptors alone."""

    def __init__(self, library: str, gpu: _cuda.Gpu) -> None:
        self._gpu = gpu
        self.device = gpu.ordinal
        self.uuid = gpu.name
        self.stored: list[DeviceMemory] = []
        loaded = ctypes.CDLL(library)
        handle, prop = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(_cuda.AllocationProp)
        self._create = loaded.cuMemCreate
        self._create.argtypes = (handle, ctypes.c_size_t, prop, ctypes.c_uint64)
        self._export = loaded.cuMemExportToShareableHandle
        self._export.argtypes = (ctypes.POINTER(ctypes.c_int), ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)

    def store(self, data: bytes, segment_bytes: int | None) -> Backing:
        step = segment_bytes or max(GRANULE, -(-len(data) // GRANULE) * GRANULE)
        memory = DeviceMemory([], [])
        for at in range(0, len(data), step):
            memory.held.append(self._segment(data[at : at + step], step))
            memory.lengths.append(step)
        self.stored.append(memory)
        return memory

    def _segment(self, data: bytes, length: int) -> int:
        gpu, handle, fd = self._gpu, ctypes.c_uint64(), ctypes.c_int(-1)
        location = _cuda.Location(_cuda.LOCATION_DEVICE, gpu.device)
        prop = _cuda.AllocationProp(type=_cuda.ALLOCATION_PINNED, handle_types=_cuda.HANDLE_POSIX_FD, location=location)
        assert self._create(ctypes.byref(handle), length, ctypes.byref(prop), 0) == 0
        assert self._export(ctypes.byref(fd), handle, _cuda.HANDLE_POSIX_FD, 0) == 0
        address = ctypes.c_uint64()
        context = retain(gpu)
        with gpu.current(context):
            gpu.call("cuMemAddressReserve", ctypes.byref(address), length, 0, 0, 0)
            gpu.call("cuMemMap", address, length, 0, handle, 0)
            access = _cuda.AccessDesc(location, ACCESS_READ_WRITE)
            gpu.call("cuMemSetAccess", address, length, ctypes.byref(access), 1)
            ctypes.memmove(address.value, data, len(data))
            gpu.call("cuMemUnmap", address, length)
            gpu.call("cuMemAddressFree", address, length)
        gpu.call("cuMemRelease", handle)
        gpu.call("cuDevicePrimaryCtxRelease_v2", gpu.device)
        return fd.value


class DeviceTensors:
    """Tensors in memory of a device that this process has allocated."""

    def __init__(self, device: int) -> None:
        self._gpu = _cuda.driver("the tests").gpus[device]
        self._context = retain(self._gpu)
        self._held: list[int] = []
        self._ranges: list[tuple[int, int]] = []

    def tensor(self, source: torch.Tensor) -> torch.Tensor:
        """A copy on the device."""
        nbytes = source.numel() * source.element_size()
        address = ctypes.c_uint64()
        with self._gpu.current(self._context):
            self._gpu.call("cuMemAlloc_v2", ctypes.byref(address), nbytes)
        self._held.append(address.value)
        self._ranges.append((address.value, address.value + nbytes))
        memory = (ctypes.c_ubyte * nbytes).from_address(address.value)
        made = torch.frombuffer(memory, dtype=source.dtype).view(source.shape)
        made.copy_(source)
        return made

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor, or a view of one, is among them."""
        return any(start <= tensor.data_ptr() < end for start, end in self._ranges)

    def free(self) -> None:
        """Frees all, and lets go of the device."""
        with self._gpu.current(self._context):
            while self._held:
                self._gpu.call("cuMemFree_v2", self._held.pop())
        self._gpu.call("cuDevicePrimaryCtxRelease_v2", self._gpu.device)


def retain(gpu: _cuda.Gpu) -> int:
    """The primary context of a device, to be released by who asked for it."""
    context = ctypes.c_void_p()
    gpu.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu.device)
    return context.value or 0
