"""How ranks agree on one plan: through a process group of torch.distributed, through the loader, or alone.

With a process group rank 0 gathers what all have, plans, and sends the plan to all. A rank that fails takes part all
the same, so that every rank raises, and none waits for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from longshore._collect import Collected
from longshore._errors import Error, Internal, InvalidArgument, from_code
from longshore._proto import checkpoint_pb2 as pb
from longshore._tree import state_name

Planner = Callable[[Sequence[pb.RankItems]], pb.SavePlan]


@dataclass
class Ranks:
    """Who takes part in a save."""

    rank: int
    world_size: int
    #: The process group; None when ranks meet at the loader, or there is one.
    group: Any = None
    #: torch.distributed.
    module: Any = None

    @contextmanager
    def together(self) -> Iterator[Agreement]:
        """What is done before all have the plan. An error in it is raised on every rank."""
        agreement = Agreement(self)
        try:
            yield agreement
        except Exception as error:
            agreement.failed(error)
            raise


class Agreement:
    """One plan for all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._is_over = ranks.module is None

    def plan(self, collected: Collected, planner: Planner) -> pb.SavePlan:
        """The plan, on every rank."""
        ranks = self._ranks
        if ranks.module is None:
            return planner([collected.items])
        offer = ("ok", collected.items.SerializeToString(), collected.state_digest)
        answer = self._exchange(offer, planner)
        if answer[0] == "ok":
            return pb.SavePlan.FromString(answer[1])
        raise from_code(answer[1], answer[2])

    def failed(self, error: Exception) -> None:
        """Tells the others; they may be waiting already."""
        if not self._is_over:
            code = error.code if isinstance(error, Error) else Internal.code
            self._exchange(("error", code, str(error)), None)

    def _exchange(self, offer: tuple[Any, ...], planner: Planner | None) -> tuple[Any, ...]:
        """Gathers at rank 0, plans there, and sends the outcome to all."""
        self._is_over = True
        ranks = self._ranks
        root = ranks.module.get_global_rank(ranks.group, 0)
        is_root = ranks.rank == 0
        offers: list[Any] | None = [None] * ranks.world_size if is_root else None
        ranks.module.gather_object(offer, offers, dst=root, group=ranks.group)
        answer: list[Any] = [None]
        if offers is not None:
            try:
                answer[0] = _plan(offers, planner)
            except Exception as error:  # noqa: BLE001 - raised on all ranks
                code = error.code if isinstance(error, Error) else Internal.code
                answer[0] = ("error", code, str(error))
        ranks.module.broadcast_object_list(answer, src=root, group=ranks.group)
        outcome: tuple[Any, ...] = answer[0]
        return outcome


def _plan(offers: list[tuple[Any, ...]], planner: Planner | None) -> tuple[Any, ...]:
    for rank, offer in enumerate(offers):
        if offer[0] != "ok":
            return ("error", offer[1], f"rank {rank}: {offer[2]}")
    if planner is None:
        raise Internal("rank 0 has nothing to plan")
    items = [pb.RankItems.FromString(offer[1]) for offer in offers]
    for rank, offer in enumerate(offers[1:], 1):
        if offer[2] == offers[0][2]:
            # The same document: rank 0 writes it.
            kept = [file for file in items[rank].files if file.name != state_name(rank)]
            del items[rank].files[:]
            items[rank].files.extend(kept)
    return ("ok", planner(items).SerializeToString())


def choose(group: Any, rank: int | None, world_size: int | None) -> Ranks:
    """From what `save` was given: a process group, numbers, or nothing."""
    if (rank is None) != (world_size is None):
        raise InvalidArgument("rank and world_size are given both, or neither")
    if rank is not None and world_size is not None:
        if group is not None:
            raise InvalidArgument("ranks agree through a process group, or by rank and world_size: not both")
        for what, value in (("rank", rank), ("world_size", world_size)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidArgument(f"{what} is a whole number, not {value!r}")
        if not 0 <= rank < world_size < 1 << 32:
            raise InvalidArgument(f"rank {rank} is not one of {world_size}")
        return Ranks(rank, world_size)
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        if group is not None:
            raise InvalidArgument("a process group was given, and torch.distributed is not initialized")
        return Ranks(0, 1)
    group = distributed.group.WORLD if group is None else group
    if distributed.get_rank(group) < 0:
        raise InvalidArgument("this process is not in the process group that was given")
    return Ranks(distributed.get_rank(group), distributed.get_world_size(group), group, distributed)
