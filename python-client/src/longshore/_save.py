"""`longshore.save`: plans a checkpoint, copies it into the loader's slabs, and follows it until it is committed.

Its steps are functions of their own, for other writers: `plan_save` lays a checkpoint out, `begin` starts one rank's
part, copies it and returns the handle. Neither knows where tensors come from: they are given makers, see `_stage`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from longshore import _collect, _failures, _ranks, _sessions
from longshore._checkpoints import check_step, get
from longshore._device_copies import DeviceCopies, lock_pages
from longshore._errors import (
    Cancelled,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Timeout,
    Unavailable,
)
from longshore._handle import SaveHandle
from longshore._node import _absolute
from longshore._proto import checkpoint_pb2 as pb
from longshore._service import Service, service
from longshore._sources import Source
from longshore._stage import RETRY_SECONDS, Maker, Staging, segments, stage

_log = logging.getLogger("longshore")

#: Of the loader, for a save without a time-out of its own.
STAGE_SECONDS = 600.0
#: Processes that save on a large node: more ranks than this are surely on several nodes.
NODE_RANKS_MAX = 16
#: A call takes so much longer than what it waits for.
CALL_SECONDS = 60.0
#: Files that go with the start of a save instead of through slabs.
INLINE_BYTES_MAX = 4 << 20
INLINE_TOTAL_BYTES_MAX = 32 << 20

Layout = Literal["auto", "huggingface", "sharded"]
Wait = Literal["staged", "local_durable", "peer_durable", "committed"]
FileContent = str | bytes | bytearray | memoryview | os.PathLike[str]


def save(
    state_dict: Mapping[Any, Any],
    uri: str | os.PathLike[str],
    *,
    step: int,
    keep: int = 0,
    peer_copies: int = 0,
    delta: bool = False,
    layout: Layout = "auto",
    group: Any = None,
    rank: int | None = None,
    world_size: int | None = None,
    files: Mapping[str, FileContent] | None = None,
    metadata: Mapping[str, str] | None = None,
    wait: Wait | None = "staged",
    when_full: Literal["wait", "refuse"] = "wait",
    timeout: float | None = None,
    allow_pickle: bool = False,
    address: str | None = None,
) -> SaveHandle:
    """Saves a nested state dict as the checkpoint `uri`/step-`step`.

    The tensors of the subtree ``model``, or those of a flat dict, are stored under their own names in safetensors files
    that any Hugging Face tool reads; those of every other subtree (``optim``) in a folder of its key. What is no tensor
    goes to `state.json`: None, bool, int, float, complex, str, bytes, list, tuple, set, dict with any plain keys,
    scalars of numpy, torch's dtypes, devices and sizes; anything else is refused by its path, or pickled with
    `allow_pickle`. Tensors are those of torch, on any device and strided in any way, DTensors, and numpy arrays, of
    every dtype that safetensors has. Tensors that are the same view of the same memory are stored once. Meta, sparse,
    quantized and nested tensors are refused by name.

    `wait` says what is waited for, see `SaveHandle`. By default that is ``staged``: the bytes are copied into memory
    that the loader shares, and everything may be changed when this returns, by the CPU and by the GPU. With None
    the copy goes on in the background, and *no tensor of `state_dict` may be changed, and none on the CPU freed, before
    `SaveHandle.staged` is done*, or, for CUDA streams, before `SaveHandle.wait_on_stream`. GPUs are read on
    a side stream, which waits for what the current stream of this thread was given before the call; no stream of the
    caller's waits for the copy unless it is asked to.

    With several ranks each of them calls this, with what it has; what several have alike is written by one of them.
    They agree through `group`, a process group of torch.distributed (the default one when it is initialized), or, when
    `rank` and `world_size` are given, through the loader. A name means the same tensor on every rank. `layout`
    ``"sharded"`` stores the shards of DTensors as they are, ``"huggingface"`` puts each DTensor together, one at a
    time, and ``"auto"`` is ``"sharded"`` for what is sharded. Everything can be loaded by any number of ranks.

    `keep`: committed checkpoints to keep under `uri`, this one included; 0 keeps all. `peer_copies`: further nodes that
    are to hold the bytes. `delta`: only what changed since the last checkpoint may be written. `files`: further files,
    by their name in the checkpoint, as bytes or as the path of a file or folder. `metadata`: texts to keep with it.
    `when_full`: whether to wait for room in memory and on the disk, or to raise `Exhausted`. `timeout` in seconds
    bounds this call; a save that is not staged by then is given up. `address` is that of a loader, as
    `longshore.connect` takes it; without a running one a private loader is started, which lives until its saves are
    committed.

    A process that ends does not take its staged saves with it. Raises the subclass of `longshore.Error` that names the
    reason; on every rank, when they agree through a process group. What is found out only after the return (that the
    step is committed already, for instance, which the origin knows) is the handle's to tell; when nobody asks it, the
    next save of the run warns (`SaveFailedWarning`).
    """
    _check_choice("layout", layout, ("auto", "huggingface", "sharded"))
    _check_choice("wait", wait, (None, "staged", "local_durable", "peer_durable", "committed"))
    _check_choice("when_full", when_full, ("wait", "refuse"))
    check_step(step)
    deadline = time.monotonic() + (STAGE_SECONDS if timeout is None else timeout)
    ranks = _ranks.choose(group, rank, world_size)
    options = pb.SaveOptions(
        keep=_check_count("keep", keep),
        peer_copies=_check_count("peer_copies", peer_copies),
        delta=delta,
        stage_timeout_ms=_milliseconds(deadline),
        refuse_when_full=when_full == "refuse",
        metadata=_check_metadata(metadata),
        hf_index=layout != "sharded",
    )
    with ranks.together() as agreed:
        _failures.warn_of(os.fspath(uri))
        where = service(address)
        collected = _collect.collect(
            state_dict, files or {}, rank=ranks.rank, gather=layout == "huggingface", allow_pickle=allow_pickle
        )
        request = pb.PlanSaveRequest(uri=_absolute(uri), step=step, world_size=ranks.world_size, options=options)
        plan = agreed.plan(collected, lambda items: plan_save(where, request, items, deadline))
    handle = begin(
        where,
        plan,
        ranks.rank,
        maker_of=lambda file, tensor: collected.maker(tensor.tensor, is_mine=plan.files[file].rank == ranks.rank),
        content_of=collected.content,
        inline=collected.inline,
        devices=collected.devices,
        deadline=deadline,
        background=wait is None,
    )
    if wait not in {None, "staged"}:
        handle.wait(str(wait), None if timeout is None else max(0.0, deadline - time.monotonic()))
    return handle


def plan_save(
    where: Service, request: pb.PlanSaveRequest, ranks: Sequence[pb.RankItems], deadline: float
) -> pb.SavePlan:
    """Lays a checkpoint out. `ranks` may be all of them, or some: then the call waits for others to give the rest."""
    _refuse_committed(where, request)
    request.ranks.extend(ranks)
    request.join_timeout_ms = _milliseconds(deadline)
    plan: pb.SavePlan = _call(where, "PlanSave", request, pb.SavePlan, deadline)
    return plan


def _refuse_committed(where: Service, request: pb.PlanSaveRequest) -> None:
    """Refuses a step that this process has seen to be committed, if it still is. Nothing is asked for other steps."""
    if not _failures.may_be_committed(request.uri, request.step):
        return
    try:
        found = get(where, request.uri, request.step, CALL_SECONDS)
    except NotFound:
        _failures.forget_committed(request.uri, request.step)
        return
    except Error as error:
        # The save itself will tell.
        _log.info("looking whether step %d is committed: %s", request.step, error)
        return
    raise FailedPrecondition(
        f"{found.url} is committed already, by attempt {found.attempt}: save another step, or delete this one first"
    )


def _call(where: Service, name: str, request: Any, answer: Any, deadline: float) -> Any:
    """A call that may be made again: when the loader goes away during it, the next one gets it."""
    lost_at: float | None = None
    while True:
        try:
            if lost_at is not None:
                where.reopen()
            return where.call(name, request, answer, max(1.0, deadline - time.monotonic()) + CALL_SECONDS)
        except Unavailable:
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if now >= min(deadline, lost_at + _sessions.RESTART_SECONDS):
                raise
            time.sleep(RETRY_SECONDS)


def begin(
    where: Service,
    plan: pb.SavePlan,
    rank: int,
    *,
    maker_of: Callable[[int, pb.PlannedTensor], Maker | None],
    content_of: Callable[[str], Source],
    inline: Callable[[str], bytes | None] = lambda _: None,
    devices: Iterable[int] = (),
    deadline: float,
    background: bool = False,
) -> SaveHandle:
    """Starts one rank's part of a plan, copies it into slabs, and returns the handle that follows it.

    `maker_of` and `content_of` are those of `_stage.segments`; `inline` gives the content of a file byte for byte that
    is small enough to go with the call, else None. `devices` are the GPUs that tensors are on: their side streams wait
    for this thread's current streams. `deadline` is a time of `time.monotonic`. With `background` the copy goes on
    after the return.

    An error before everything is staged gives the save up, for all ranks.
    """
    start, sent = _start_request(plan, rank, inline)
    staging = Staging()
    handle = SaveHandle(where, plan, rank, staging)
    copies: dict[int, DeviceCopies] = {}
    try:
        parts = segments(plan, rank, maker_of, content_of, sent)
        for device in devices:
            copies[device] = DeviceCopies(device)
        handle._copies = copies
        handle._update(_call(where, "StartSave", start, pb.SaveStatus, deadline))
    except BaseException as error:
        handle._failure.is_told = True
        _give_up(handle, copies, error)
        raise
    handle._watch()

    def copy() -> None:
        try:
            if parts:
                expected = sum(part.length for part in parts)
                ranks, is_over = ranks_of_node(plan.world_size), handle.staged.done
                with _sessions.borrowed(where.slab_socket(), expected, ranks, is_over, deadline) as session:
                    for device in copies:
                        staging.notes = lock_pages(session, device)
                        break
                    stage(session, plan, parts, staging, deadline=deadline, copies=copies, locate=where.locate)
            handle._is_staged()
        except BaseException as error:
            handle._failure.is_told |= not background
            known = handle._error
            _give_up(handle, copies, error)
            if known is not None and isinstance(error, Error):
                # Why there was nothing left to copy for.
                raise known from error
            raise
        for each in copies.values():
            each.close()

    if background:
        threading.Thread(target=_quietly(copy), name=f"longshore-stage-{plan.step}", daemon=True).start()
    else:
        copy()
    return handle


def ranks_of_node(world_size: int) -> int:
    """How many processes of this node take part in a save: what launchers say, else all that may be here; 0 is unknown.

    They share the loader's memory, and what one has it keeps: without a number the first could leave the last nothing.
    """
    found = os.environ.get("LOCAL_WORLD_SIZE", "")
    if found.isdecimal():
        return min(int(found), world_size)
    return world_size if world_size <= NODE_RANKS_MAX else 0


def _quietly(copy: Callable[[], None]) -> Callable[[], None]:
    """In the background there is nobody to raise to: the futures have the error."""

    def run() -> None:
        try:
            copy()
        except Exception as error:  # noqa: BLE001 - told by the futures
            _log.info("staging in the background: %s", error)

    return run


def _give_up(handle: SaveHandle, copies: Mapping[int, DeviceCopies], error: BaseException) -> None:
    """Nothing of the save can become whole any more: tells the loader, and the futures."""
    for each in copies.values():
        each.close()
    # First, because the loader's answer would be that it was cancelled.
    if isinstance(error, Error):
        handle._fail(error)
    else:
        handle._fail(Internal(f"staging: {error!r}") if isinstance(error, Exception) else Cancelled("interrupted"))
    try:
        handle.cancel(timeout=5.0)
    except Error as failure:
        _log.info("giving the save up: %s", failure)


def _start_request(
    plan: pb.SavePlan, rank: int, inline: Callable[[str], bytes | None]
) -> tuple[pb.StartSaveRequest, set[int]]:
    request = pb.StartSaveRequest(plan=plan, rank=rank)
    sent: set[int] = set()
    left = INLINE_TOTAL_BYTES_MAX
    for index, file in enumerate(plan.files):
        if file.rank != rank or file.header or file.tensors or file.size_bytes > min(left, INLINE_BYTES_MAX):
            continue
        content = inline(file.name)
        if content is not None:
            request.inline.add(file=index, content=content)
            sent.add(index)
            left -= len(content)
    return request, sent


def _milliseconds(deadline: float) -> int:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Timeout("the save was not planned within the time given")
    return max(1, round(left * 1000))


def _check_choice(what: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise InvalidArgument(f"{what} is one of {', '.join(map(repr, choices))}, not {value!r}")


def _check_count(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise InvalidArgument(f"{what} is a whole number from 0 on, not {value!r}")
    return value


def _check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    found = dict(metadata or {})
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidArgument(f"metadata are texts by text, not {key!r}: {value!r}")
    return found
