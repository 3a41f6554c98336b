"""A loaded model: names to tensors over mapped memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from longshore import _tree
from longshore._attach import Attached
from longshore._boxes import Box, whole
from longshore._dtypes import expected_bytes
from longshore._errors import Corrupt, FailedPrecondition, Internal, NotFound, Unsupported
from longshore._frameworks import Framework, Region
from longshore._gpu import GpuRegion
from longshore._progress import format_bytes
from longshore._proto import loader_pb2
from longshore._records import LoadReport, SkippedFile

if TYPE_CHECKING:
    from longshore._checkpoints import Checkpoint

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class TensorInfo:
    """How a tensor is stored, and how it is delivered."""

    name: str
    #: As the safetensors format writes it, for instance ``BF16``.
    dtype_name: str
    #: In elements, as stored.
    shape: tuple[int, ...]
    nbytes: int
    #: True when the framework lacks the dtype: the tensor is a flat uint8 array of the stored bytes.
    raw: bool


_NO_BYTES = memoryview(b"")


#: Region, offset and length: plain tuples, of which a model has thousands.
_Place = tuple[int, int, int]
#: Dtype, shape and length, as stored.
_Stored = tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class _Parted:
    """A tensor that is stored in several rectangular parts: their names and places, and the shape of the whole."""

    shape: tuple[int, ...]
    parts: tuple[tuple[str, Box], ...]


class Model(Mapping[str, T_co], Generic[T_co]):
    """Names to tensors, zero-copy over memory that is shared with the loader.

    The loader keeps the model as long as this object or anything made from it lives: a tensor outlives the Model that
    it came from. Tensors are made anew by each access; two of one name share their memory, but for those of checkpoints
    that several ranks saved in parts, which each access puts together in memory of its own. Safe to use from several
    threads and, tensors and lease alike, in forked children; there not on a GPU, which no process shares with its fork.
    """

    def __init__(self, attached: Attached, report: LoadReport, framework: Framework) -> None:
        model = attached.model
        self._framework = framework
        self._lease = attached.lease
        self._finalizer = weakref.finalize(self, attached.lease.release)
        self._finalizer.atexit = False
        self._regions: tuple[Region, ...] | None = attached.regions
        try:
            sizes = [region.nbytes for region in attached.regions]
            self._stored, self._places = _check_tensors(model, sizes)
            self._parts = _check_parts(model, self._stored)
            self._file_places = _check_files(model, attached.regions)
        except BaseException:
            attached.close()
            raise
        gpu = next((region.gpu for region in attached.regions if isinstance(region, GpuRegion)), None)

        #: The canonical URL.
        self.uri: str = model.uri
        #: The revision that every byte is of.
        self.revision: str = model.revision
        #: Names the model on its loader.
        self.model_id: str = model.model_id
        #: Where `longshore.attach` finds it, together with `model_id`.
        self.attach_socket: str = attached.path
        #: The device it is on: ``host`` or ``cuda:N``, as this process counts its GPUs.
        self.device: str = model.device if gpu is None else f"cuda:{gpu.ordinal}"
        #: The UUID of the GPU it is on, the same in all processes; empty for host memory.
        self.device_uuid: str = model.device_uuid if gpu is None else gpu.name
        #: Which part of the model this is, of how many; 0 of 1 for all of it.
        self.rank: int = model.parallel.rank
        self.world_size: int = model.parallel.world_size or 1
        #: Size in memory, in bytes.
        self.nbytes: int = model.size_bytes
        #: Of a committed checkpoint that was loaded by its step: what is in it. Else None.
        self.checkpoint: Checkpoint | None = None
        #: How the model came into memory.
        self.report: LoadReport = report
        #: What was odd, but no reason to fail.
        self.warnings: tuple[str, ...] = tuple(model.warnings)
        #: Files under the URL that are not part of the load, and why.
        self.skipped: tuple[SkippedFile, ...] = tuple(SkippedFile(s.name, s.reason) for s in model.skipped)

    # ---- tensors

    def __getitem__(self, name: str) -> T_co:
        name = self._alias_map.get(name, name)
        parted = self._parts.get(name)
        if parted is not None:
            parts = [(box, self._tensor(stored)) for stored, box in parted.parts]
            info = self.info(name)
            return cast(T_co, self._framework.assemble(parts, info.dtype_name, info.shape, name))
        return cast(T_co, self._tensor(name))

    def _tensor(self, name: str) -> Any:
        (dtype, shape, _), (region, offset, length) = self._stored[name], self._places[name]
        return self._framework.tensor(self._region(region), offset, length, dtype, shape)

    def __iter__(self) -> Iterator[str]:
        hidden = {stored for parted in self._parts.values() for stored, _ in parted.parts}
        yield from (name for name in self._stored if name not in hidden)
        yield from self._parts
        yield from self._alias_map

    def __len__(self) -> int:
        hidden = sum(len(parted.parts) for parted in self._parts.values())
        return len(self._stored) - hidden + len(self._parts) + len(self._alias_map)

    def __contains__(self, name: object) -> bool:
        return name in self._stored or name in self._parts or name in self._alias_map

    # A mapping compares by content, which here would read all the memory: a model is equal to itself only.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        state = (
            "closed" if self._regions is None else f"{len(self)} tensors, {format_bytes(self.nbytes)} on {self.device}"
        )
        part = f" rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        return f"<longshore.Model {self.uri}{part} ({state})>"

    def state_dict(self, *, allow_pickle: bool = False) -> dict[str, Any]:
        """All tensors, for ``module.load_state_dict(model.state_dict(), assign=True)``.

        Of a checkpoint that `longshore.save` wrote: the nested structure that was saved, with tied tensors tied.
        `allow_pickle` reads values that were pickled, which runs code of whoever wrote them.
        """
        document = self._document
        if document is None:
            return {name: self[name] for name in self}
        known: dict[str, T_co] = {}

        def tensor(name: str) -> T_co:
            if name not in known:
                if name not in self:
                    raise NotFound(f"model {self.uri}: tensor {name!r} of the checkpoint is not part of this load")
                known[name] = self[name]
            return known[name]

        found = _tree.unflatten(
            document.tree, tensor, allow_pickle=allow_pickle, where=f"{self.uri}/{_tree.STATE_FILE}"
        )
        if not isinstance(found, dict):
            raise Corrupt(f"model {self.uri}: {_tree.STATE_FILE} has no mapping at its root")
        return found

    @cached_property
    def _document(self) -> _tree.Document | None:
        """The structure that was saved; None when there is none."""
        found = []
        for name in sorted(self._file_places, key=lambda name: (name != _tree.STATE_FILE, name)):
            if _tree.is_state_file(name):
                document = _tree.parse(self.files[name], f"{self.uri}/{name}")
                if document is not None:
                    found.append(document)
        return _tree.merge(found) if found else None

    @cached_property
    def _alias_map(self) -> Mapping[str, str]:
        """Further names of tensors."""
        document = None if self.closed else self._document
        found = {**(document.aliases if document else {}), **(self.checkpoint.aliases if self.checkpoint else {})}
        has = self._stored.keys() | self._parts.keys()
        return {alias: name for alias, name in found.items() if name in has and alias not in has}

    def info(self, name: str) -> TensorInfo:
        """How a tensor is stored, without touching its memory."""
        name = self._alias_map.get(name, name)
        parted = self._parts.get(name)
        if parted is None:
            return self._stored_info(name)
        stored = [self._stored_info(each) for each, _ in parted.parts]
        return TensorInfo(
            name, stored[0].dtype_name, parted.shape, sum(each.nbytes for each in stored), any(s.raw for s in stored)
        )

    def _stored_info(self, name: str) -> TensorInfo:
        dtype, shape, nbytes = self._stored[name]
        return TensorInfo(name, dtype, shape, nbytes, raw=self._framework.is_raw(dtype, shape))

    def _describe(self, checkpoint: Checkpoint) -> None:
        """Takes what is known of the checkpoint that this is."""
        self.checkpoint = checkpoint
        self.__dict__.pop("_alias_map", None)

    def _boxes(self, name: str) -> list[tuple[Box, str]]:
        """The parts of a tensor that are here, and the names of what is stored."""
        parted = self._parts.get(name)
        if parted is not None:
            return [(box, stored) for stored, box in parted.parts]
        return [(whole(self._stored[name][1]), name)] if name in self._stored else []

    @property
    def framework(self) -> str:
        """``torch`` or ``numpy``, or ``none`` when neither is installed."""
        return self._framework.name

    # ---- files

    @property
    def files(self) -> Mapping[str, memoryview]:
        """The files that are no tensor files (tokenizer, config, GGUF, ...) as read-only memoryviews.

        They are in host memory, whatever device the tensors are on.
        """
        found = {}
        for name, (region, offset, length) in self._file_places.items():
            data = self._region(region)
            if isinstance(data, GpuRegion):  # refused when the model was made
                raise Internal(f"model {self.uri}: {name!r} is not in host memory")
            found[name] = data[offset : offset + length].toreadonly()
        return MappingProxyType(found)

    # ---- lifetime

    def close(self) -> None:
        """Gives up this object's claim. Tensors and memoryviews made before stay valid and keep the lease.

        Without any of those left, the lease ends now. May be called again.
        """
        self._regions = None
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._regions is None

    @property
    def leased(self) -> bool:
        """Whether this process still holds the lease, by this object or by anything made from it."""
        return self._lease.is_open

    def __enter__(self) -> Model[T_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise Unsupported("a model cannot be pickled; load it in the other process: that moves no bytes")

    def _region(self, index: int) -> Region:
        regions = self._regions
        if regions is None:
            raise FailedPrecondition(f"model {self.uri} is closed")
        return regions[index] if index >= 0 else _NO_BYTES


def _check_tensors(model: loader_pb2.LoadedModel, sizes: list[int]) -> tuple[dict[str, _Stored], dict[str, _Place]]:
    """The tensors by name, each known to lie inside its region and to be as long as its dtype and shape say."""
    stored: dict[str, _Stored] = {}
    places: dict[str, _Place] = {}
    for tensor in model.tensors:
        name, dtype, shape, length = tensor.name, tensor.dtype, tuple(tensor.shape), tensor.length_bytes
        if name in stored:
            raise Corrupt(f"model {model.uri}: the loader names tensor {name!r} twice")
        expected = expected_bytes(dtype, shape)
        if expected is not None and expected != length:
            raise Corrupt(f"model {model.uri}: tensor {name!r} of {dtype} {list(shape)} has {length} bytes")
        region = tensor.region
        if length:
            places[name] = _place(model.uri, name, (region, tensor.offset_bytes, length), sizes)
        else:
            # What has no bytes may lie in no region; a tensor is on the device of the one that it names, all the same.
            places[name] = (region if region < len(sizes) else -1, 0, 0)
        stored[name] = (dtype, shape, length)
    return stored, places


def _check_parts(model: loader_pb2.LoadedModel, stored: Mapping[str, _Stored]) -> dict[str, _Parted]:
    """The tensors that are stored in parts, by the name of the whole. In a load of some files, parts may be absent."""
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple[str, Box]]] = {}
    for tensor in model.tensors:
        if not tensor.HasField("piece"):
            continue
        name, mark, _ = tensor.name.rpartition("#")
        box, shape = Box(tuple(tensor.piece.start), tuple(tensor.piece.shape)), tuple(tensor.piece.of_shape)
        is_inside = len(box.start) == len(box.shape) == len(shape) and all(
            start + extent <= end for start, extent, end in zip(box.start, box.shape, shape, strict=True)
        )
        if not mark or name in stored or box.shape != stored[tensor.name][1] or not is_inside:
            raise Corrupt(f"model {model.uri}: {tensor.name!r} is no part of a tensor")
        if shapes.setdefault(name, shape) != shape:
            raise Corrupt(f"model {model.uri}: the parts of tensor {name!r} disagree about its shape")
        parts.setdefault(name, []).append((tensor.name, box))
    return {name: _Parted(shapes[name], tuple(found)) for name, found in parts.items()}


def _check_files(model: loader_pb2.LoadedModel, regions: tuple[Region, ...]) -> dict[str, _Place]:
    """The files by name, each known to lie inside its region, in host memory."""
    sizes = [region.nbytes for region in regions]
    places: dict[str, _Place] = {}
    for file in model.files:
        place = (file.region, file.offset_bytes, file.length_bytes)
        places[file.name] = _place(model.uri, file.name, place, sizes) if file.length_bytes else (-1, 0, 0)
    for name, (region, _, _) in places.items():
        if region >= 0 and isinstance(regions[region], GpuRegion):
            raise Corrupt(f"model {model.uri}: the loader put the file {name!r} on a GPU")
    return places


def _place(uri: str, name: str, place: _Place, sizes: list[int]) -> _Place:
    region, offset, length = place
    if region >= len(sizes) or offset + length > sizes[region]:
        raise Corrupt(f"model {uri}: {name!r} lies outside of the memory that the loader handed over")
    return place
