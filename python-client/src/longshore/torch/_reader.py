"""The reader of torch.distributed.checkpoint."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from longshore._boxes import Box, intersection
from longshore._checkpoints import Checkpoint, check_step, get
from longshore._errors import Corrupt, FailedPrecondition, InvalidArgument, NotFound
from longshore._load import load
from longshore._model import Model
from longshore._restore import _copy
from longshore._service import service
from longshore.torch import _exchange
from longshore.torch._catalog import Catalog, of_checkpoint, of_model
from longshore.torch._layout import over, torch_dtype
from longshore.torch._target import plain, split


@dataclass(frozen=True)
class _Needs:
    """What a rank needs, in its plan."""

    machine: str
    #: Names the checkpoint that was read, so that all ranks read the same one.
    identity: str
    files: tuple[str, ...]


class LongshoreReader(StorageReader):
    """Reads for torch.distributed.checkpoint: what `LongshoreWriter` wrote, what `longshore.save` wrote, and folders of
    safetensors files, Hugging Face's for instance.

    >>> dcp.load(state, storage_reader=LongshoreReader("s3://bucket/run", step="latest"))       # doctest: +SKIP
    >>> dcp.load(state, checkpoint_id="s3://bucket/run/step-100", storage_reader=reader)        # doctest: +SKIP

    With a step (a number, or ``"latest"``), apart or in the URL, only a committed checkpoint is read; every byte of it
    is compared with the commit's checksums. Without one the URL is that of a folder of safetensors files, whose tensors
    have the names that they have there. Of a checkpoint only the files are loaded that a rank of this machine needs,
    once for all ranks of the machine, however many ranks saved it. Of a folder everything, or what `include`, patterns
    of file names, says.

    Objects that are no tensors are unpickled by torch's planner, which runs code of whoever saved them. Beyond that,
    `allow_pickle` accepts objects of any class in a checkpoint's `.metadata` and tree. `timeout` in seconds bounds each
    load, `address` is that of a loader.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str] | None = None,
        *,
        step: int | Literal["latest"] | None = None,
        include: Iterable[str] | None = None,
        allow_pickle: bool = False,
        timeout: float | None = None,
        address: str | None = None,
    ) -> None:
        super().__init__()
        if uri is None and step is not None:
            raise InvalidArgument("a step was given without the URL of its run")
        if isinstance(include, str):
            raise InvalidArgument("include takes a list of patterns, not one string")
        self._uri = None if uri is None else plain(uri)
        self._step: int | Literal["latest"] | None = step if step is None or step == "latest" else check_step(step)
        self._include = None if include is None else list(include)
        self._allow_pickle = allow_pickle
        self._timeout = timeout
        self._address = address
        self._run = ""
        self._checkpoint: Checkpoint | None = None
        self._catalog: Catalog | None = None
        #: Of a folder of other tools, from the metadata to the data.
        self._model: Model[Any] | None = None

    # ---- StorageReader

    @property
    def checkpoint_id(self) -> str | None:
        """URL of what is read."""
        return self._checkpoint.url if self._checkpoint is not None else self._uri

    @property
    def step(self) -> int | None:
        """Step of the checkpoint that was read last; None for a folder."""
        return None if self._checkpoint is None else self._checkpoint.step

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can be the URL of a checkpoint or of a folder."""
        return bool(os.fspath(checkpoint_id))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A load begins."""
        self._close()
        if checkpoint_id is not None:
            self._uri, self._step = plain(checkpoint_id), None

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        self._close()
        if self._uri is None:
            raise InvalidArgument("nothing was named to load: give the reader a URL, or dcp a checkpoint_id")
        named = split(self._uri) if self._step is None else None
        uri, step = (named.uri, named.step) if named is not None else (self._uri, self._step)
        if step is None:
            self._model = self._load(self._uri, None, self._include)
            self._catalog = of_model(self._model)
        else:
            where = service(self._address)
            self._checkpoint = checkpoint = get(where, uri, None if step == "latest" else step, self._timeout)
            self._catalog = of_checkpoint(
                checkpoint, lambda files: self._load(uri, checkpoint.step, files), allow_pickle=self._allow_pickle
            )
            self._run = uri
        return dataclasses.replace(self._catalog.metadata, storage_meta=StorageMeta(checkpoint_id=self.checkpoint_id))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._known()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        files = {name for item in plan.items for name in self._files(item)}
        identity = self._checkpoint.attempt if self._checkpoint is not None else self._opened().revision
        needs = _Needs(_exchange.myself().machine, identity, tuple(sorted(files)))
        return dataclasses.replace(plan, storage_data=needs)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Makes the ranks of a machine load the same files: then there is one load, in memory that they share."""
        files: dict[str, set[str]] = {}
        for rank, plan in enumerate(plans):
            needs: _Needs = plan.storage_data
            if needs.identity != plans[0].storage_data.identity:
                raise FailedPrecondition(
                    f"rank {rank} found another version of {self.checkpoint_id} than rank 0: load again"
                )
            files.setdefault(needs.machine, set()).update(needs.files)
        return [
            dataclasses.replace(
                plan,
                storage_data=dataclasses.replace(
                    plan.storage_data, files=tuple(sorted(files[plan.storage_data.machine]))
                ),
            )
            for plan in plans
        ]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        needs: _Needs = plan.storage_data
        try:
            model = self._model
            if self._checkpoint is not None and needs.files:
                model = self._load(self._run, self._checkpoint.step, needs.files)
                if model.checkpoint is None or model.checkpoint.attempt != needs.identity:
                    raise FailedPrecondition(f"{self.checkpoint_id} was deleted or replaced while it was loaded")
                self._model = model
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, io.BytesIO(self._object(item.storage_index.fqn, model)))
                else:
                    self._tensor(item, planner, model)
        finally:
            self._close(keep_facts=True)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    # ---- the work

    def _close(self, *, keep_facts: bool = False) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.close()
        if not keep_facts:
            self._checkpoint = self._catalog = None

    def _known(self) -> Catalog:
        if self._catalog is None:
            raise FailedPrecondition("read_metadata comes first")
        return self._catalog

    def _opened(self) -> Model[Any]:
        if self._model is None:
            raise FailedPrecondition("read_metadata comes first")
        return self._model

    def _load(self, uri: str, step: int | None, include: Iterable[str] | None) -> Model[Any]:
        return load(
            uri,
            "host",
            include=None if include is None else list(include),
            framework="torch",
            progress=False,
            timeout=self._timeout,
            address=self._address,
            step=step,
        )

    def _name(self, fqn: str) -> str:
        name = self._known().names.get(fqn)
        if name is None:
            raise NotFound(f"{self.checkpoint_id} has no tensor {fqn!r}")
        return name

    def _files(self, item: ReadItem) -> list[str]:
        """The files of a checkpoint that an item is in."""
        if self._checkpoint is None:
            return []
        fqn = item.storage_index.fqn
        if item.type == LoadItemType.BYTE_IO:
            place = self._known().objects.get(fqn)
            return [] if place is None else [place[0]]
        tensor = self._checkpoint.tensors.get(self._name(fqn))
        if tensor is None:
            raise Corrupt(f"{self.checkpoint_id}: its metadata names the tensor {fqn!r}, which it does not have")
        _, pack = torch_dtype(tensor.dtype_name)
        wanted = _box(item)
        return [piece.file for piece in tensor.pieces if intersection(_over(piece.box, pack), wanted) is not None]

    def _object(self, fqn: str, model: Model[Any] | None) -> bytes:
        catalog = self._known()
        if fqn in catalog.values:
            stream = io.BytesIO()
            torch.save(catalog.values[fqn], stream)
            return stream.getvalue()
        place = catalog.objects.get(fqn)
        if place is None or model is None:
            raise NotFound(f"{self.checkpoint_id} has no object {fqn!r}")
        name, offset, length = place
        content = model.files[name]
        if offset + length > len(content):
            raise Corrupt(f"{self.checkpoint_id}: the object {fqn!r} does not lie in its file {name}")
        return bytes(content[offset : offset + length])

    def _tensor(self, item: ReadItem, planner: LoadPlanner, model: Model[Any] | None) -> None:
        fqn, wanted = item.storage_index.fqn, _box(item)
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != wanted.shape:
            raise FailedPrecondition(f"{fqn!r} is {list(target.shape)} here, where the plan has {list(wanted.shape)}")
        if wanted.size:
            if model is None:
                raise NotFound(f"{self.checkpoint_id} has no tensor {fqn!r}")
            name = self._name(fqn)
            _, pack = torch_dtype(model.info(name).dtype_name)
            copied = 0
            for stored_box, stored in model._boxes(name):
                box = _over(stored_box, pack)
                common = intersection(box, wanted)
                if common is not None:
                    _copy(target, common.slices(wanted.start), model._tensor(stored), common.slices(box.start))
                    copied += common.size
            if copied != wanted.size:
                raise NotFound(f"{self.checkpoint_id}: the tensor {fqn!r} is not complete")
        planner.commit_tensor(item, target)


def _box(item: ReadItem) -> Box:
    """What an item wants of the whole tensor."""
    lengths = tuple(item.lengths)
    origin = item.storage_index.offset or (0,) * len(lengths)
    start = tuple(base + offset for base, offset in zip(origin, item.storage_offsets, strict=True))
    return Box(start, lengths)


def _over(box: Box, pack: int) -> Box:
    return Box(over(box.start, pack), over(box.shape, pack))
