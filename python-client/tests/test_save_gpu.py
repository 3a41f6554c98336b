"""Saving from a GPU: the fake driver's, whose memory is host memory to torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_checkpoints import FakeCheckpoints
from fake_store import Store
from gpu_support import DeviceTensors, FakeCuda
from save_support import equal, forget, load, save

import longshore
from longshore import _inputs, _sessions
from longshore._device_copies import DeviceCopies
from longshore._proto import checkpoint_pb2 as pb

pytestmark = pytest.mark.gpu


@pytest.fixture
def devices(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DeviceTensors]]:
    found = [DeviceTensors(0), DeviceTensors(1)]

    def device_of(tensor: Any) -> int | None:
        return next((index for index, memory in enumerate(found) if memory.has(tensor)), None)

    def gather(_: DeviceCopies, piece: torch.Tensor) -> torch.Tensor:
        return found[0].tensor(piece.contiguous())

    monkeypatch.setattr(_inputs, "cuda_device", device_of)
    # torch would do it on the side stream, and needs a card for that.
    monkeypatch.setattr(DeviceCopies, "gather", gather)
    yield found
    for memory in found:
        memory.free()


@pytest.fixture
def store() -> Iterator[Store]:
    # Only memory can be page-locked.
    made = Store(slab_bytes=256 << 10, folder="/dev/shm")
    yield made
    made.close()


@pytest.fixture
def fake(store: Store) -> Iterator[FakeCheckpoints]:
    with FakeCheckpoints(store) as made:
        yield made
    forget()


def test_tensors_of_two_devices_and_of_the_host(
    fake: FakeCheckpoints, cuda: FakeCuda, devices: list[DeviceTensors], store: Store
) -> None:
    first, second = devices
    base = first.tensor(torch.randn(500, 600))
    state = {
        "large": base,
        "rows": base[:, 100:300],
        "every other row": base[::2],
        "transposed": base.T,
        "second": second.tensor(torch.arange(70_000, dtype=torch.int16)),
        "host": torch.randn(300, 300),
        "odd": first.tensor(torch.arange(13, dtype=torch.uint8)),
        "scalar": first.tensor(torch.tensor([2.5]))[0],
        "after odd": first.tensor(torch.randn(1001, dtype=torch.float64)),
    }
    before = cuda.calls()
    for step in (1, 2):
        handle = save(fake, state, step, wait="committed")
        assert handle.status.notes == ()
        assert equal(load(fake, step).state_dict(), state)
    calls = {name: count - before.get(name, 0) for name, count in cuda.calls().items()}
    (session,) = _sessions._sessions.values()
    assert calls["cuMemHostRegister_v2"] == len(session.pieces), (
        "once a piece, whatever the number of saves and devices"
    )
    assert calls["cuMemcpy2DAsync_v2"] > 0
    assert calls["cuMemcpyDtoHAsync_v2"] > 0
    assert calls["cuStreamWaitEvent"] >= 4, "each side stream waits for the caller's"
    usage = cuda.usage()
    assert "streams" not in usage
    assert "events" not in usage
    assert usage["registrations"] == len(session.pieces)
    assert usage["registered_bytes"] == sum(piece.length for piece in session.pieces)
    del session
    forget()
    assert "registrations" not in cuda.usage()


def test_memory_that_cannot_be_page_locked_is_used_all_the_same(
    fake: FakeCheckpoints, cuda: FakeCuda, devices: list[DeviceTensors]
) -> None:
    state = {"w": devices[0].tensor(torch.randn(100, 100))}
    cuda.arm(f"client/cuMemHostRegister_v2@{cuda.calls().get('cuMemHostRegister_v2', 0) + 1}=2")
    handle = save(fake, state, wait="committed")
    assert len(handle.status.notes) == 1
    assert "not page-locked" in handle.status.notes[0]
    assert equal(load(fake).state_dict(), state)


@pytest.mark.parametrize(
    ("name", "nth"),
    # There is one stream.
    [("cuStreamCreate", 1)]
    + [(name, nth) for name in ("cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuEventSynchronize") for nth in (1, 2)],
)
def test_a_card_that_fails_ends_the_save(
    fake: FakeCheckpoints, cuda: FakeCuda, devices: list[DeviceTensors], name: str, nth: int
) -> None:
    state = {"w": devices[0].tensor(torch.randn(700, 1000))}
    cuda.arm(f"client/{name}@{cuda.calls().get(name, 0) + nth}=2")
    with pytest.raises(longshore.Exhausted, match=name):
        save(fake, state)
    assert len(fake.cancelled) == 1
    assert "streams" not in cuda.usage()
    assert "events" not in cuda.usage()
    (session,) = _sessions._sessions.values() if _sessions._sessions else [None]
    assert session is None or session._writers == 0
    assert save(fake, state, 2, wait="committed")
    assert equal(load(fake, 2).state_dict(), state)


def test_in_the_background(fake: FakeCheckpoints, cuda: FakeCuda, devices: list[DeviceTensors], store: Store) -> None:
    state = {"w": devices[0].tensor(torch.randn(100, 1000))}
    wanted = state["w"].clone()
    gate = threading.Event()
    fake.slabs.on_request = lambda request: gate.wait(20) if request.HasField("seal") else None
    before = cuda.calls().get("cuStreamWaitEvent", 0)
    handle = save(fake, state, wait=None)
    handle.wait_on_stream()
    assert not handle.staged.done(), "the copies are given to the card, and no thread waited for them"
    assert cuda.calls()["cuStreamWaitEvent"] == before + 2, "the caller's stream waits for the copies"
    gate.set()
    handle.result(20)
    assert torch.equal(load(fake)["w"], wanted)
    assert "streams" not in cuda.usage()


def test_a_loader_that_is_restarted_keeps_the_memory_locked(
    cuda: FakeCuda, devices: list[DeviceTensors], store: Store, fake: FakeCheckpoints
) -> None:
    state = {"w": devices[0].tensor(torch.randn(500, 1000))}
    count = 0

    def on_slab(request: pb.SlabRequest) -> None:
        nonlocal count
        count += 1
        if count == 6:
            raise ConnectionError

    fake.slabs.on_request = on_slab
    before = cuda.calls().get("cuMemHostRegister_v2", 0)
    save(fake, state, wait="committed")
    assert equal(load(fake).state_dict(), state)
    (session,) = _sessions._sessions.values()
    assert session.generation == 2
    assert cuda.calls()["cuMemHostRegister_v2"] == before + len(session.pieces)
