"""Copies the files of a plan into slabs: several slabs at a time, several threads, and GPUs on their own streams.

The walk over a rank's bytes (`stage`) runs in one thread, which asks for slabs and seals them; `CopyPool` copies. While
one slab is copied the next one is asked for. A loader that is restarted meanwhile is waited for: slabs that are sealed
count, the others are copied again.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from longshore._device_copies import DeviceCopies
from longshore._errors import Cancelled, Error, Exhausted, Internal, Timeout, Unavailable
from longshore._proto import checkpoint_pb2 as pb
from longshore._slabs import Slab, SlabKey, SlabSession
from longshore._sources import BytesSource, CudaSource, HostSource, Source

_log = logging.getLogger("longshore")

#: Slabs that are being copied at a time, at most: one, and the next.
SLABS_AT_ONCE = 2
#: What a copy thread takes at a time.
COPY_BYTES = 4 << 20
THREADS_MAX = 8
#: How long the loader is asked to wait for a free slab before others of this process get a turn.
ACQUIRE_SECONDS = 0.2
RETRY_SECONDS = 0.1
#: A wait for a slab that is longer is told.
WAIT_TOLD_SECONDS = 10.0
_CURE = (
    "a process keeps its slabs between saves: call longshore.release_staging() in those that have saved and do not "
    "now, or give the loader more --checkpoint-memory"
)


@dataclass(frozen=True)
class Maker:
    """Gives the bytes of a tensor when their turn comes."""

    #: Answers None when another rank writes them, and this one only took part in producing them.
    make: Callable[[], Source | None]
    #: `make` has to be called on every rank that has one for the tensor, in the order of the plan.
    collective: bool = False


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of one file of a plan; segments come in the order of files and offsets."""

    file: int
    offset: int
    length: int
    maker: Maker


@dataclass
class Staging:
    """What `stage` does, as seen from other threads."""

    #: Bytes that are in sealed slabs.
    staged_bytes: int = 0
    #: Set to give up.
    cancelled: threading.Event = field(default_factory=threading.Event)
    #: Why, when the save has failed.
    failure: Error | None = None
    #: Everything is copied from host memory, or given to a GPU to copy.
    enqueued: threading.Event = field(default_factory=threading.Event)
    #: The caller may change tensors: nothing can be copied a second time.
    released: threading.Event = field(default_factory=threading.Event)
    #: What was not as it should be, and no reason to fail.
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    source: Source
    start: int
    length: int
    #: In the slab.
    offset: int


class _Filling:
    """A slab that is being filled."""

    def __init__(self, slab: Slab, done: queue.SimpleQueue[_Filling]) -> None:
        self.slab = slab
        self.parts: list[_Part] = []
        self.error: BaseException | None = None
        #: What no thread was asked to copy yet.
        self.batch: list[tuple[HostSource, int, int, int]] = []
        self.batch_bytes = 0
        #: GPUs that copy to it.
        self.devices: set[int] = set()
        #: Whether memory of the caller's is read by threads.
        self.reads_host = False
        self._done = done
        self._lock = threading.Lock()
        # One for the walk, which has not added all yet.
        self._open = 1

    def begin(self) -> None:
        """A copy is about to be asked for."""
        with self._lock:
            self._open += 1

    def end(self, error: BaseException | None = None) -> None:
        """A copy is over."""
        with self._lock:
            self.error = self.error or error
            self._open -= 1
            last = self._open == 0
        if last:
            self._done.put(self)


class CopyPool:
    """Threads that copy from host memory. They are daemons: the end of the process does not wait for them."""

    def __init__(self, threads: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[_Filling, Callable[[], object]]] = queue.SimpleQueue()
        self.pid = os.getpid()
        for index in range(threads):
            threading.Thread(target=self._run, name=f"longshore-copy-{index}", daemon=True).start()

    def submit(self, filling: _Filling, task: Callable[[], object]) -> None:
        """Runs a task for a slab."""
        filling.begin()
        self._tasks.put((filling, task))

    def _run(self) -> None:
        while True:
            filling, task = self._tasks.get()
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - told by the walk
                filling.end(error)
            else:
                filling.end()
            # What was copied must not live on in an idle thread.
            del filling, task


def copy_threads() -> int:
    """So many that they fill the memory's bandwidth, shared among the ranks of the node."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cpus = len(os.sched_getaffinity(0)) // max(1, int(ranks) if ranks.isdecimal() else 1)
    return max(1, min(THREADS_MAX, cpus))


_pool: CopyPool | None = None
_pool_lock = threading.Lock()


def copy_pool() -> CopyPool:
    """The pool of this process."""
    global _pool  # noqa: PLW0603 - one a process
    with _pool_lock:
        if _pool is None or _pool.pid != os.getpid():
            _pool = CopyPool(copy_threads())
        return _pool


def _after_fork_in_child() -> None:
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def segments(
    plan: pb.SavePlan,
    rank: int,
    maker_of: Callable[[int, pb.PlannedTensor], Maker | None],
    content_of: Callable[[str], Source],
    skip: Iterable[int] = (),
) -> list[Segment]:
    """The segments of a rank's files. `skip` are files that were sent with the start of the save.

    `maker_of` gives for a file's index and one of its tensors what makes its bytes; it is asked for the files of other
    ranks too, and answers None where this rank has nothing to do. `content_of` gives a file that is stored byte for
    byte, by its name.
    """
    found = []
    skipped = frozenset(skip)
    for index, file in enumerate(plan.files):
        mine = file.rank == rank
        if not file.header and not file.tensors:
            if mine and index not in skipped:
                found.append(Segment(index, 0, file.size_bytes, Maker(partial(content_of, file.name))))
            continue
        if mine:
            found.append(Segment(index, 0, len(file.header), Maker(partial(BytesSource, file.header))))
        for tensor in file.tensors:
            maker = maker_of(index, tensor)
            if mine and maker is None:
                raise Internal(f"the plan wants tensor {tensor.tensor.name!r} of rank {rank}, which does not have it")
            if maker is not None:
                found.append(Segment(index, tensor.offset_bytes, tensor.length_bytes, maker))
    return found


def stage(
    session: SlabSession,
    plan: pb.SavePlan,
    parts: Iterable[Segment],
    staging: Staging,
    *,
    deadline: float,
    copies: Mapping[int, DeviceCopies] | None = None,
    locate: Callable[[], str] | None = None,
) -> None:
    """Copies segments into slabs and seals them. On return everything is sealed.

    `copies` are the side streams of the GPUs that segments are on. `deadline` is a time of `time.monotonic`. `locate`
    gives the path of the slab socket after the loader was restarted, if it can change.

    Raises `Exhausted` when there is no room and the plan says not to wait, `Timeout` at the deadline, `Cancelled`, and
    what sources raise. Then nothing is being copied any more.
    """
    _Walk(session, plan, staging, deadline=deadline, copies=copies or {}, locate=locate).run(parts)


class _Walk:
    def __init__(
        self,
        session: SlabSession,
        plan: pb.SavePlan,
        staging: Staging,
        *,
        deadline: float,
        copies: Mapping[int, DeviceCopies],
        locate: Callable[[], str] | None,
    ) -> None:
        self._session = session
        self._plan = plan
        self._staging = staging
        self._copies = copies
        self._deadline = deadline
        self._locate = locate
        self._pool = copy_pool()
        self._done: queue.SimpleQueue[_Filling] = queue.SimpleQueue()
        self._in_flight = 0
        #: Of those in flight: with bytes from the caller's host memory.
        self._host_fillings = 0
        self._current: _Filling | None = None
        #: Filled, and void because the loader went away before they were sealed.
        self._lost: list[_Filling] = []
        #: Since when there was no slab for this, and what the loader said.
        self._short_since: float | None = None
        self._shortage: Error | None = None
        self._is_told = False

    def run(self, parts: Iterable[Segment]) -> None:
        remaining = iter(parts)
        try:
            for segment in remaining:
                source = segment.maker.make()
                if source is not None:
                    self._copy(segment, source)
                del source
            self._close()
            if self._host_fillings == 0:
                self._staging.enqueued.set()
            while self._in_flight or self._lost:
                self._reap_one()
            self._staging.enqueued.set()
        except BaseException as error:
            self._give_up()
            if isinstance(error, Exception):
                # The other ranks wait for this one where tensors are made together.
                for segment in remaining:
                    if segment.maker.collective:
                        segment.maker.make()
            raise

    def _copy(self, segment: Segment, source: Source) -> None:
        name = self._plan.files[segment.file].name
        if source.nbytes != segment.length:
            raise Internal(f"{source.nbytes} bytes for {segment.length} at {segment.offset} of {name}")
        position = 0
        while position < segment.length:
            index, offset = divmod(segment.offset + position, self._session.slab_bytes)
            filling = self._filling(SlabKey(self._plan.attempt, segment.file, index))
            length = min(segment.length - position, filling.slab.length - offset)
            if length <= 0:
                raise Internal(f"the loader gave slab {index} of {name} only {filling.slab.length} bytes")
            self._add(filling, _Part(source, position, length, offset))
            position += length

    # ---- slabs

    def _filling(self, key: SlabKey) -> _Filling:
        """The slab that is being filled, or the next one, as soon as not too many are being copied."""
        if self._current is None or self._current.slab.key != key:
            self._close()
            while True:
                while self._in_flight >= SLABS_AT_ONCE:
                    self._reap_one()
                self._current = self._open(key)
                if self._current is not None:
                    break
                if self._in_flight:
                    # A slab of our own may have to become free first: it has to be sealed for that.
                    self._reap_one()
        return self._current

    def _open(self, key: SlabKey) -> _Filling | None:
        """A slab; None when none is free now, or when the connection was lost and made anew."""
        self._check()
        refuse = self._plan.options.refuse_when_full
        wait = 0.0 if self._in_flight or refuse else ACQUIRE_SECONDS
        generation = self._session.generation
        try:
            slab = self._session.acquire(key, min(wait, max(0.0, self._deadline - time.monotonic())))
        except (Exhausted, Timeout) as error:
            if refuse and not self._in_flight:
                raise
            self._tell_shortage(error)
            return None
        except Unavailable:
            self._reconnect(generation)
            return None
        self._short_since, self._shortage = None, None
        self._in_flight += 1
        return _Filling(slab, self._done)

    def _close(self) -> None:
        """All parts of the slab are known."""
        filling = self._current
        if filling is not None:
            self._flush(filling)
            for device in filling.devices:
                self._pool.submit(filling, self._copies[device].mark().wait)
            # Not before: after an error it is `_give_up` that ends it.
            self._current = None
            filling.end()

    def _reap_one(self) -> None:
        """Waits for a slab's copies and seals it."""
        if self._in_flight:
            self._reap(self._done.get())
        if self._lost:
            self._copy_again()

    def _reap(self, filling: _Filling) -> None:
        self._in_flight -= 1
        self._host_fillings -= filling.reads_host
        slab = filling.slab
        if filling.error is not None:
            self._session.discard(slab)
            raise filling.error
        try:
            self._session.seal(slab)
        except Unavailable:
            self._lost.append(filling)
        else:
            self._count(filling)

    def _count(self, filling: _Filling) -> None:
        self._staging.staged_bytes += sum(part.length for part in filling.parts)

    def _give_up(self) -> None:
        """Waits for the copies that run, so that nothing is written to memory that others get."""
        filling, self._current = self._current, None
        if filling is not None:
            filling.batch.clear()
            filling.end()
        for copies in self._copies.values():
            copies.drain()
        while self._in_flight:
            ended = self._done.get()
            self._in_flight -= 1
            self._session.discard(ended.slab)

    # ---- copies

    def _add(self, filling: _Filling, part: _Part) -> None:
        filling.parts.append(part)
        if filling.slab.already_durable:
            return
        address, source = filling.slab.address + part.offset, part.source
        if isinstance(source, CudaSource):
            filling.devices.add(source.device)
            source.enqueue(self._copies[source.device], part.start, part.length, address)
            return
        host = cast(HostSource, source)
        if not filling.reads_host and not isinstance(source, BytesSource):
            filling.reads_host = True
            self._host_fillings += 1
        start, left = part.start, part.length
        while left:
            length = min(left, COPY_BYTES - filling.batch_bytes)
            filling.batch.append((host, start, length, address))
            filling.batch_bytes += length
            start, left, address = start + length, left - length, address + length
            if filling.batch_bytes == COPY_BYTES:
                self._flush(filling)

    def _flush(self, filling: _Filling) -> None:
        """Small parts are copied together: handing something to a thread costs some microseconds."""
        batch = filling.batch
        filling.batch, filling.batch_bytes = [], 0
        if batch:
            self._pool.submit(filling, lambda: _copy(batch))

    # ---- a loader that is restarted

    def _copy_again(self) -> None:
        """Fills again what the loader does not have."""
        while self._lost:
            self._reconnect(self._lost[0].slab.generation)
            lost, self._lost = self._lost, []
            for filling in lost:
                if self._session.is_sealed(filling.slab.key):
                    self._count(filling)
                    continue
                if self._staging.released.is_set():
                    raise Unavailable("the loader went away during the copy, and the tensors may have changed since")
                again = self._open(filling.slab.key)
                if again is None:
                    self._lost.append(filling)
                    continue
                self._current = again
                for part in filling.parts:
                    self._add(again, part)
                self._close()
                # One at a time: this is rare, and must not take more slabs than the walk.
                self._reap(self._done.get())

    def _reconnect(self, generation: int) -> None:
        """Waits for a loader to listen again. What is in flight is void by then."""
        while self._in_flight:
            self._reap(self._done.get())
        while self._session.generation == generation or not self._session.is_open:
            self._check()
            try:
                if self._locate is not None:
                    self._session.path = self._locate()
                self._session.reconnect(self._session.generation, min(5.0, self._deadline - time.monotonic()))
            except (Unavailable, Timeout):
                time.sleep(RETRY_SECONDS)

    def _check(self) -> None:
        if self._staging.cancelled.is_set():
            raise self._staging.failure or Cancelled("the save was cancelled")
        if time.monotonic() >= self._deadline:
            why = f": {self._shortage}; {_CURE}" if self._shortage is not None else ""
            raise Timeout(f"the save was not staged within the time given{why}")

    def _tell_shortage(self, error: Error) -> None:
        """Says once that there is no slab, when that takes long and none of this save's own is to become free."""
        self._shortage = error
        now = time.monotonic()
        if self._short_since is None or self._in_flight:
            self._short_since = now
        if not self._is_told and now - self._short_since >= WAIT_TOLD_SECONDS:
            self._is_told = True
            _log.warning("the save of step %d to %s waits for a slab: %s; %s",
                         self._plan.step, self._plan.uri, error, _CURE)  # fmt: skip


def _copy(batch: list[tuple[HostSource, int, int, int]]) -> None:
    for source, start, length, address in batch:
        source.copy(start, length, address)
