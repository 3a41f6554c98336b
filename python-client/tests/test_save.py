"""`longshore.save` against the fake loader: what is saved, what is told, and what goes wrong."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import torch
from fake_checkpoints import FakeCheckpoints, Store
from fake_loader import RpcFailure
from test_tree import same

import longshore
from longshore import _handle, _service, _slabs
from longshore._proto import checkpoint_pb2 as pb

RUN = "s3://bucket/run"


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


@pytest.fixture
def fake(store: Store) -> Iterator[FakeCheckpoints]:
    made = FakeCheckpoints(store)
    running = [made]
    made.restarted = running.append
    yield made
    running[-1].close()
    gc.collect()
    for session in _slabs._sessions.values():
        session.close()
    _slabs._sessions.clear()
    _service._services.clear()


def save(fake: FakeCheckpoints, state: Any, step: int = 1, **options: Any) -> longshore.SaveHandle:
    return longshore.save(state, RUN, step=step, address=fake.address, **{"timeout": 60.0, **options})


def load(fake: FakeCheckpoints, step: Any = 1, **options: Any) -> longshore.Model[Any]:
    return longshore.load(RUN, address=fake.address, step=step, **options)


def training_state() -> dict[str, Any]:
    """A model, its optimizer, and what else a trainer keeps."""
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.BatchNorm1d(50), torch.nn.Linear(50, 7))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(8, 30)).sum().backward()
        optimizer.step()
    return {
        "model": module.state_dict(),
        "optim": optimizer.state_dict(),
        "epoch": 3,
        "rng": {"torch": torch.get_rng_state(), "python": (3, (1, 2), None)},
        "numpy": {"a": np.arange(5.0), "s": np.float32(2.5)},
    }


def equal(left: Any, right: Any) -> bool:
    """As `same`, with tensors equal in value."""
    if isinstance(left, torch.Tensor):
        right = torch.from_numpy(right.copy()) if isinstance(right, np.ndarray) else right
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, np.asarray(right))
    if isinstance(left, dict):
        return list(map(repr, left)) == list(map(repr, right)) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    return same(left, right)


# ---- round trips


def test_a_flat_dict(fake: FakeCheckpoints, store: Store) -> None:
    state = {"w": torch.randn(100, 300), "b": torch.arange(7, dtype=torch.int16)}
    handle = save(fake, state, wait="committed")
    assert handle.status.state == "committed"
    assert handle.progress() == 1.0
    assert handle.url == f"{RUN}/step-1"
    assert set(store.files(RUN, 1)) == {"model-00001-of-00001.safetensors", "state.json"}
    assert equal(longshore.load(f"{RUN}/step-1", address=fake.address).state_dict(), state)


def test_nested_state_comes_back_as_it_was(fake: FakeCheckpoints) -> None:
    state = training_state()
    save(fake, state, wait="committed", metadata={"who": "me"})
    model = load(fake)
    assert equal(state, model.state_dict())
    assert isinstance(model.state_dict()["model"], OrderedDict)
    assert model.checkpoint is not None
    assert model.checkpoint.metadata == {"who": "me"}
    assert model.checkpoint.tensors["optim/state.0.exp_avg"].shape == (50, 30)
    other = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.BatchNorm1d(50), torch.nn.Linear(50, 7))
    optimizer = torch.optim.AdamW(other.parameters())
    found = model.state_dict()
    other.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optim"])
    assert equal(optimizer.state_dict(), state["optim"])
    assert "0.weight" in model
    assert model["optim/state.1.exp_avg"].shape == (50,)


def test_every_kind_of_array_through_many_slabs(fake: FakeCheckpoints, store: Store) -> None:
    base = torch.arange(200 * 300, dtype=torch.int32).reshape(200, 300)
    state = {
        "odd": torch.arange(13, dtype=torch.uint8),
        "large": torch.randn(123, 1001),
        "transposed": base.T,
        "sliced": base[:, 7:200:3].to(torch.bfloat16),
        "numpy": np.random.default_rng(0).normal(size=(300, 90)).T,
        "bf16": np.arange(1000).astype(ml_dtypes.bfloat16)[::3],
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "misaligned": base[3:, 1:].double().T,
    }
    handle = save(fake, state, wait="committed")
    assert handle.status.bytes_total > 6 * store.slab_bytes
    assert equal(load(fake).state_dict(), {**state, "bf16": load(fake)["bf16"]})
    assert load(fake)["bf16"].view(torch.int16).tolist() == state["bf16"].view(np.int16).tolist()


def test_tied_tensors_are_stored_once(fake: FakeCheckpoints, store: Store) -> None:
    base = torch.randn(4, 6)
    state = {
        "model": {"embed": base, "head": base, "rows": base[1:], "again": torch.nn.Parameter(base)},
        "ema": {"embed": base, "zero": torch.zeros(0), "none": torch.zeros(0)},
    }
    save(fake, state, wait="committed")
    model = load(fake)
    assert model.checkpoint is not None
    assert set(model.checkpoint.tensors) == {"embed", "rows", "ema/zero", "ema/none"}
    assert model.checkpoint.aliases == {"head": "embed", "again": "embed"}
    found = model.state_dict()
    assert found["model"]["embed"] is found["model"]["head"] is found["ema"]["embed"]
    assert torch.equal(model["head"], base)
    assert {"head", "again", "embed", "ema/embed"} <= set(model)
    assert torch.equal(longshore.load(f"{RUN}/step-1", address=fake.address)["ema/embed"], base)
    assert len(list(model)) == len(model)
    assert torch.equal(found["model"]["rows"], base[1:])


def test_files_large_and_small(fake: FakeCheckpoints, store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/a.txt").write_text("a")
    (tmp_path / "folder/inner/b.bin").write_bytes(os.urandom(5 << 20))
    (tmp_path / "config.json").write_text("{}")
    files = {
        "config.json": tmp_path / "config.json",
        "tokenizer": str(tmp_path / "folder"),
        "raw.bin": os.urandom(4_500_000),
        "empty": b"",
    }
    save(fake, {"w": torch.ones(3)}, files=files, wait="committed")
    found = store.files(RUN, 1)
    assert found["config.json"] == b"{}"
    assert found["tokenizer/a.txt"] == b"a"
    assert found["tokenizer/inner/b.bin"] == (tmp_path / "folder/inner/b.bin").read_bytes()
    assert found["raw.bin"] == files["raw.bin"]
    assert found["empty"] == b""
    assert bytes(load(fake).files["raw.bin"]) == files["raw.bin"]
    with pytest.raises(longshore.NotFound, match=r"'x' of the checkpoint.*absent is no file"):
        save(fake, {}, 2, files={"x": tmp_path / "absent"})
    for name in ("/x", "../x", "a/../b", ""):
        with pytest.raises(longshore.InvalidArgument, match="relative to the checkpoint"):
            save(fake, {}, 2, files={name: b""})
    with pytest.raises(longshore.InvalidArgument, match="given twice"):
        save(fake, {}, 2, files={"state.json": b""})


def test_a_file_that_becomes_shorter(fake: FakeCheckpoints, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5 << 20))
    first = threading.Event()

    def truncate(request: pb.SlabRequest) -> None:
        if request.HasField("acquire") and not first.is_set():
            first.set()
            os.truncate(path, 100)

    fake.on_slab = truncate
    with pytest.raises(longshore.FailedPrecondition, match="became shorter"):
        save(fake, {}, files={"file": path})
    assert fake.cancelled


def test_what_is_asked_for(fake: FakeCheckpoints) -> None:
    save(fake, {"w": torch.ones(3)}, keep=3, peer_copies=2, delta=True, when_full="refuse", metadata={"a": "b"})
    (request,) = fake.plans
    options = request.options
    assert (request.uri, request.step, request.world_size) == (RUN, 1, 1)
    assert (options.keep, options.peer_copies, options.delta, options.refuse_when_full) == (3, 2, True, True)
    assert options.hf_index
    assert options.stage_timeout_ms > 50_000
    assert request.join_timeout_ms > 50_000
    assert fake.expected[0] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "other"},
        {"wait": "never"},
        {"when_full": "maybe"},
        {"step": -1},
        {"step": 1.0},
        {"keep": -1},
        {"metadata": {"a": 1}},
        {"rank": 0},
        {"rank": 2, "world_size": 2},
        {"rank": 0, "world_size": 1, "group": object()},
        {"group": object()},
    ],
)
def test_wrong_arguments(fake: FakeCheckpoints, options: dict[str, Any]) -> None:
    with pytest.raises(longshore.InvalidArgument):
        save(fake, {}, **{"step": 1, **options})
    assert fake.plans == []


def test_tensors_that_cannot_be_saved_are_named(fake: FakeCheckpoints) -> None:
    with pytest.raises(longshore.InvalidArgument, match=r"state_dict\['model'\]\['a'\] is a meta tensor"):
        save(fake, {"model": {"a": torch.empty(2, device="meta")}})
    assert fake.plans == []


# ---- lists


def test_latest_list_delete(fake: FakeCheckpoints) -> None:
    address = fake.address
    assert longshore.latest(RUN, address=address) is None
    assert longshore.list(RUN, address=address) == []
    for step in (1, 10, 2):
        save(fake, {"w": torch.full((2,), float(step))}, step, wait="committed")
    assert [each.step for each in longshore.list(RUN, address=address)] == [1, 2, 10]
    newest = longshore.latest(RUN, address=address)
    assert newest is not None
    assert (newest.step, newest.url) == (10, f"{RUN}/step-10")
    assert newest.tensors["w"].shape == (2,)
    assert load(fake, "latest")["w"][0] == 10
    assert longshore.delete(RUN, 10, address=address) == longshore.DeleteResult(2, 10, 0)
    with pytest.raises(longshore.NotFound):
        longshore.delete(RUN, 10, address=address)
    assert load(fake, "latest")["w"][0] == 2
    with pytest.raises(longshore.NotFound):
        load(fake, 3)


# ---- into


def test_into_a_state_of_the_same_form(fake: FakeCheckpoints) -> None:
    state = training_state()
    save(fake, state, wait="committed")
    torch.manual_seed(5)
    module = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.BatchNorm1d(50), torch.nn.Linear(50, 7))
    into: dict[str, Any] = {
        "model": module.state_dict(),
        "optim": {"state": {0: {"exp_avg": torch.zeros(50, 30), "step": torch.zeros(())}}, "param_groups": None},
        "epoch": 0,
        "rng": {"torch": torch.get_rng_state(), "python": None},
        "numpy": {"a": np.zeros(5)},
    }
    inner = into["optim"]
    load(fake, into=into).close()
    assert equal(module.state_dict(), state["model"]), "the module's own memory"
    assert inner is into["optim"]
    assert equal(inner["state"][0]["exp_avg"], state["optim"]["state"][0]["exp_avg"])
    assert inner["param_groups"] == state["optim"]["param_groups"]
    assert into["epoch"] == 3
    assert into["rng"]["python"] == (3, (1, 2), None)
    assert into["numpy"]["a"].tolist() == [0, 1, 2, 3, 4]


def test_into_converts_and_fills_strided_memory(fake: FakeCheckpoints) -> None:
    state: dict[str, Any] = {"w": torch.randn(6, 8), "n": np.arange(6, dtype=np.int64)}
    save(fake, state, wait="committed")
    into: dict[str, Any] = {"w": torch.zeros(8, 6, dtype=torch.bfloat16).T, "n": torch.zeros(6)}
    load(fake, into=into)
    assert torch.equal(into["w"], state["w"].to(torch.bfloat16))
    assert into["n"].tolist() == [0, 1, 2, 3, 4, 5]
    half = {"w": np.zeros((6, 8), dtype=np.float16)}
    load(fake, into=half)
    assert np.array_equal(half["w"], state["w"].numpy().astype(np.float16))


def test_into_names_what_does_not_fit_and_writes_nothing(fake: FakeCheckpoints) -> None:
    save(fake, {"w": torch.ones(6), "v": torch.ones(2)}, wait="committed")
    into = {"w": torch.zeros(6), "v": torch.zeros(3), "x": torch.zeros(1)}
    with pytest.raises(
        longshore.FailedPrecondition, match=r"\['v'\] is \[3\] here and \[2\] there.*\['x'\] is not in it as 'x'"
    ):
        load(fake, into=into)
    assert not into["w"].any()
    with pytest.raises(longshore.InvalidArgument, match="meta"):
        load(fake, into={"w": torch.zeros(6, device="meta")})


def test_into_loads_only_the_files_it_needs(fake: FakeCheckpoints) -> None:
    save(fake, {"model": {"w": torch.ones(6)}, "optim": {"m": torch.full((3,), 2.0)}}, wait="committed")
    into = {"optim": {"m": torch.zeros(3)}}
    load(fake, into=into)
    assert into["optim"]["m"].tolist() == [2, 2, 2]
    assert list(fake.loader.requests[-1].include) == ["optim/optim-00002-of-00002.safetensors", "state.json"]


# ---- several ranks


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    found: list[Any] = [None] * len(functions)

    def run(index: int) -> None:
        try:
            found[index] = functions[index]()
        except BaseException as error:  # noqa: BLE001
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found


def test_ranks_that_meet_at_the_loader(fake: FakeCheckpoints, store: Store) -> None:
    shared = torch.randn(300, 300)

    def rank(number: int) -> longshore.SaveHandle:
        state = {"model": {"shared": shared.clone(), f"own{number}": torch.full((5,), number)}, "rank": number}
        return save(fake, state, rank=number, world_size=2, wait="committed")

    handles = in_threads(lambda: rank(0), lambda: rank(1))
    assert len({handle.attempt for handle in handles}) == 1
    model = load(fake)
    assert set(model) == {"shared", "own0", "own1"}
    assert torch.equal(model["shared"], shared)
    assert model.state_dict()["rank"] == 0
    assert set(model.state_dict()["model"]) == {"shared", "own0", "own1"}
    assert {"state.json", "state-00001.json"} <= set(store.files(RUN, 1))


def test_a_rank_that_does_not_come(fake: FakeCheckpoints) -> None:
    with pytest.raises(longshore.Timeout, match=r"ranks \{1\} did not come"):
        save(fake, {"w": torch.ones(1)}, rank=0, world_size=2, timeout=0.5)


# ---- futures


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


# ---- slabs


def test_memory_is_mapped_once_and_slabs_wait_for_room(fake: FakeCheckpoints, store: Store) -> None:
    for step in range(1, 4):
        save(fake, {"w": torch.randn(200, 1000)}, step, wait="committed")
    assert len(store.sessions) == 1
    assert len(fake.expected) == 1, "one hello"
    (session,) = _slabs._sessions.values()
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
    fake.on_slab = lambda request: gate.wait(20) if request.HasField("acquire") else None
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

    fake.on_slab = on_slab
    store.seal = seal  # type: ignore[method-assign]
    handle = save(fake, state, wait="committed")
    assert count >= number
    assert handle.status.state == "committed"
    assert equal(load(fake).state_dict(), state)
    (session,) = _slabs._sessions.values()
    assert session._writers == 0
    assert session.generation >= 2


def test_a_connection_that_breaks_often(fake: FakeCheckpoints, store: Store) -> None:
    requests = 0

    def on_slab(request: pb.SlabRequest) -> None:
        nonlocal requests
        requests += 1
        if requests % 5 == 0:
            raise ConnectionError

    fake.on_slab = on_slab
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

    fake.on_slab = on_slab
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


# ---- processes

EXIT = """
import sys, torch, longshore
from longshore._proto import checkpoint_pb2
handle = longshore.save({"w": torch.ones(100000)}, "s3://bucket/run", step=int(sys.argv[2]), address=sys.argv[1],
                        wait=None if sys.argv[3] == "background" else "staged")
print(handle.attempt, flush=True)
"""


@pytest.mark.parametrize("mode", ["staged", "background"])
def test_a_process_that_ends_with_a_save_running(fake: FakeCheckpoints, store: Store, mode: str) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    if mode == "background":
        store.pieces_max = 0
    run = subprocess.run(
        [sys.executable, "-c", EXIT, fake.address, "1", mode], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    attempt = store.attempts[run.stdout.strip()]
    store.hold_at = None
    store.advance(attempt)
    assert ((RUN, 1) in store.committed) == (mode == "staged"), "the loader finishes what is staged"


FORK = """
import os, sys, torch, longshore
state = {"w": torch.ones(1000)}
handle = longshore.save(state, "s3://bucket/run", step=1, address=sys.argv[1], wait="committed")
pid = os.fork()
if pid == 0:
    try:
        longshore.save(state, "s3://bucket/run", step=2, address=sys.argv[1])
    except longshore.FailedPrecondition as error:
        os._exit(0 if "fork" in str(error) else 1)
    os._exit(2)
assert os.waitpid(pid, 0)[1] == 0
longshore.save(state, "s3://bucket/run", step=3, address=sys.argv[1], wait="committed")
"""


def test_forks(fake: FakeCheckpoints, store: Store) -> None:
    run = subprocess.run([sys.executable, "-c", FORK, fake.address], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert set(store.committed) == {(RUN, 1), (RUN, 3)}


def test_the_document_is_what_tools_can_read(fake: FakeCheckpoints, store: Store) -> None:
    save(fake, {"model": {"w": torch.ones(1)}, "epoch": 2, "lr": 0.1}, wait="committed")
    document = json.loads(store.files(RUN, 1)["state.json"])
    assert document["tree"] == {"model": {"w": {"$tensor": "w"}}, "epoch": 2, "lr": 0.1}
