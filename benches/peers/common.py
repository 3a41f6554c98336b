"""What all adapters share: what they are asked, what they can do, and how a load is verified.

The digest is SHA-256 over, for each tensor in the order of its name's bytes: name, dtype as torch prints it without
`torch.`, shape as decimal numbers between commas, each of the three ended by a zero byte, then the tensor's bytes.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib.metadata
import json
import mmap
import os
import resource
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

#: Operations that an adapter may have beside `load`.
OPTIONAL = ("read_files", "random", "metadata")
PAGE_BYTES = mmap.PAGESIZE
#: More than this of a model in the page cache counts as resident.
RESIDENT_SHARE = 0.95
MAP_FAILED = ctypes.c_void_p(-1).value
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class PeerError(Exception):
    """What an adapter cannot do, or what went wrong in it; the row says the text."""


@dataclass
class Loaded:
    """A model in memory: its tensors, and what must live as long as they do."""

    tensors: Tensors
    keep: list[Any] = field(default_factory=list)


class Adapter:
    """One peer. The imports of its packages are in its methods' module, so that only its own environment needs them."""

    #: As the tables call it.
    subject = ""
    #: The package whose version stands beside the subject.
    package = ""
    can: tuple[str, ...] = ()
    cannot: Mapping[str, str] = MappingProxyType({})
    #: What the tensors of `load` lie in: memory of their "own", or the "mapped" file.
    memory = "own"
    #: The ways in which `random` reads; the first is the default.
    random_modes: tuple[str, ...] = ()

    def why_not(self, operation: str) -> str:
        """Why this is not in `can`."""
        return self.cannot.get(operation, f"{self.subject} loads models; it has no way to read other objects")

    def version(self) -> str:
        """Of the package."""
        return importlib.metadata.version(self.package)

    def prepare(self, _model: str, _work: Path) -> str:
        """Untimed: makes what `load` of this model needs."""
        return "nothing to prepare"

    def before_load(self, model: str) -> None:
        """Untimed: the settings for this model, where files in the page cache want others than files on a disk."""

    def load(self, model: str) -> Loaded:
        """All tensors of the model's *.safetensors, on the CPU."""
        raise NotImplementedError

    def drop(self) -> None:
        """After the tensors were let go: removes what the load left behind."""

    def read_files(self, urls: list[str]) -> int:
        """Reads these objects whole; how many bytes they had."""
        raise NotImplementedError

    def size(self, url: str) -> int:
        """Of one object."""
        raise NotImplementedError

    def keys(self, url: str) -> list[str]:
        """The objects below a prefix, as URLs."""
        raise NotImplementedError

    def ready_to_read(self, _url: str, _mode: str) -> None:
        """Untimed: opens what `random` in this mode reads from."""

    def random(self, url: str, offsets: list[int], length: int, mode: str) -> int:
        """Reads `length` bytes at each offset; how many bytes came."""
        raise NotImplementedError

    def metadata(self, urls: list[str]) -> int:
        """Asks the store for size and time of each object, nothing cached; how many it told."""
        raise NotImplementedError

    def end(self) -> None:
        """Closes connections and ends threads."""


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0))


def split_s3(url: str) -> tuple[str, str]:
    """Bucket and key of an S3 URL."""
    if not url.startswith("s3://"):
        raise PeerError(f"{url}: not an S3 URL")
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def is_s3(model: str) -> bool:
    """Whether the model lies in S3, not in a folder."""
    return model.startswith("s3://")


def local_files(model: str) -> list[str]:
    """The model's files in a folder, sorted."""
    if is_s3(model):
        raise PeerError(f"{model}: this reads local files only")
    files = sorted(str(path) for path in Path(model).glob("*.safetensors"))
    if not files:
        raise PeerError(f"{model} has no *.safetensors")
    return files


def resident(files: list[str]) -> bool:
    """Whether the page cache holds (nearly) all of these files. What mincore tells, so nothing is read."""
    pages = held = 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            if not size:
                continue
            count = -(-size // PAGE_BYTES)
            told = (ctypes.c_ubyte * count)()
            address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address in (None, MAP_FAILED):
                raise PeerError(f"cannot map {file}: {os.strerror(ctypes.get_errno())}")
            failed = LIBC.mincore(address, size, told)
            LIBC.munmap(address, size)
            if failed:
                raise PeerError(f"cannot ask what of {file} is in memory")
            pages += count
            held += count - bytes(each & 1 for each in told).count(0)
        finally:
            os.close(descriptor)
    return held >= RESIDENT_SHARE * pages


def model_keys(model: str, keys: Iterable[str]) -> list[str]:
    """Those of a bucket's keys that are the model's files, sorted."""
    files = sorted(key for key in keys if key.endswith(".safetensors"))
    if not files:
        raise PeerError(f"{model} has no *.safetensors")
    return files


def memory_folder(peer: str) -> Path:
    """A new folder in memory, for the files of one load; what is in it is the adapter's to remove.

    Whoever started the adapter may name the folder above, to remove that when the adapter was killed.
    """
    above = os.environ.get("LONGSHORE_BENCH_SHARED_MEMORY", "/dev/shm")
    return Path(tempfile.mkdtemp(prefix=f"longshore-bench-{peer}-", dir=above))


def dtypes() -> dict[str, torch.dtype]:
    """safetensors' names of the dtypes that this torch has."""
    import torch

    names = {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
        "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
    }  # fmt: skip
    return {name: getattr(torch, of) for name, of in names.items() if hasattr(torch, of)}


def parse_in_place(content: Any) -> Tensors:
    """The tensors of a safetensors file that lies in memory, without a copy; `content` is a writable buffer.

    safetensors' own `load(bytes)` copies every tensor once or twice. For those peers that give bytes, this is the
    cheaper end.
    """
    import torch

    view = memoryview(content).cast("B")
    start = 8 + int.from_bytes(view[:8], "little")
    known = dtypes()
    tensors = {}
    for name, told in json.loads(bytes(view[8:start])).items():
        if name == "__metadata__":
            continue
        begin, end = told["data_offsets"]
        dtype = known[told["dtype"]]
        if begin == end:
            tensors[name] = torch.empty(told["shape"], dtype=dtype)
            continue
        flat = torch.frombuffer(view, dtype=torch.uint8, count=end - begin, offset=start + begin)
        if (start + begin) % dtype.itemsize:
            # Neither torch nor most kernels read it where it lies.
            flat = flat.clone()
        tensors[name] = flat.view(dtype).view(told["shape"])
    return tensors


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes in row order, as a tensor of one dimension; without a copy where it is contiguous."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def touch(tensors: Tensors) -> int:
    """Reads one byte of each page of each tensor: where every load's clock stops. The sum of these bytes."""
    return sum(int(flat_bytes(each)[::PAGE_BYTES].sum()) for each in tensors.values() if each.numel())


def total_bytes(tensors: Tensors) -> int:
    """Of all tensors."""
    return sum(each.numel() * each.element_size() for each in tensors.values())


def digest(tensors: Tensors) -> str:
    """See the head of this file."""
    summed = hashlib.sha256()
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0].encode()):
        shape = ",".join(str(extent) for extent in tensor.shape)
        summed.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{shape}\0".encode())
        summed.update(flat_bytes(tensor).numpy())
    return summed.hexdigest()


def must_be_in_memory(tensors: Tensors) -> None:
    """A peer that leaves a tensor elsewhere, or gives fewer than it should, has not done the work."""
    if not tensors:
        raise PeerError("the load gave no tensors")
    elsewhere = [name for name, tensor in tensors.items() if tensor.device.type != "cpu"]
    if elsewhere:
        raise PeerError(f"{elsewhere[0]} and {len(elsewhere) - 1} others are not on the CPU")


def together(parts: Iterable[Loaded]) -> Loaded:
    """A model from its files; no name may come twice."""
    whole = Loaded({})
    for part in parts:
        twice = whole.tensors.keys() & part.tensors.keys()
        if twice:
            raise PeerError(f"two files have a tensor {min(twice)}")
        whole.tensors |= part.tensors
        whole.keep += part.keep
    return whole


def collect() -> None:
    """Cycles too: a peer's buffers must not live on into the next round."""
    for _ in range(2):
        gc.collect()
