"""What a save tells while it goes on, and when it fails."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import grpc
import pytest
import torch
from fake_checkpoints import FakeCheckpoints
from fake_loader import RpcFailure
from fake_store import Attempt, Store
from save_support import RUN, in_threads, load, save

import longshore
from longshore._proto import checkpoint_pb2 as pb

pytest_plugins = ("save_fixtures",)


def test_futures_follow_the_loader(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(1000)})
    assert handle.staged.done()
    assert not handle.local_durable.done()
    assert handle.progress() < 1
    with pytest.raises(longshore.Timeout, match=r"not committed within 0\.05 s, the save goes on"):
        handle.result(0.05)
    (attempt,) = store.attempts.values()
    store.hold_at = pb.SAVE_STATE_LOCAL_DURABLE
    store.advance(attempt)
    assert handle.local_durable.result(10).state == "local_durable"
    assert handle.peer_durable.result(10)
    assert not handle.committed.done()
    store.hold_at = None
    store.advance(attempt)
    assert handle.result(10).state == "committed"
    assert "committed" in repr(handle)


def test_peer_durable_waits_for_peers(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_LOCAL_DURABLE
    handle = save(fake, {"w": torch.ones(10)}, peer_copies=1, wait="local_durable")
    (attempt,) = store.attempts.values()
    assert handle.peer_durable.result(10), "the fake says that it has them"
    store.hold_at = None
    store.advance(attempt)
    handle.result(10)


def test_a_failed_save(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(10)})
    (attempt,) = store.attempts.values()
    with store.changed:
        attempt.status.state = pb.SAVE_STATE_FAILED
        attempt.status.error_code, attempt.status.error_message = "permission_denied", "the bucket says no"
        store.changed.notify_all()
    with pytest.raises(longshore.PermissionDenied, match="the bucket says no"):
        handle.result(10)
    assert isinstance(handle.local_durable.exception(1), longshore.PermissionDenied)
    assert handle.staged.exception(1) is None
    assert handle.status.state == "failed"


def test_cancel(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(10)})
    assert not handle.committed.cancel(), "a future of it cannot be cancelled"
    assert handle.cancel().state == "cancelled"
    with pytest.raises(longshore.Cancelled):
        handle.result(10)
    store.hold_at = None
    done = save(fake, {"w": torch.ones(10)}, 2, wait="committed")
    assert done.cancel().state == "committed"


def test_a_failure_of_the_plan(fake: FakeCheckpoints) -> None:
    fake.failure = RpcFailure(grpc.StatusCode.FAILED_PRECONDITION, "step 1 is committed already", "failed_precondition")
    with pytest.raises(longshore.FailedPrecondition, match="committed already"):
        save(fake, {"w": torch.ones(10)})


# ---- what is told of it


def fail(store: Store, attempt: Attempt, code: str = "permission_denied", message: str = "the bucket says no") -> None:
    with store.changed:
        attempt.status.state = pb.SAVE_STATE_FAILED
        attempt.status.error_code, attempt.status.error_message = code, message
        store.changed.notify_all()


def failed_save(fake: FakeCheckpoints, store: Store, step: int = 1) -> None:
    """A save that fails after it was staged, and whose handle nobody keeps."""
    store.hold_at = pb.SAVE_STATE_STAGED
    attempt = store.attempts[save(fake, {"w": torch.ones(10)}, step).attempt]
    store.hold_at = None
    fail(store, attempt)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_status_after_staging_is_not_older_than_it(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    fake.is_mute = True
    handle = save(fake, {"w": torch.ones(1000)})
    assert "(staged" in repr(handle), "the loader has not said so"
    status = handle.status
    assert (status.state, status.bytes_staged) == ("staged", status.bytes_total)
    assert status.bytes_total > 4000
    assert (status.staged_seconds or 0) > 0
    assert handle.staged.result(0).state == "staged"


def test_the_status_is_asked_for_when_other_ranks_were_not_staged(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    fake.is_mute = True
    first, second = in_threads(
        *(lambda rank=rank: save(fake, {f"w{rank}": torch.ones(9)}, rank=rank, world_size=2) for rank in (0, 1))
    )
    others = [pb.RankStatus(rank=0), pb.RankStatus(rank=1)]
    for handle in (first, second):
        old = pb.SaveStatus(attempt=handle.attempt, step=1, state=pb.SAVE_STATE_STAGING, ranks=others)
        handle._update(old)
        assert handle._status.state == "staging", "as was heard of the other rank"
        fake.is_mute = False
        assert handle.status.state == "staged", "asked for anew"


def test_a_failure_shows_everywhere(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(10)})
    fail(store, store.attempts[handle.attempt])
    for future in (handle.local_durable, handle.peer_durable, handle.committed):
        with pytest.raises(longshore.PermissionDenied, match="says no"):
            future.result(10)
    with pytest.raises(longshore.PermissionDenied, match="says no"):
        handle.progress()
    assert (handle.status.state, handle.status.error) == ("failed", "the bucket says no")
    assert "failed" in repr(handle)


def test_a_failure_that_nobody_asks_for_is_told(
    fake: FakeCheckpoints, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log when the handle is dropped, and by the next save of the run, once."""
    failed_save(fake, store, 7)
    until(lambda: caplog.records)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "step 7 to s3://bucket/run failed: the bucket says no; nobody had asked" in caplog.text
    other = longshore.save({"w": torch.ones(1)}, "s3://bucket/other", step=8, address=fake.address)
    other.result(10)
    with pytest.warns(longshore.SaveFailedWarning, match=r"step 7 to s3://bucket/run failed: the bucket says no"):
        save(fake, {"w": torch.ones(1)}, 8, wait="committed")
    save(fake, {"w": torch.ones(1)}, 9, wait="committed")


def test_a_failure_that_was_asked_for_is_not_told_again(
    fake: FakeCheckpoints, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(10)}, 1)
    fail(store, store.attempts[handle.attempt])
    handle.committed.exception(10)
    handle = save(fake, {"w": torch.ones(10)}, 2)
    handle.cancel()
    with pytest.raises(longshore.NotFound):
        save(fake, {"w": torch.ones(3)}, 3, files={"x": "/absent"})
    del handle
    gc.collect()
    store.hold_at = None
    save(fake, {"w": torch.ones(10)}, 5, wait="committed")
    assert not caplog.records


def test_a_save_that_fails_while_it_is_copied_ends_the_copy(fake: FakeCheckpoints, store: Store) -> None:
    """As when the origin says that the step is committed already."""
    refused = threading.Event()

    def refuse(request: pb.SlabRequest) -> None:
        if request.HasField("acquire") and not refused.is_set():
            refused.set()
            fail(store, store.attempts[request.acquire.key.attempt], "failed_precondition", "is committed already")
            time.sleep(0.3)

    fake.slabs.on_request = refuse
    with pytest.raises(longshore.FailedPrecondition, match="is committed already"):
        save(fake, {"w": torch.randn(400, 1000)})


def test_a_step_that_was_seen_to_be_committed_is_refused_at_once(fake: FakeCheckpoints) -> None:
    first = save(fake, {"w": torch.ones(10)}, 4, wait="committed")
    with pytest.raises(longshore.FailedPrecondition, match=rf"step-4 is committed already, by attempt {first.attempt}"):
        save(fake, {"w": torch.ones(10)}, 4)
    assert len(fake.plans) == 1
    longshore.delete(RUN, 4, address=fake.address)
    save(fake, {"w": torch.ones(10)}, 4, wait="committed")


def test_reprs_are_short(fake: FakeCheckpoints) -> None:
    state = {"model": {f"tensor{index}": torch.ones(3) for index in range(500)}}
    handle = save(fake, state, wait="committed", files={"large.bin": bytes(1 << 20)})
    model = load(fake)
    found = longshore.latest(RUN, address=fake.address)
    assert found is not None
    assert f"{RUN}/step-1 (step 1, attempt {handle.attempt}, 500 tensors" in repr(found)
    shown = [found, found.tensors["tensor3"], handle, handle.status, model, *longshore.list(RUN, address=fake.address)]
    for each in shown:
        assert len(repr(each)) < 400, repr(each)
    assert "1.1 MB" in repr(found)
