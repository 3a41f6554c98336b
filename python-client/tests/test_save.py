"""`longshore.save` against the fake loader: what is saved, and found again."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from fake_checkpoints import FakeCheckpoints
from fake_store import Store
from save_support import RUN, equal, in_threads, load, save, training_state

import longshore
from longshore._proto import checkpoint_pb2 as pb

pytest_plugins = ("save_fixtures",)


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

    fake.slabs.on_request = truncate
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
    assert fake.slabs.expected[0] > 0


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


# ---- several ranks


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


def test_the_document_is_what_tools_can_read(fake: FakeCheckpoints, store: Store) -> None:
    save(fake, {"model": {"w": torch.ones(1)}, "epoch": 2, "lr": 0.1}, wait="committed")
    document = json.loads(store.files(RUN, 1)["state.json"])
    assert document["tree"] == {"model": {"w": {"$tensor": "w"}}, "epoch": 2, "lr": 0.1}
