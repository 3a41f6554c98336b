"""Staging for `async_save`: straight into the loader's slabs.

After `stage` the checkpoint is planned and copied, and the loader's to finish. What is handed on to the thread or
process that `async_save` runs the rest in are stand-ins without bytes: torch plans with them as with the tensors, and a
`LongshoreWriter` finds that there is nothing left to write.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions

from longshore import _inputs
from longshore._errors import Error, Internal, InvalidArgument, Unavailable, from_code
from longshore._handle import SaveHandle
from longshore._service import service
from longshore.torch import _exchange
from longshore.torch._layout import Agreed, lay_out
from longshore.torch._part import Part, add_object, check_gathered, part_of
from longshore.torch._settings import Settings
from longshore.torch._target import Target


@dataclass
class StagedSave:
    """A checkpoint that is in slabs. Can be pickled."""

    target: Target
    agreed: Agreed
    rank: int
    #: The loader that has it.
    address: str
    #: Follows it, in the process that staged it.
    handle: SaveHandle | None = field(default=None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "handle": None}


class StandIn:
    """In place of a tensor or an object that is staged. `torch.distributed.checkpoint` asks it what there is to write."""

    def __init__(self, save: StagedSave, items: list[WriteItem]) -> None:
        self._save = save
        self._items = items

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:  # noqa: PLW3201 - the name is torch's
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

    _synchronize_after_execute = False

    def __init__(self, settings: Settings, target: Target | None, process_group: dist.ProcessGroup | None) -> None:
        self._settings = settings
        self._target = target
        #: The target of the next `stage`: each is staged to once.
        self._next = target
        self._group = process_group
        self._handle: SaveHandle | None = None

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
        settings = self._settings
        deadline = settings.deadline()
        # Torch announces nothing at this point: whoever is not in the group has been told not to call this.
        ranks = _Ranks(self._group)
        take_staged()
        planner = DefaultSavePlanner()
        planned: list[SavePlan] = []

        def prepare() -> tuple[SavePlan, Part]:
            planner.set_up_planner(state_dict, None, ranks.is_coordinator)
            plan = planner.create_local_plan()
            planned.append(plan)
            part = part_of(plan, planner, ranks.rank, gather=settings.layout == "huggingface")
            if settings.layout == "huggingface":
                check_gathered(part)
            return plan, part

        where = service(settings.address)
        local: list[Part] = []

        def offer() -> tuple[SavePlan, Any]:
            plan, part = prepare()
            local.append(part)
            return plan, part.offer

        def plan_all(offers: list[tuple[SavePlan, Any]]) -> Agreed:
            plans, metadata = planner.create_global_plan([plan for plan, _ in offers])
            for (_, each), plan in zip(offers, plans, strict=True):
                _keep(each, plan)
            return lay_out(where, target, settings, [each for _, each in offers], metadata, deadline)

        agreed = ranks.agree(offer, plan_all)
        part = local[0]
        part.offer.blobs = {fqn: size for fqn, size in part.offer.blobs.items()}
        known = [(p, i) for p, i in zip(part.offer.pieces, part.inputs, strict=True) if p.fqn in agreed.names]
        part.offer.pieces, part.inputs = [p for p, _ in known], [i for _, i in known]
        handle = part.begin(where, agreed, settings, deadline, is_coordinator=ranks.is_coordinator)
        self._handle = handle
        save = StagedSave(target, agreed, ranks.rank, where.address, handle)
        return _stand_ins(save, planned[0])
