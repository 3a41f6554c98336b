"""Slabs: room that is shared, waited for and given back; and loaders that go away."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from fake_checkpoints import FakeCheckpoints
from fake_store import Store
from save_support import equal, in_threads, load, save

import longshore
from longshore import _handle, _sessions, _stage
from longshore._proto import checkpoint_pb2 as pb

pytest_plugins = ("save_fixtures",)


def test_memory_is_mapped_once_and_slabs_wait_for_room(fake: FakeCheckpoints, store: Store) -> None:
    for step in range(1, 4):
        save(fake, {"w": torch.randn(200, 1000)}, step, wait="committed")
    assert len(store.sessions) == 1
    assert len(fake.slabs.expected) == 1, "one hello"
    (session,) = _sessions._sessions.values()
    assert len(session.pieces) <= 2
    assert session._writers == 0


def test_no_room_is_refused_or_waited_for(fake: FakeCheckpoints, store: Store) -> None:
    store.pieces_max = 0
    with pytest.raises(longshore.Exhausted, match="no slab is free"):
        save(fake, {"w": torch.ones(10)}, when_full="refuse")
    assert len(fake.cancelled) == 1
    with pytest.raises(longshore.Timeout, match="not staged within the time given"):
        save(fake, {"w": torch.ones(10)}, 2, timeout=0.5)

    def room() -> None:
        time.sleep(0.3)
        store.pieces_max = 1

    handles = in_threads(lambda: save(fake, {"w": torch.ones(100_000)}, 3), room)
    assert handles[0].result(10).state == "committed"


def test_saves_at_the_same_time_share_the_memory(fake: FakeCheckpoints) -> None:
    state = {"w": torch.randn(100, 1000)}
    handles = in_threads(*(lambda step=step: save(fake, state, step) for step in range(1, 6)))
    for handle in handles:
        handle.result(20)
        assert torch.equal(load(fake, handle.step)["w"], state["w"])


def test_in_the_background(fake: FakeCheckpoints, store: Store) -> None:
    gate = threading.Event()
    fake.slabs.on_request = lambda request: gate.wait(20) if request.HasField("acquire") else None
    state = {"w": torch.randn(100, 1000)}
    handle = save(fake, state, wait=None)
    assert not handle.staged.done()
    gate.set()
    handle.wait_on_stream()
    assert handle.staged.result(20)
    state["w"].zero_()
    assert handle.result(20)
    assert load(fake)["w"].any()


def test_cancel_in_the_background(fake: FakeCheckpoints, store: Store) -> None:
    store.pieces_max = 0
    handle = save(fake, {"w": torch.randn(100, 1000)}, wait=None)
    handle.cancel()
    for future in (handle.staged, handle.committed):
        with pytest.raises(longshore.Cancelled):
            future.result(10)
    with pytest.raises(longshore.Cancelled):
        handle.wait_on_stream()


# ---- a loader that goes away


@pytest.mark.parametrize("at", ["acquire", "seal", "sealed"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_loader_that_is_restarted_in_mid_save(fake: FakeCheckpoints, store: Store, at: str, number: int) -> None:
    count = 0
    state = {"w": torch.randn(200, 1000), "b": torch.arange(10)}
    real_seal = store.seal

    def restart() -> None:
        fake.restarted(fake.restart())

    def hit(kind: str) -> None:
        nonlocal count
        if kind == at:
            count += 1
            if count == number:
                threading.Thread(target=restart).start()
                raise ConnectionError

    def on_slab(request: pb.SlabRequest) -> None:
        hit(str(request.WhichOneof("request")))

    def seal(session: Any, slab: int) -> None:
        hit("sealed")
        real_seal(session, slab)

    fake.slabs.on_request = on_slab
    store.seal = seal  # type: ignore[method-assign]
    handle = save(fake, state, wait="committed")
    assert count >= number
    assert handle.status.state == "committed"
    assert equal(load(fake).state_dict(), state)
    (session,) = _sessions._sessions.values()
    assert session._writers == 0
    assert session.generation >= 2


def test_a_connection_that_breaks_often(fake: FakeCheckpoints, store: Store) -> None:
    requests = 0

    def on_slab(request: pb.SlabRequest) -> None:
        nonlocal requests
        requests += 1
        if requests % 5 == 0:
            raise ConnectionError

    fake.slabs.on_request = on_slab
    state = {"w": torch.randn(300, 1000)}
    save(fake, state, wait="committed")
    assert equal(load(fake).state_dict(), state)


def test_what_may_have_changed_is_not_copied_again(fake: FakeCheckpoints) -> None:
    """After `wait_on_stream` the tensors are the caller's again."""
    gate = threading.Event()

    def on_slab(request: pb.SlabRequest) -> None:
        if request.HasField("seal"):
            gate.wait(20)
            raise ConnectionError

    fake.slabs.on_request = on_slab
    handle = save(fake, {"w": torch.ones(10)}, wait=None)
    handle._staging.released.set()
    gate.set()
    with pytest.raises(longshore.Unavailable, match="may have changed since"):
        handle.result(20)


def test_the_watch_survives_a_restart(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(10)})
    fake.restarted(fake.restart())
    store.hold_at = None
    (attempt,) = store.attempts.values()
    store.advance(attempt)
    assert handle.result(20).state == "committed"


def test_a_loader_that_does_not_come_back(fake: FakeCheckpoints, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handle, "RECONNECT_SECONDS", 0.3)
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(10)})
    fake.close()
    with pytest.raises(longshore.Unavailable):
        handle.result(20)
    fake.restarted(FakeCheckpoints(store))


def test_a_loader_that_forgot_the_save(fake: FakeCheckpoints, store: Store) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    handle = save(fake, {"w": torch.ones(10)})
    store.attempts.clear()
    fake.restarted(fake.restart())
    with pytest.raises(longshore.NotFound, match="no save"):
        handle.result(20)


# ---- memory that is given back


def test_staging_memory_is_given_back_when_no_save_uses_it(fake: FakeCheckpoints, store: Store) -> None:
    state = {"w": torch.randn(200, 1000)}
    gate = threading.Event()
    fake.slabs.on_request = lambda request: gate.wait(20) if request.HasField("acquire") else None
    handle = save(fake, state, 1, wait=None)
    longshore.release_staging()
    (session,) = _sessions._sessions.values()
    assert len(session.saves) == 1, "a save is using it"
    gate.set()
    handle.result(20)
    longshore.release_staging()
    assert not _sessions._sessions
    assert not session.is_open
    assert not session.pieces
    save(fake, state, 2, wait="committed")
    assert len(store.sessions) == 2


def test_a_save_that_is_over_is_waited_for(fake: FakeCheckpoints, store: Store) -> None:
    """Its last slab is sealed, which the loader has told already; the thread that copied is a step behind."""
    held, go_on = threading.Event(), threading.Event()
    save(fake, {"w": torch.ones(5)}, 1, wait="committed")
    ((path, session),) = _sessions._sessions.items()

    def use() -> None:
        with _sessions.borrowed(path, is_over=asked):
            held.set()
            go_on.wait(20)

    def asked() -> bool:
        go_on.set()
        return True

    thread = threading.Thread(target=use)
    thread.start()
    assert held.wait(20)
    longshore.release_staging()
    assert not session.is_open
    assert not _sessions._sessions
    thread.join(20)


def test_a_save_that_does_not_let_go_is_told(
    fake: FakeCheckpoints, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_sessions, "LET_GO_SECONDS", 0.01)
    save(fake, {"w": torch.ones(5)}, 1, wait="committed")
    ((path, session),) = _sessions._sessions.items()
    with _sessions.borrowed(path, is_over=lambda: True):
        longshore.release_staging()
        assert session.is_open
    assert "is not given back" in caplog.text
    longshore.release_staging()
    assert not session.is_open


def test_staging_memory_is_given_back_after_every_save(fake: FakeCheckpoints, store: Store) -> None:
    longshore.release_staging(after_saves=True)
    try:
        for step in (1, 2):
            save(fake, {"w": torch.randn(200, 1000)}, step)
            assert not _sessions._sessions
    finally:
        longshore.release_staging(after_saves=False)
    save(fake, {"w": torch.randn(200, 1000)}, 3)
    assert _sessions._sessions


def test_a_session_is_handed_over(fake: FakeCheckpoints, store: Store) -> None:
    """As to the process that `async_save` starts: it goes on with the memory, instead of waiting for it."""
    state = {"w": torch.randn(200, 1000)}
    save(fake, state, 1, wait="committed")
    given = _sessions.hand_over()
    assert list(given.values()) == list(store.sessions)
    _sessions.adopt(given)
    save(fake, state, 2, wait="committed")
    assert len(store.sessions) == 1
    assert equal(load(fake, 2).state_dict(), state)


def test_a_session_that_nobody_has_is_begun_anew(fake: FakeCheckpoints, store: Store) -> None:
    save(fake, {"w": torch.ones(5)}, 1, wait="committed")
    (path,) = _sessions.hand_over()
    store.missing.add("gone")
    _sessions.adopt({path: "gone"})
    save(fake, {"w": torch.ones(5)}, 2, wait="committed")


def test_a_time_out_for_lack_of_slabs_names_the_cure(
    fake: FakeCheckpoints, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_stage, "WAIT_TOLD_SECONDS", 0.1)
    store.pieces_max = 0
    with pytest.raises(
        longshore.Timeout, match=r"no slab is free; .*longshore\.release_staging\(\).*checkpoint-memory"
    ):
        save(fake, {"w": torch.ones(10)}, timeout=0.8)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "waits for a slab: no slab is free" in caplog.text
