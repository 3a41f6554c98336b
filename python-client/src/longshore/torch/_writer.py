"""The writer of torch.distributed.checkpoint."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from longshore import _failures, _sessions
from longshore._errors import Error, FailedPrecondition, InvalidArgument, Unsupported
from longshore._handle import SaveHandle
from longshore._save import FileContent, Layout
from longshore._service import service
from longshore._stage import Staging
from longshore.torch import _exchange
from longshore.torch._layout import Agreed, chunks_of, lay_out
from longshore.torch._metadata import parse
from longshore.torch._part import part_of
from longshore.torch._stager import LongshoreStager, StagedSave, take_staged
from longshore.torch._target import Target, required, split

_log = logging.getLogger("longshore")

_OFFER, _PLAN, _DONE = "offer", "plan", "done"


class LongshoreWriter(StorageWriter, LongshoreStager):
    """Writes checkpoints of torch.distributed.checkpoint as Longshore does: copied into memory of the loader, synced to
    disk, and committed in the origin as a whole or not at all.

    >>> dcp.save(state, storage_writer=LongshoreWriter("s3://bucket/run", step=100))         # doctest: +SKIP
    >>> dcp.save(state, checkpoint_id="s3://bucket/run/step-101", storage_writer=writer)     # doctest: +SKIP

    A checkpoint is named by the URL of its run and its step, to the constructor or as `checkpoint_id`, with or without
    ``longshore+`` before it. What several ranks have alike is written once, as the planner says. The checkpoint is one
    of `longshore.save` too: `longshore.load` reads it, and its tensors have the names that `longshore.save` gives them.

    `wait` says what `dcp.save` waits for: ``committed``, or on every rank ``local_durable`` or ``staged``; then
    `handle` tells the rest. `layout`, `keep`, `peer_copies`, `delta`, `metadata`, `when_full` and `address` are those
    of `longshore.save`; `layout` ``"huggingface"`` puts the DTensors of the model together, so that
    ``from_pretrained`` reads them. `files` are those of the coordinator. `timeout` in seconds bounds planning and
    staging, on every rank, `commit_timeout` the wait after it.

    It is an `AsyncStager` as well: `async_save` with it copies into the loader's memory before it returns, when it
    knows the target by then, see `LongshoreStager`. `process_group` is the one given to `async_save`, if any. In a
    process of its own (``AsyncCheckpointerType.PROCESS``) only what has to be waited for is left to do. Any other
    stager can be used with it.

    When a rank fails while it writes, `dcp.save` raises its error on all ranks. When a rank dies, torch's collectives
    fail, with an error that does not name it: `failure` does, and `longshore.torch.checkpoint.save` raises it.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str] | None = None,
        *,
        step: int | None = None,
        keep: int = 0,
        peer_copies: int = 0,
        delta: bool = False,
        layout: Layout = "auto",
        files: Mapping[str, FileContent] | None = None,
        metadata: Mapping[str, str] | None = None,
        wait: Literal["staged", "local_durable", "committed"] = "committed",
        when_full: Literal["wait", "refuse"] = "wait",
        timeout: float = 600.0,
        commit_timeout: float = 1800.0,
        address: str | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        LongshoreStager.__init__(
            self,
            uri,
            step=step,
            process_group=process_group,
            keep=keep,
            peer_copies=peer_copies,
            delta=delta,
            layout=layout,
            files=files or {},
            metadata=metadata or {},
            wait=wait,
            when_full=when_full,
            timeout=timeout,
            commit_timeout=commit_timeout,
            address=address,
        )
        #: Why the last save failed on this rank, as far as this package knows; None when it did not.
        self.failure: Error | None = None
        self._save_id = ""
        self._rank = 0
        self._is_coordinator = True
        self._world_size = 1
        self._staged: StagedSave | None = None
        self._deadline = 0.0
        self._meeting: _exchange.Meeting | None = None
        self._agreed: Agreed | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to this process stays here, but for memory that the one which goes on would wait for in vain.
        own = {"_group": None, "_handle": None, "_staged": None, "_meeting": None, "_agreed": None}
        return {**self.__dict__, **own, "_slabs": _sessions.hand_over()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _sessions.adopt(state.pop("_slabs"))
        self.__dict__.update(state)

    # ---- StorageWriter

    @property
    def checkpoint_id(self) -> str | None:
        """URL of the checkpoint that is written."""
        return None if self._target is None else self._target.url

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is the URL of a run and a step."""
        return split(checkpoint_id) is not None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A save begins, to a checkpoint."""
        if checkpoint_id is not None:
            self._target = required(checkpoint_id)

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id or None)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("use_collectives", True):
            raise Unsupported("a checkpoint is committed for all ranks at once, which use_collectives=False rules out")
        self._is_coordinator = is_coordinator
        self._rank = int(kwargs.get("rank", 0 if is_coordinator else dist.get_rank()))
        self._deadline = self._settings.deadline()
        self.failure, self._meeting, self._agreed = None, None, None
        take_staged()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._staged = take_staged()
        if self._staged is not None:
            self._target = self._staged.target
        if self._target is None:
            raise InvalidArgument("no checkpoint was named: give the writer a URL and a step, or dcp a checkpoint_id")
        if dist.is_available() and dist.is_initialized():
            _exchange.announce(self._target.url, self._rank)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._world_size = len(plans)
        self._save_id = str(uuid.uuid4())
        if self._world_size > 1:
            staged = self._staged
            token = self._save_id if staged is None else f"staged-{staged.attempt}"
            _exchange.open_meeting(self._checked_target().url, token, self._world_size)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            self._write(plan, planner)
        except Error as error:
            self.failure = error
            _log.error("save of %s: %s", self.checkpoint_id, error)
            raise
        results = [WriteResult(item.index, item.tensor_storage_size() or 0, None) for item in plan.items]
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: waits until the checkpoint is committed."""
        agreed, handle = self._agreed, self._handle
        if agreed is None or handle is None:
            raise FailedPrecondition("nothing was written that could be finished")
        try:
            if self._settings.wait == "committed":
                handle.wait("committed", self._settings.commit_timeout)
        except Error as error:
            self.failure = error
            raise
        finally:
            if self._meeting is not None:
                self._meeting.forget(_DONE, range(self._world_size))
                self._meeting.forget(_PLAN, [0])
        written = parse(agreed.metadata, allow_pickle=True)
        metadata.planner_data, metadata.storage_data = written.planner_data, written.storage_data
        metadata.storage_meta = self.storage_meta()

    # ---- the work

    def _checked_target(self) -> Target:
        if self._target is None:
            raise FailedPrecondition("no checkpoint was named")
        return self._target

    def _write(self, plan: SavePlan, planner: SavePlanner) -> None:
        where = self._checked_target().url
        if not self._is_coordinator or self._world_size > 1:
            self._meeting = _exchange.join_meeting(where, self._rank, self._deadline)
            self._world_size = self._meeting.world_size
            if self._meeting.token.startswith("staged-") != (self._staged is not None) and plan.items:
                raise FailedPrecondition("some of the ranks have staged the checkpoint, and others have not")
        if self._staged is not None:
            self._take_over(self._staged, plan)
        elif self._meeting is None or not self._meeting.token.startswith("staged-"):
            self._write_now(plan, planner)

    def _take_over(self, staged: StagedSave, plan: SavePlan) -> None:
        """Everything is in slabs already: checks that it is what is to be written."""
        known = chunks_of(parse(staged.agreed.metadata, allow_pickle=True))
        missing = [item.index.fqn for item in plan.items if item.index not in known]
        if missing:
            raise InvalidArgument(
                f"the planner wants {missing[0]!r}, which was not staged: planners that change names or shapes need "
                "another stager, for instance torch's DefaultStager"
            )
        self._agreed = staged.agreed
        self._handle = staged.handle or _follow(staged)
        self._leave_failures_to_coordinator(self._handle)
        if self._settings.wait != "committed":
            self._handle.wait(self._settings.wait, self._settings.commit_timeout)

    def _leave_failures_to_coordinator(self, handle: SaveHandle) -> None:
        """It waits for the commit, and torch raises on every rank what it hears."""
        if self._settings.wait == "committed" and not self._is_coordinator:
            handle._failure.is_told = True

    def _write_now(self, plan: SavePlan, planner: SavePlanner) -> None:
        meeting, settings = self._meeting, self._settings
        where = service(settings.address)
        handle: SaveHandle | None = None
        told = _OFFER
        try:
            _failures.warn_of(self._checked_target().uri)
            part = part_of(plan, planner, self._rank, gather=settings.layout == "huggingface")
            found = getattr(planner, "metadata", None)
            metadata = found if self._is_coordinator and isinstance(found, Metadata) else None
            goal = self._checked_target()
            if meeting is None:
                agreed = lay_out(where, goal, settings, [part.offer], metadata=metadata, deadline=self._deadline)
            else:
                meeting.say(_OFFER, part.offer)
                told = _PLAN if self._is_coordinator else _DONE
                if self._is_coordinator:
                    ranks = range(meeting.world_size)
                    offers = meeting.hear(_OFFER, ranks, "planning the save")
                    meeting.forget(_OFFER, ranks)
                    ordered = [offers[rank] for rank in ranks]
                    agreed = lay_out(where, goal, settings, ordered, metadata=metadata, deadline=self._deadline)
                    meeting.say(_PLAN, agreed)
                    told = _DONE
                else:
                    agreed = meeting.hear(_PLAN, [0], "planning the save")[0]
            self._agreed = agreed
            handle = part.begin(where, agreed, settings, self._deadline, is_coordinator=self._is_coordinator)
            self._handle = handle
            self._leave_failures_to_coordinator(handle)
            if settings.wait != "committed":
                handle.wait(settings.wait, max(0.0, self._deadline - time.monotonic()))
            if meeting is not None:
                meeting.say(_DONE, None)
                told = ""
                meeting.hear(_DONE, range(meeting.world_size), "writing the checkpoint")
        except BaseException as error:
            if meeting is not None and told:
                meeting.fail(told, error)
            if handle is not None:
                _give_up(handle)
            raise


def _give_up(handle: SaveHandle) -> None:
    """Another rank cannot complete the save: nothing of it is to become visible."""
    try:
        handle.cancel(timeout=5.0)
    except Error as error:
        _log.info("giving the save up: %s", error)


def _follow(staged: StagedSave) -> SaveHandle:
    """A handle for a save that another process has staged."""
    handle = SaveHandle(service(staged.address), staged.agreed.save_plan, staged.rank, Staging())
    handle._watch()
    return handle
