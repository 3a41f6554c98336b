"""Checkpoints through the real loader: saved, found again after kills, and read by others."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import safetensors.torch
import torch
from e2e_support import Daemon, binary, every_dtype
from save_support import equal, forget, training_state
from test_dtypes import torch_bytes
from test_private import wait_until

import longshore
from longshore import _private, _sessions
from longshore._dtypes import DTYPES
from longshore.torch.checkpoint import LongshoreWriter

pytestmark = pytest.mark.e2e

OPTIONS = ("--memory", "1280MiB")


class Saver(Daemon):
    """A loader with a folder for checkpoints."""

    def __init__(self, folder: Path, slabs: str = "640MiB", environ: dict[str, str] | None = None) -> None:
        checkpoints = ("--checkpoint-memory", slabs, "--checkpoint-dir", str(folder / "checkpoints"))
        super().__init__(folder, *OPTIONS, *checkpoints, environ=environ)

    @property
    def address(self) -> str:
        return str(self.folder / "loader.sock")

    def start_again_when_killed(self) -> threading.Thread:
        """Waits for the end of the process in the background, and starts it without what ended it."""

        def run() -> None:
            assert self.process.wait(60) == -signal.SIGKILL, self.log.read_text()
            self.node.close()
            self._environ.pop("LONGSHORE_KILL_AT", None)
            self.start()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[Saver]:
    running = Saver(tmp_path / "loader")
    yield running
    forget()
    running.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The origin: a folder."""
    return tmp_path / "origin/run"


def groups(count: int = 6) -> dict[str, Any]:
    """A state of several files, and so of several slabs."""
    return {f"group{index}": {"w": torch.randn(1000, 100 + index)} for index in range(count)} | {"step": 7}


def test_a_training_state_comes_back(loader: Saver, run: Path) -> None:
    state = training_state()
    handle = longshore.save(state, run, step=3, address=loader.address, metadata={"a": "b"}, timeout=60)
    status = handle.result(60)
    assert status.state == "committed"
    assert status.bytes_uploaded == status.bytes_total > 0
    assert (status.staged_seconds or 0) <= (status.local_durable_seconds or 0) <= (status.committed_seconds or 0)
    assert handle.local_durable.done()
    assert handle.peer_durable.done()
    model = longshore.load(run, step="latest", address=loader.address)
    assert equal(model.state_dict(), state)
    assert model.checkpoint is not None
    assert (model.checkpoint.step, model.checkpoint.metadata) == (3, {"a": "b"})
    assert model.checkpoint.attempt == handle.attempt
    newest = longshore.latest(run, address=loader.address)
    assert newest is not None
    assert newest.step == 3
    with pytest.raises(longshore.FailedPrecondition, match="step"):
        longshore.save(state, run, step=3, address=loader.address, timeout=60).result(60)


def test_keep_list_delete(loader: Saver, run: Path) -> None:
    assert longshore.list(run, address=loader.address) == []
    assert longshore.latest(run, address=loader.address) is None
    for step in (1, 5, 3, 9):
        longshore.save({"w": torch.full((5,), step)}, run, step=step, keep=2, address=loader.address).result(60)
    # What is too old goes after the commit.
    wait_until(lambda: len(longshore.list(run, address=loader.address)) == 2, "two are kept", 30)
    result = longshore.delete(run, 9, address=loader.address)
    assert result.objects_deleted > 0
    with pytest.raises(longshore.NotFound):
        longshore.delete(run, 9, address=loader.address)
    newest = longshore.latest(run, address=loader.address)
    assert newest is not None
    assert longshore.load(run, step="latest", address=loader.address)["w"][0] == newest.step
    with pytest.raises(longshore.Error):
        longshore.load(run, step=77, address=loader.address)


def test_every_dtype(loader: Saver, run: Path) -> None:
    state = {}
    for name, (dtype, shape, content) in every_dtype().items():
        known = DTYPES[dtype]
        if known.torch is None or (known.torch_pack != 1 and (not shape or shape[-1] % known.torch_pack)):
            continue
        dims = (*shape[:-1], shape[-1] // known.torch_pack) if known.torch_pack != 1 else shape
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        state[name] = flat.view(getattr(torch, known.torch)).view(dims)
    longshore.save(state, run, step=1, address=loader.address).result(60)
    model = longshore.load(run, step=1, address=loader.address)
    into = {name: torch.zeros_like(tensor.view(torch.uint8)).view(tensor.dtype).view(tensor.shape) if tensor.dim() else
            torch.zeros(1, dtype=torch.uint8).repeat(tensor.element_size()).view(tensor.dtype)[0]
            for name, tensor in state.items()}  # fmt: skip
    longshore.load(run, step=1, into=into, address=loader.address)
    for name, tensor in state.items():
        assert model[name].shape == tensor.shape, name
        assert torch_bytes(model[name]) == torch_bytes(tensor), name
        assert torch_bytes(into[name]) == torch_bytes(tensor), name


def test_others_can_read_it(loader: Saver, run: Path, tmp_path: Path) -> None:
    base = torch.randn(100, 40)
    state = {"embed.weight": base, "head.weight": base, "strided": base.T, "bf16": base.to(torch.bfloat16)}
    files = {"config.json": b'{"a": 1}', "large.bin": os.urandom(9 << 20)}
    longshore.save(state, run, step=1, files=files, address=loader.address).result(60)
    folder = run / "step-1"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for name in set(index["weight_map"].values()):
        found.update(safetensors.torch.load_file(folder / name))
    assert torch.equal(found["embed.weight"], base)
    assert torch.equal(found["strided"], base.T)
    assert torch.equal(found["bf16"], base.to(torch.bfloat16))
    assert (folder / "config.json").read_bytes() == files["config.json"]
    model = longshore.load(run, step=1, address=loader.address)
    assert bytes(model.files["large.bin"]) == files["large.bin"]
    assert torch.equal(model["head.weight"], base)
    flipped = next(folder.glob("model-*.safetensors"))
    assert flipped.exists()


def test_tied_tensors_share_their_memory_again(loader: Saver, run: Path) -> None:
    """They are stored once, and only the commit and the tree know their other names."""
    base = torch.randn(50, 8)
    state = {"model": {"embed": base, "head": base}, "ema": {"embed": base}}
    longshore.save(state, run, step=1, address=loader.address).result(60)
    model = longshore.load(run, step=1, address=loader.address)
    assert model.checkpoint is not None
    assert set(model.checkpoint.tensors) == {"embed"}
    assert {"embed", "head", "ema/embed"} <= set(model)
    assert model["head"].data_ptr() == model["embed"].data_ptr() == model["ema/embed"].data_ptr()
    found = model.state_dict()
    assert found["model"]["head"] is found["model"]["embed"] is found["ema"]["embed"]
    assert torch.equal(found["model"]["head"], base)
    # Of the URL alone, without what the loader knows of the commit.
    plain = longshore.load(f"{run}/step-1", address=loader.address)
    assert plain["head"].data_ptr() == plain["embed"].data_ptr()
    into = {"model": {"embed": torch.zeros(50, 8), "head": torch.zeros(50, 8)}}
    longshore.load(run, step=1, into=into, address=loader.address)
    assert torch.equal(into["model"]["embed"], base)
    assert torch.equal(into["model"]["head"], base)


def test_a_flat_state_with_tied_tensors(loader: Saver, run: Path) -> None:
    base = torch.randn(5, 8)
    longshore.save({"embed": base, "head": base}, run, step=1, address=loader.address).result(60)
    found = longshore.load(run, step=1, address=loader.address).state_dict()
    assert found["head"] is found["embed"]


def test_memory_of_an_idle_process_is_handed_to_another(tmp_path: Path, run: Path) -> None:
    """A parent that has saved, and the process that `async_save` starts: the second gets all of the small memory."""
    loader = Saver(tmp_path / "small", "128MiB")
    try:
        state = {"w": torch.randn(40_000_000)}
        longshore.save(state, run, step=1, address=loader.address, timeout=120).result(120)
        writer = LongshoreWriter(f"file://{run}", step=2, address=loader.address)
        ended = subprocess.run(
            [sys.executable, "-c", CHILD], input=pickle.dumps(writer), capture_output=True, timeout=100
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert float(ended.stdout) < 20, "seconds; without it the loader keeps the memory for half a minute"
        assert longshore.load(run, step=2, address=loader.address)["w"].sum() == 20_000_000
    finally:
        forget()
        loader.close()


CHILD = """
import pickle, sys, time, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed.checkpoint as dcp
writer = pickle.load(sys.stdin.buffer)
begun = time.monotonic()
dcp.save({"w": torch.ones(20_000_000)}, storage_writer=writer)
print(time.monotonic() - begun)
"""


def test_several_slabs_and_no_room_to_spare(tmp_path: Path, run: Path) -> None:
    loader = Saver(tmp_path / "small", "128MiB")
    try:
        state = {"w": torch.randn(75_000_000), "rest": torch.randn(10)}
        longshore.save(state, run, step=1, address=loader.address, timeout=120).result(120)
        assert equal(longshore.load(run, step=1, address=loader.address).state_dict(), state)
    finally:
        forget()
        loader.close()


# ---- ranks


def test_four_ranks_and_loads_by_two_and_three(loader: Saver, run: Path, tmp_path: Path) -> None:
    environ = {"TEST_RUN": str(run)}
    assert len(set(ranks.run(tmp_path, "save", loader.address, 4, environ=environ))) == 1
    model = longshore.load(run, step=1, address=loader.address)
    assert model["both"].shape == (6, 8)
    assert model.state_dict()["epoch"] == 5
    ranks.run(tmp_path, "load", loader.address, 2, environ=environ)
    ranks.run(tmp_path, "load_all", loader.address, 4, environ=environ)


def test_two_ranks_write_for_hugging_face(loader: Saver, run: Path, tmp_path: Path) -> None:
    ranks.run(tmp_path, "save", loader.address, 2, "huggingface", environ={"TEST_RUN": str(run)})
    index = json.loads((run / "step-1/model.safetensors.index.json").read_text())
    found = {}
    for name in set(index["weight_map"].values()):
        found.update(safetensors.torch.load_file(run / "step-1" / name))
    assert torch.equal(found["rows"], torch.arange(60.0).reshape(10, 6))
    ranks.run(tmp_path, "load", loader.address, 3, environ={"TEST_RUN": str(run)})


def test_a_rank_that_dies_before_it_has_copied(loader: Saver, run: Path, tmp_path: Path) -> None:
    first, second = ranks.start(tmp_path, "die", loader.address, 2, "8", environ={"TEST_RUN": str(run)})
    assert second[0] == 7
    assert first[0] == 0, first[2]
    assert "timeout" in first[1] or "rank" in first[1], first[1]
    assert longshore.latest(run, address=loader.address) is None


# ---- kills


@pytest.mark.parametrize("at", ["after_planned", "slab_sealed", "slab_sealed@3", "after_flushed_record@2"])
def test_a_loader_that_is_killed_in_mid_save(tmp_path: Path, run: Path, at: str) -> None:
    loader = Saver(tmp_path / "loader", environ={"LONGSHORE_KILL_AT": at})
    again = loader.start_again_when_killed()
    try:
        state = groups()
        handle = longshore.save(state, run, step=1, address=loader.address, timeout=90)
        again.join(60)
        assert handle.result(60).state == "committed"
        assert equal(longshore.load(run, step=1, address=loader.address).state_dict(), state)
    finally:
        again.join(60)
        forget()
        loader.close()


@pytest.mark.parametrize(
    "at", ["after_rank_durable", "before_verified_record", "before_commit", "commit_sent", "before_latest"]
)
def test_futures_survive_a_loader_that_is_killed(tmp_path: Path, run: Path, at: str) -> None:
    loader = Saver(tmp_path / "loader", environ={"LONGSHORE_KILL_AT": at})
    again = loader.start_again_when_killed()
    try:
        state = groups(2)
        handle = longshore.save(state, run, step=1, address=loader.address, timeout=60)
        assert handle.result(60).state == "committed"
        again.join(60)
        assert equal(longshore.load(run, step=1, address=loader.address).state_dict(), state)
    finally:
        again.join(60)
        forget()
        loader.close()


def test_a_loader_that_is_killed_before_the_first_slab_is_waited_for(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Saver(tmp_path / "loader")
    again, opened = loader.start_again_when_killed(), list[Any]()

    def open_a_killed_one(*given: Any) -> Any:
        if not opened:
            loader.process.kill()
            loader.process.wait()
        opened.append(given)
        return open_session(*given)

    open_session = _sessions._open
    monkeypatch.setattr(_sessions, "_open", open_a_killed_one)
    try:
        state = groups(2)
        handle = longshore.save(state, run, step=1, address=loader.address, timeout=60)
        assert handle.result(60).state == "committed"
        assert len(opened) > 1
        again.join(60)
        assert equal(longshore.load(run, step=1, address=loader.address).state_dict(), state)
    finally:
        again.join(60)
        forget()
        loader.close()


TRAINER = """
import os, signal, sys, torch, longshore
from longshore import _stage
if sys.argv[3] == "copying":
    seals = []
    seal = longshore._slabs.SlabSession.seal
    def dying(self, slab):
        seals.append(slab)
        if len(seals) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        seal(self, slab)
    longshore._slabs.SlabSession.seal = dying
state = {f"group{index}": {"w": torch.full((1000, 100), float(index))} for index in range(6)}
handle = longshore.save(state, sys.argv[2], step=1, address=sys.argv[1] or None, timeout=60)
print(handle.attempt, flush=True)
if sys.argv[3] == "staged":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def trainer(
    address: str, run: Path, mode: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRAINER, address, str(run), mode],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environ or {})},
    )


def committed_within(run: Path, step: int, address: str, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if step in [each.step for each in longshore.list(run, address=address)]:
            return True
        time.sleep(0.2)
    return False


def test_a_trainer_that_is_killed_after_staging(loader: Saver, run: Path) -> None:
    ended = trainer(loader.address, run, "staged")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert committed_within(run, 1, loader.address)
    assert longshore.load(run, step=1, address=loader.address)["group5/w"][0, 0] == 5


def test_a_trainer_that_is_killed_in_mid_copy(loader: Saver, run: Path) -> None:
    longshore.save({"w": torch.ones(3)}, run, step=0, address=loader.address).result(60)
    ended = trainer(loader.address, run, "copying")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    newest = longshore.latest(run, address=loader.address)
    assert newest is not None
    assert newest.step == 0, "nothing of it is visible"
    state = groups()
    longshore.save(state, run, step=1, address=loader.address, timeout=60).result(60)
    assert equal(longshore.load(run, step=1, address=loader.address).state_dict(), state)


# ---- without a daemon


def test_a_private_loader_outlives_its_process(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "LONGSHORE_BIN": str(binary()),
        "LONGSHORE_SOCKET_DIR": str(tmp_path / "none"),
        "LONGSHORE_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "LONGSHORE_CACHE_DIR": str(tmp_path / "cache"),
    }
    ended = trainer("", run, "private", environ)
    assert ended.returncode == 0, ended.stderr
    deadline = time.monotonic() + 60
    while not (run / "step-1/_CKPT.json").exists():
        assert time.monotonic() < deadline, "the private loader did not finish"
        time.sleep(0.1)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_private, "_current", None)
    try:
        assert longshore.load(run, step=1)["group5/w"][0, 0] == 5
    finally:
        forget()
