"""What a save tells while it goes on, and when it fails."""

from __future__ import annotations

import grpc
import pytest
import torch
from fake_checkpoints import FakeCheckpoints
from fake_loader import RpcFailure
from fake_store import Store
from save_support import save

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
