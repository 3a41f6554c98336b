"""Staging for `async_save`: straight into the loader's slabs.

After `stage` the checkpoint is planned and copied, and the loader's to finish. What is handed on to the thread or
process that `async_save` runs the rest in are stand-ins without bytes: torch plans with them as with the tensors, and a
`LongshoreWriter` finds that there is nothing left to write.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions

from longshore import _failures, _inputs
from longshore._errors import Error, Internal, InvalidArgument, Unavailable, from_code
from longshore._handle import SaveHandle
from longshore._service import service
from longshore.torch._layout import Agreed, Offer, lay_out
from longshore.torch._part import Part, part_of
from longshore.torch._settings import Settings
from longshore.torch._target import Target, required
from longshore.torch._target import target as make_target

T = TypeVar("T")


@dataclass(repr=False)
class StagedSave:
    """A checkpoint that is in slabs. Can be pickled."""

    target: Target
    agreed: Agreed
    rank: int
    #: The loader that has it.
    address: str
    #: Follows it, in the process that staged it.
    handle: SaveHandle | None = field(default=None)

    def __repr__(self) -> str:
        return f"<StagedSave {self.target.url} (rank {self.rank}, attempt {self.attempt})>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "handle": None}

    @property
    def attempt(self) -> str:
        return str(self.agreed.save_plan.attempt)


class StandIn:
    """In place of a tensor or an object that is staged. Torch asks it what there is to write."""

    def __init__(self, save: StagedSave, items: list[WriteItem]) -> None:
        self._save = save
        self._items = items

    def __repr__(self) -> str:
        return f"<StandIn of {len(self._items)} items of {self._save!r}>"

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        _planning.staged = self._save
        return self._items


_planning = threading.local()


def take_staged() -> StagedSave | None:
    """The save whose stand-ins this thread has planned with since the last call."""
    found: StagedSave | None = getattr(_planning, "staged", None)
    _planning.staged = None
    return found


class LongshoreStager(AsyncStager):
    """Stages into slabs.

    That needs the target before `stage` is called, because `async_save` hands its `checkpoint_id` to nobody before:
    give it to the constructor, or call `aim` before each save. Without a target the state dict is copied on the
    host as torch's own stager does, and goes to slabs in the thread or process that `async_save` starts.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str] | None = None,
        *,
        step: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of `LongshoreWriter`."""
        self._settings = Settings(**options)
        self._target = make_target(uri, step)
        #: The target of the next `stage`: each is staged to once.
        self._next = self._target
        self._group = process_group
        self._handle: SaveHandle | None = None

    def aim(self, uri: str | os.PathLike[str], step: int | None = None) -> None:
        """Names the checkpoint of the next save; `uri` is that of the run, or with its step when no step is given."""
        self._target = self._next = required(uri) if step is None else make_target(uri, step)

    @property
    def should_synchronize_after_execute(self) -> bool:
        """False: `stage` returns when everything is copied."""
        return False

    @property
    def handle(self) -> SaveHandle | None:
        """Follows the last save of this process; None before the first, and in a process that others save for."""
        return self._handle

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any] | Future[dict[str, Any]]:
        """Copies a state dict. On return it may change."""
        target, self._next = self._next, None
        if target is None:
            return self._copied(state_dict)
        settings, deadline = self._settings, self._settings.deadline()
        planner = DefaultSavePlanner()
        mine: list[tuple[SavePlan, Part]] = []
        ranks = Ranks(self._group)
        where = service(settings.address)

        def offer() -> tuple[SavePlan, Offer]:
            _failures.warn_of(target.uri)
            planner.set_up_planner(state_dict, None, ranks.is_coordinator)
            plan = planner.create_local_plan()
            part = part_of(plan, planner, ranks.rank, gather=settings.layout == "huggingface")
            mine.append((plan, part))
            return plan, part.offer

        def reduce(offers: list[tuple[SavePlan, Offer]]) -> Agreed:
            plans, metadata = planner.create_global_plan([plan for plan, _ in offers])
            kept = [_kept(each, plan) for (_, each), plan in zip(offers, plans, strict=True)]
            return lay_out(where, target, settings, kept, metadata=metadata, deadline=deadline)

        agreed = ranks.agree(offer, reduce)
        ((plan, part),) = mine
        handle = part.begin(where, agreed, settings, deadline, is_coordinator=ranks.is_coordinator)
        self._handle = handle
        return _stand_ins(StagedSave(target, agreed, ranks.rank, where.address, handle), plan)

    def synchronize_staging(self) -> None:
        """Nothing to wait for: `stage` returns when everything is copied."""

    def close(self) -> None:
        """Nothing to free: the memory is the loader's. Saves go on."""

    def _copied(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy on the host, in memory of its own: an earlier one may still be read from."""
        if self._settings.layout == "huggingface" and any(map(_inputs.is_dtensor, _leaves(state_dict))):
            raise InvalidArgument(
                "DTensors can be put together for layout='huggingface' only while they are where they belong: name the "
                "checkpoint before staging, with the constructor's step or with aim(), instead of by checkpoint_id"
            )
        stager = DefaultStager(StagingOptions(False, False, False, False))
        try:
            copied = stager.stage(state_dict)
        finally:
            stager.close()
        if isinstance(copied, Future):
            raise Internal("torch's stager answered with a future, which it was not asked for")
        return copied


class Ranks:
    """The ranks of a process group, or this process alone."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if self.is_distributed else 0
        self.world_size = dist.get_world_size(group) if self.is_distributed else 1
        self.is_coordinator = self.rank == 0
        if self.rank < 0:
            raise InvalidArgument("this process is not in the process group that was given")

    def agree(self, offer: Callable[[], T], reduce: Callable[[list[T]], Agreed]) -> Agreed:
        """What the coordinator makes of the offers of all, on every rank; an error of one is raised on every rank."""
        try:
            mine: tuple[Any, ...] = ("ok", offer())
        except Exception as error:
            mine = _as_answer(error)
            self._exchange(mine, reduce)
            raise
        answer = self._exchange(mine, reduce)
        if answer[0] == "ok":
            agreed: Agreed = answer[1]
            return agreed
        raise from_code(answer[1], answer[2])

    def _exchange(self, mine: tuple[Any, ...], reduce: Callable[[list[T]], Agreed]) -> tuple[Any, ...]:
        if not self.is_distributed:
            return _reduced([mine], reduce)
        try:
            root = 0 if self._group is None else dist.get_global_rank(self._group, 0)
            offers: list[Any] | None = [None] * self.world_size if self.is_coordinator else None
            dist.gather_object(mine, offers, dst=root, group=self._group)
            answer: list[Any] = [None if offers is None else _reduced(offers, reduce)]
            dist.broadcast_object_list(answer, src=root, group=self._group)
        except RuntimeError as error:
            raise Unavailable(f"planning the save together with the other ranks: one of them ended: {error}") from error
        found: tuple[Any, ...] = answer[0]
        return found


def _as_answer(error: Exception) -> tuple[Any, ...]:
    return ("error", error.code if isinstance(error, Error) else Internal.code, str(error) or repr(error))


def _reduced(offers: list[Any], reduce: Callable[[list[T]], Agreed]) -> tuple[Any, ...]:
    for rank, offer in enumerate(offers):
        if offer[0] != "ok":
            return ("error", offer[1], f"rank {rank}: {offer[2]}")
    try:
        return ("ok", reduce([offer[1] for offer in offers]))
    except Exception as error:  # noqa: BLE001 - raised on all ranks
        return _as_answer(error)


def _kept(offer: Offer, plan: SavePlan) -> Offer:
    """What the planner has left to a rank, of what several ranks have alike."""
    fqns = {item.index.fqn for item in plan.items if item.type == WriteItemType.BYTE_IO}
    places = {(item.index.fqn, tuple(item.index.offset or ())) for item in plan.items}
    return Offer(
        rank=offer.rank,
        pieces=[each for each in offer.pieces if each.gathered or (each.fqn, each.offset) in places],
        blobs={fqn: size for fqn, size in offer.blobs.items() if fqn in fqns},
        values={fqn: value for fqn, value in offer.values.items() if fqn in fqns},
        paths=offer.paths,
    )


def _stand_ins(save: StagedSave, plan: SavePlan) -> dict[str, Any]:
    items: dict[str, list[WriteItem]] = {}
    for item in plan.items:
        items.setdefault(item.index.fqn, []).append(item)
    return {fqn: StandIn(save, each) for fqn, each in items.items()}


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    else:
        yield value
