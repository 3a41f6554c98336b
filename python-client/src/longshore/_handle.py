"""A save that goes on: what was acknowledged, how far it is, and how to give it up."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING

from longshore import _failures
from longshore._device_copies import DeviceCopies
from longshore._errors import Cancelled, Error, Internal, Timeout, Unavailable, from_code
from longshore._failures import Failure
from longshore._progress import format_bytes
from longshore._proto import checkpoint_pb2 as pb
from longshore._save_status import ORDER, SaveStatus, state_of, status_of
from longshore._service import Service
from longshore._stage import Staging

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("longshore")

#: How long a loader that went away is waited for.
RECONNECT_SECONDS = 600.0
RETRY_SECONDS_MAX = 2.0
#: How long the loader may take to say how far a save is, when what it said last is known to be old.
FRESH_SECONDS = 1.0


class SaveFuture(Future[SaveStatus]):
    """Resolved in the background. Notes whether somebody was given the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self._failure = failure
        # `Future.cancel` would only stop this process from hearing: `SaveHandle.cancel` is what gives the save up.
        self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> SaveStatus:
        try:
            return super().result(timeout)
        except Error:
            self._failure.is_told = True
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = super().exception(timeout)
        if error is not None:
            self._failure.is_told = True
        return error


class SaveHandle:
    """A save, from `longshore.save`.

    `staged`, `local_durable`, `peer_durable` and `committed` are futures of a `SaveStatus`, resolved in the background:

    * `staged`: this rank's bytes are copied. The tensors may change.
    * `local_durable`: they are on this node's disk, synced. The end of any process here loses nothing.
    * `peer_durable`: as many other nodes as `peer_copies` asked for hold them; with 0, the same as `local_durable`.
    * `committed`: the whole checkpoint, of all ranks, is in the origin, and visible.

    When the save fails, those that are not resolved raise the error, and so does `progress`; `status` has it. When
    nobody asks any of them, the failure is logged as this object is dropped, and the next save of the run warns of it
    (`SaveFailedWarning`). The save does not end with this object, nor with this process: what is staged is the
    loader's to finish.
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
        self._failure = Failure(plan.uri, plan.step)
        self.staged: Future[SaveStatus] = SaveFuture(self._failure)
        self.local_durable: Future[SaveStatus] = SaveFuture(self._failure)
        self.peer_durable: Future[SaveStatus] = SaveFuture(self._failure)
        self.committed: Future[SaveStatus] = SaveFuture(self._failure)
        self._service = service
        self._peer_copies = plan.options.peer_copies
        self._staging = staging
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        #: All bytes of this rank are copied and sealed, whatever the loader has said.
        self._is_copied = False
        self._copied_seconds: float | None = None
        self._heard = pb.SaveStatus(attempt=plan.attempt, step=plan.step, state=pb.SAVE_STATE_STAGING)
        self._status = status_of(self._heard, "staging", [])
        self._ended = False
        self._error: Error | None = None
        #: The side streams of GPUs that are copied from.
        self._copies: Mapping[int, DeviceCopies] = {}
        weakref.finalize(self, self._failure.dropped)

    def __repr__(self) -> str:
        with self._lock:
            status = self._status
        size = f", {format_bytes(status.bytes_total)}" if status.bytes_total else ""
        return f"<longshore.SaveHandle {self.uri} step {self.step} ({status.state}{size}, attempt {self.attempt})>"

    @property
    def status(self) -> SaveStatus:
        """How far the save is: the last that was heard, and after the end of staging nothing from before it."""
        with self._lock:
            is_old = self._is_copied and self._status.state == "staging"
        if is_old:
            self._fetch()
        with self._lock:
            if self._status.error:
                self._failure.is_told = True
            return self._status

    @property
    def url(self) -> str:
        """Of the checkpoint, once it is committed."""
        with self._lock:
            return self._status.url

    def progress(self) -> float:
        """The part of this node's bytes that is in the origin, from 0 to 1; 1 only when the save is committed.

        Raises why the save has failed, if it has.
        """
        with self._lock:
            status, error = self._status, self._error
        if error is not None:
            self._failure.is_told = True
            raise error
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
            with self._lock:
                waiting = self._status.waiting_for
            raise Timeout(
                f"save of {self.uri} step {self.step}: not {stage} within {timeout} s, the save goes on"
                + (f"; it waits for {waiting}" if waiting else "")
            ) from error

    def cancel(self, timeout: float | None = 60.0) -> SaveStatus:
        """Gives the save up, for all ranks: nothing of it becomes visible.

        Nothing happens when it is committed already. The futures that are not resolved raise `Cancelled`.
        """
        # Who ends it knows.
        self._failure.is_told = True
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

    def _update(self, message: pb.SaveStatus, *, is_asked_for: bool = False) -> bool:
        """Takes a status in; whether it is the last one. One that was asked for may be older than what was heard."""
        mine = next((each for each in message.ranks if each.rank == self.rank), None)
        with self._lock:
            if self._ended:
                return True
            state = self._state_of(message)
            reached = ORDER.index(state) if state in ORDER else len(ORDER)
            if is_asked_for and reached < ORDER.index(self._status.state):
                return False
            self._heard = message
            status = self._status = self._told(state)
            durable = reached in {2, 3} or (mine is not None and mine.local_durable)
            peer = durable if self._peer_copies == 0 else mine is not None and mine.peer_durable
            is_staged = reached in {1, 2, 3} or durable or (mine is not None and mine.staged)
            done = [
                (self.staged, is_staged),
                (self.local_durable, durable),
                (self.peer_durable, peer or state == "committed"),
                (self.committed, state == "committed"),
            ]
            self._ended = state in {"committed", "failed", "cancelled"}
        if state == "committed":
            _failures.add_committed(self.uri, self.step)
        for future, is_done in done:
            if is_done:
                _resolve(future, status)
        if state == "failed":
            self._fail(from_code(message.error_code, message.error_message or "the save failed"))
        elif state == "cancelled":
            self._fail(Cancelled(f"save of {self.uri} step {self.step} was cancelled"))
        return self._ended

    def _state_of(self, message: pb.SaveStatus) -> str:
        state = state_of(message)
        # As the loader will say: this rank's bytes are sealed, which it may not have shown yet.
        others = (each.staged for each in message.ranks if each.rank != self.rank)
        return "staged" if state == "staging" and self._is_copied and all(others) else state

    def _told(self, state: str) -> SaveStatus:
        """What was heard, and what this process knows better."""
        status = status_of(self._heard, state, self._staging.notes)
        if state != "staged" or self._heard.state != pb.SAVE_STATE_STAGING:
            return status
        return dataclasses.replace(status, bytes_staged=status.bytes_total, staged_seconds=self._copied_seconds)

    def _is_staged(self) -> None:
        """All of this rank's bytes are copied and sealed. Raises why the save has failed meanwhile, if it has."""
        with self._lock:
            if not self._ended:
                self._is_copied = True
                self._copied_seconds = time.monotonic() - self._begun
                state = self._status.state
                if state == "staging":
                    self._status = self._told(self._state_of(self._heard))
            status, error = self._status, self._error
        if error is not None:
            raise error
        _resolve(self.staged, status)

    def _fail(self, error: Error) -> None:
        with self._lock:
            if self._status.state == "committed":
                return
            self._ended = True
            self._error = self._error or error
            self._failure.set(str(error))
            state = "cancelled" if isinstance(error, Cancelled) else "failed"
            self._status = dataclasses.replace(self._status, state=state, error=str(error))
        # There is nothing left to copy for.
        self._staging.failure = error
        self._staging.cancelled.set()
        for future in (self.staged, self.local_durable, self.peer_durable, self.committed):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)

    def _fetch(self) -> None:
        """Asks the loader how far the save is. Never raises: the watch tells what is wrong."""
        request = pb.WatchSaveRequest(attempt=self.attempt)
        try:
            with contextlib.closing(
                self._service.stream("WatchSave", request, pb.SaveStatus, FRESH_SECONDS)
            ) as messages:
                self._update(next(messages), is_asked_for=True)
        except (Error, StopIteration) as error:
            _log.info("save of %s step %d: asking how far it is: %s", self.uri, self.step, error)

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


def _resolve(future: Future[SaveStatus], status: SaveStatus) -> None:
    # The staging and the watch may both be the first to know.
    with contextlib.suppress(InvalidStateError):
        future.set_result(status)
