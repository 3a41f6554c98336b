"""A save that goes on: what was acknowledged, how far it is, and how to give it up."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longshore._device_copies import DeviceCopies
from longshore._errors import Cancelled, Error, Internal, Timeout, Unavailable, from_code
from longshore._proto import checkpoint_pb2 as pb
from longshore._service import Service
from longshore._stage import Staging

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("longshore")

#: How long a loader that went away is waited for.
RECONNECT_SECONDS = 600.0
RETRY_SECONDS_MAX = 2.0

_STATES = {
    pb.SAVE_STATE_STAGING: "staging",
    pb.SAVE_STATE_STAGED: "staged",
    pb.SAVE_STATE_LOCAL_DURABLE: "local_durable",
    pb.SAVE_STATE_COMMITTED: "committed",
    pb.SAVE_STATE_FAILED: "failed",
    pb.SAVE_STATE_CANCELLED: "cancelled",
}
_ORDER = ("staging", "staged", "local_durable", "committed")


@dataclass(frozen=True)
class SaveStatus:
    """How far a save is. Bytes and seconds are those of the ranks of this node, seconds since the start of the save."""

    #: ``staging``, ``staged``, ``local_durable``, ``committed``, ``failed`` or ``cancelled``.
    state: str
    step: int
    #: Of the checkpoint.
    url: str
    attempt: str
    bytes_total: int
    bytes_staged: int
    bytes_durable: int
    bytes_peer: int
    bytes_uploaded: int
    #: Not written, because the parent of a delta has them.
    bytes_unchanged: int
    #: None when it was not reached yet.
    staged_seconds: float | None
    local_durable_seconds: float | None
    peer_durable_seconds: float | None
    committed_seconds: float | None
    retries: int
    #: What was not the first choice.
    notes: tuple[str, ...]
    #: What it waits for at present, in words; empty when for nothing.
    waiting_for: str


class SaveHandle:
    """A save, from `longshore.save`.

    `staged`, `local_durable`, `peer_durable` and `committed` are futures of a `SaveStatus`, resolved in the background:

    * `staged`: this rank's bytes are copied. The tensors may change.
    * `local_durable`: they are on this node's disk, synced. The end of any process here loses nothing.
    * `peer_durable`: as many other nodes as `peer_copies` asked for hold them; with 0, the same as `local_durable`.
    * `committed`: the whole checkpoint, of all ranks, is in the origin, and visible.

    When the save fails, those that are not resolved raise the error. It does not end with this object, nor with this
    process: what is staged is the loader's to finish.
    """

    def __init__(
        self,
        service: Service,
        plan: pb.SavePlan,
        rank: int,
        staging: Staging,
    ) -> None:
        self.uri: str = plan.uri
        self.step: int = plan.step
        #: Names this attempt to save the step.
        self.attempt: str = plan.attempt
        self.rank: int = rank
        self.world_size: int = plan.world_size
        self.staged: Future[SaveStatus] = _future()
        self.local_durable: Future[SaveStatus] = _future()
        self.peer_durable: Future[SaveStatus] = _future()
        self.committed: Future[SaveStatus] = _future()
        self._service = service
        self._peer_copies = plan.options.peer_copies
        self._staging = staging
        self._lock = threading.Lock()
        self._status = SaveStatus(
            "staging", plan.step, "", plan.attempt, 0, 0, 0, 0, 0, 0, None, None, None, None, 0, (), ""
        )
        self._ended = False
        #: The side streams of GPUs that are copied from.
        self._copies: Mapping[int, DeviceCopies] = {}

    def __repr__(self) -> str:
        return f"<longshore.SaveHandle {self.uri} step {self.step} ({self.status.state})>"

    @property
    def status(self) -> SaveStatus:
        """The last that was heard."""
        with self._lock:
            return self._status

    @property
    def url(self) -> str:
        """Of the checkpoint, once it is committed."""
        return self.status.url

    def progress(self) -> float:
        """The part of this node's bytes that is in the origin, from 0 to 1; 1 only when the save is committed."""
        status = self.status
        if status.state == "committed":
            return 1.0
        done = status.bytes_uploaded + status.bytes_unchanged
        return min(done / status.bytes_total, 0.999) if status.bytes_total else 0.0

    def result(self, timeout: float | None = None) -> SaveStatus:
        """Waits until the checkpoint is committed. Raises why it is not, or `Timeout`; the save goes on then."""
        return self.wait("committed", timeout)

    def wait(self, stage: str, timeout: float | None = None) -> SaveStatus:
        """Waits for ``staged``, ``local_durable``, ``peer_durable`` or ``committed``."""
        future: Future[SaveStatus] = getattr(self, stage)
        try:
            return future.result(timeout)
        except Error:
            raise
        except TimeoutError as error:
            waiting = self.status.waiting_for
            raise Timeout(
                f"save of {self.uri} step {self.step}: not {stage} within {timeout} s, the save goes on"
                + (f"; it waits for {waiting}" if waiting else "")
            ) from error

    def cancel(self, timeout: float | None = 60.0) -> SaveStatus:
        """Gives the save up, for all ranks: nothing of it becomes visible.

        Nothing happens when it is committed already. The futures that are not resolved raise `Cancelled`.
        """
        self._staging.cancelled.set()
        request = pb.CancelSaveRequest(attempt=self.attempt)
        status: pb.SaveStatus = self._service.call("CancelSave", request, pb.SaveStatus, timeout)
        self._update(status)
        return self.status

    def wait_on_stream(self, stream: torch.cuda.Stream | None = None) -> None:
        """Makes a CUDA stream (the current one) wait for this save's copies, without stopping this thread for them.

        For ``wait=None``: kernels that are launched on that stream afterwards, the optimizer's step for instance, may
        change the tensors. Blocks until all copies are given to the GPU, which needs room in the slabs, and until what
        is copied from host memory is copied.
        """
        while not self._staging.enqueued.wait(0.05) and not self.staged.done():
            pass
        # From here on nothing may be copied a second time.
        self._staging.released.set()
        if self.staged.done():
            # Raises when there is nothing to rely on.
            self.staged.result()
            return
        for copies in self._copies.values():
            copies.make_wait(None if stream is None else stream.cuda_stream)

    # ---- what the watch and the staging tell

    def _update(self, message: pb.SaveStatus) -> bool:
        """Takes a status in; whether it is the last one."""
        state = _STATES.get(message.state, "staging")
        mine = next((each for each in message.ranks if each.rank == self.rank), None)
        reached = _ORDER.index(state) if state in _ORDER else -1
        with self._lock:
            if self._ended:
                return True
            status = self._status = _status(message, state, self._staging.notes)
            durable = reached >= 2 or (mine is not None and mine.local_durable)
            peer = durable if self._peer_copies == 0 else mine is not None and mine.peer_durable
            done = [
                (self.staged, reached >= 1 or durable or (mine is not None and mine.staged)),
                (self.local_durable, durable),
                (self.peer_durable, peer or state == "committed"),
                (self.committed, state == "committed"),
            ]
            self._ended = state in {"committed", "failed", "cancelled"}
        for future, is_done in done:
            if is_done:
                _resolve(future, status)
        if state == "failed":
            self._fail(from_code(message.error_code, message.error_message or "the save failed"))
        elif state == "cancelled":
            self._fail(Cancelled(f"save of {self.uri} step {self.step} was cancelled"))
        return self._ended

    def _is_staged(self) -> None:
        """All of this rank's bytes are copied and sealed."""
        with self._lock:
            status = self._status
        _resolve(self.staged, status)

    def _fail(self, error: Error) -> None:
        with self._lock:
            self._ended = True
        for future in (self.staged, self.local_durable, self.peer_durable, self.committed):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)

    def _watch(self) -> None:
        """Starts the thread that follows the save; the process does not wait for it at its end."""
        threading.Thread(target=self._follow, name=f"longshore-save-{self.step}", daemon=True).start()

    def _follow(self) -> None:
        """Reads the stream; a loader that is restarted is asked again."""
        request = pb.WatchSaveRequest(attempt=self.attempt)
        lost_at: float | None = None
        pause = 0.05
        while not self._ended:
            try:
                for message in self._service.stream("WatchSave", request, pb.SaveStatus):
                    lost_at, pause = None, 0.05
                    if self._update(message):
                        return
                error: Error = Unavailable("WatchSave: the loader ended the call")
            except (Unavailable, Cancelled, Timeout) as failure:
                error = failure
            except Error as failure:
                self._fail(failure)
                return
            except Exception as failure:  # noqa: BLE001 - nobody else would resolve the futures
                self._fail(Internal(f"following the save: {failure!r}"))
                return
            if sys.is_finalizing():
                return
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > RECONNECT_SECONDS:
                self._fail(error)
                return
            time.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)
            try:
                self._service.reopen()
            except Error as failure:
                _log.info("save of %s step %d: %s", self.uri, self.step, failure)


def _future() -> Future[SaveStatus]:
    future: Future[SaveStatus] = Future()
    # `Future.cancel` would only stop this process from hearing: `SaveHandle.cancel` is what gives the save up.
    future.set_running_or_notify_cancel()
    return future


def _resolve(future: Future[SaveStatus], status: SaveStatus) -> None:
    # The staging and the watch may both be the first to know.
    with contextlib.suppress(InvalidStateError):
        future.set_result(status)


def _status(message: pb.SaveStatus, state: str, notes: list[str]) -> SaveStatus:
    return SaveStatus(
        state=state,
        step=message.step,
        url=message.url,
        attempt=message.attempt,
        bytes_total=message.bytes_total,
        bytes_staged=message.bytes_staged,
        bytes_durable=message.bytes_durable,
        bytes_peer=message.bytes_peer,
        bytes_uploaded=message.bytes_uploaded,
        bytes_unchanged=message.bytes_unchanged,
        staged_seconds=message.staged_seconds or None,
        local_durable_seconds=message.local_durable_seconds or None,
        peer_durable_seconds=message.peer_durable_seconds or None,
        committed_seconds=message.committed_seconds or None,
        retries=message.retries,
        notes=(*message.notes, *notes),
        waiting_for=message.waiting_for,
    )
