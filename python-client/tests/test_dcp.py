"""torch.distributed.checkpoint with the real loader and real processes."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks as ranks_of_test
import torch
from e2e_support import Daemon
from torch import nn

import longshore
from longshore.torch import _exchange, _metadata, _target
from longshore.torch.checkpoint import LongshoreReader, LongshoreWriter

# It does not say what it exports.
dcp: Any = importlib.import_module("torch.distributed.checkpoint")

pytestmark = [
    pytest.mark.e2e,
    # Without a process group torch says so with each call.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]


class Ranks:
    """Runs ranks over one run."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        folder.mkdir(exist_ok=True)
        self.run = f"file://{folder}"
        self._meetings = folder.parent
        self._daemon = daemon

    def __call__(self, world: int, *functions: str, codes: dict[int, int] | None = None) -> list[str]:
        """What each rank printed."""
        address = str(self._daemon.folder)
        found = ranks_of_test.start(
            self._meetings, ",".join(functions), address, world, self.run, program="dcp_rank.py"
        )
        problems = [
            f"rank {rank} ended with {code}:\n{errors}"
            for rank, (code, _, errors) in enumerate(found)
            if code != (codes or {}).get(rank, 0)
        ]
        assert not problems, "\n".join(problems)
        return [output for _, output, _ in found]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("loader")
    running = Daemon(
        folder / "sockets", "--memory", "2GiB", "--checkpoint-memory", "1GiB", "--checkpoint-dir", str(folder / "saves")
    )
    yield running
    running.close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, daemon: Daemon) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("dcp") / "run", daemon)


@pytest.fixture
def address(daemon: Daemon) -> str:
    return str(daemon.folder)


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return f"file://{tmp_path / 'run'}"


# ---- several ranks; these build on each other, because starting them takes longer than all they do


def test_four_ranks_save_and_load(ranks: Ranks, address: str) -> None:
    ranks(4, "save_sync", "load_sync", "load_of_save", "load_in_place", "save_threads", "fsdp_save")
    assert [each.step for each in longshore.list(ranks.run, address=address)] == [1, 2, 3, 4, 5, 6, 20, 21]
    model = longshore.load(ranks.run, step=1, framework="torch", address=address)
    assert torch.equal(model["rows"], torch.arange(60.0).reshape(10, 6)), "pieces are put together"
    assert model.state_dict()["epoch"] == 5
    assert model.state_dict()["optim"]["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]
    found = longshore.latest(ranks.run, address=address)
    assert found is not None
    assert [piece.shape for piece in found.tensors["head.weight"].pieces] == [(5, 16)] * 4, "of FSDP the shards"
    whole = longshore.load(ranks.run, step=20, framework="torch", address=address).checkpoint
    assert whole is not None
    for name, tensor in whole.tensors.items():
        assert name.startswith("optim/") or [piece.shape for piece in tensor.pieces] == [tensor.shape], name
    assert "model.safetensors.index.json" in os.listdir(Path(ranks.run.removeprefix("file://")) / "step-20")


def test_planned_once_and_written_once(ranks: Ranks, address: str) -> None:
    """What all ranks have is in the checkpoint once; shards of a tensor are pieces that tile it."""
    checkpoint = longshore.load(ranks.run, step=1, framework="torch", address=address).checkpoint
    assert checkpoint is not None
    assert len(checkpoint.tensors["copies"].pieces) == 1
    assert [piece.shape for piece in checkpoint.tensors["rows"].pieces] == [(3, 6), (3, 6), (3, 6), (1, 6)]
    assert [piece.shape for piece in checkpoint.tensors["few"].pieces] == [(1, 3)]
    tensors = sum(piece.nbytes for tensor in checkpoint.tensors.values() for piece in tensor.pieces)
    unique = 2 * 60 * 4 + 36 * 4 + 25 * 4 + 3 * 4 + 7 * 4 + 48 * 4 + 4 + 21000 * 2 + 64 + 4 + 2 * 4
    assert tensors == unique


def test_two_ranks_load_what_four_saved(ranks: Ranks) -> None:
    """And save by `async_save` in processes; a rank that fails does not stop the next save."""
    ranks(2, "load_sync", "fsdp_load", "save_processes", "fail_on_one", "save_again")


def test_three_ranks_load_what_two_saved_and_one_dies(ranks: Ranks, address: str) -> None:
    printed = ranks(3, "load_again", "fsdp_load", "die", codes={1: 7})
    for rank in (0, 2):
        assert "rank 1 (process" in printed[rank], printed
        assert printed[rank].startswith("unavailable: writing the checkpoint")
    assert 40 not in [each.step for each in longshore.list(ranks.run, address=address)]
    dcp.save({"a": torch.ones(3)}, storage_writer=LongshoreWriter(ranks.run, step=40, address=address))
    assert 40 in [each.step for each in longshore.list(ranks.run, address=address)]


# ---- one process


def adam() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 20)).sum().backward()
    optimizer.step()
    return model, {"model": model.state_dict(), "optim": optimizer.state_dict(), "epoch": 3, "name": ("a", 1)}


def test_a_subset_reads_only_its_files(run: str, address: str) -> None:
    model, state = adam()
    dcp.save(state, storage_writer=LongshoreWriter(run, step=1, address=address))
    part = {"model": {"0.bias": torch.zeros(30)}}
    reader = LongshoreReader(run, step=1, address=address)
    loaded: list[list[str]] = []
    load = reader._load

    def recording(uri: str, step: int | None, include: Any) -> Any:
        loaded.append(list(include))
        return load(uri, step, include)

    reader._load = recording  # type: ignore[method-assign]
    dcp.load(part, storage_reader=reader)
    assert torch.equal(part["model"]["0.bias"], model.state_dict()["0.bias"])
    assert [len(files) for files in loaded] == [2, 1]
    assert loaded[1][0].startswith("model-")
    everything = {"optim": state["optim"], "epoch": 0, "name": ()}
    dcp.load(everything, checkpoint_id=f"{run}/step-1", storage_reader=reader)
    assert (everything["epoch"], everything["name"]) == (3, ("a", 1))


def test_without_a_state_dict_to_fill(run: str, address: str, tmp_path: Path) -> None:
    """As torch's own tools read checkpoints: everything, by the metadata alone."""
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    planners: Any = importlib.import_module("torch.distributed.checkpoint.default_planner")
    empty = planners._EmptyStateDictLoadPlanner
    _, state = adam()
    dcp.save(state, storage_writer=LongshoreWriter(run, step=1, address=address))
    longshore.save(state, run, step=2, address=address, wait="committed")
    for step in (1, 2):
        found: dict[str, Any] = {}
        reader = LongshoreReader(run, step=step, address=address)
        _load_state_dict(found, storage_reader=reader, planner=empty(), no_dist=True)
        assert torch.equal(found["model"]["1.weight"], state["model"]["1.weight"])
        assert found["optim"]["param_groups"][0]["betas"] == (0.9, 0.999)
        assert torch.equal(found["optim"]["state"]["0"]["exp_avg"], state["optim"]["state"][0]["exp_avg"])


def test_only_what_is_committed(run: str, address: str) -> None:
    with pytest.raises(dcp.CheckpointException, match=r"no checkpoint.*step-7"):
        dcp.load({"a": torch.zeros(1)}, storage_reader=LongshoreReader(run, step=7, address=address))
    with pytest.raises(dcp.CheckpointException, match="no checkpoint was named"):
        dcp.save({"a": torch.zeros(1)}, storage_writer=LongshoreWriter(address=address))
    with pytest.raises(longshore.InvalidArgument, match="step-N"):
        dcp.save({"a": torch.zeros(1)}, checkpoint_id=run, storage_writer=LongshoreWriter(address=address))


def test_what_cannot_be_stored_is_named(run: str, address: str) -> None:
    state = {"model": {"odd": torch.zeros(2, dtype=torch.complex128)}}
    with pytest.raises(dcp.CheckpointException, match=r"model\.odd.*complex128"):
        dcp.save(state, storage_writer=LongshoreWriter(run, step=1, address=address))


def test_a_planner_that_changes_what_was_staged_is_refused(run: str, address: str) -> None:
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    class Renaming(DefaultSavePlanner):
        def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
            super().set_up_planner(
                {f"ema.{key}": each for key, each in state_dict.items()}, storage_meta, is_coordinator
            )

    writer = LongshoreWriter(run, step=1, address=address)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer, planner=Renaming())
    found = {"ema.a": torch.zeros(3)}
    dcp.load(found, storage_reader=LongshoreReader(run, step=1, address=address))
    assert found["ema.a"].sum() == 3


def test_a_writer_can_be_pickled(run: str, address: str) -> None:
    writer = LongshoreWriter(run, step=1, address=address, files={"config.json": memoryview(b"{}")}, keep=2)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)
    again: LongshoreWriter = pickle.loads(pickle.dumps(writer))
    assert again.checkpoint_id == f"{run}/step-1"
    assert again.handle is None
    dcp.save({"a": torch.ones(3)}, checkpoint_id=f"{run}/step-2", storage_writer=again)
    model = longshore.load(run, step=2, address=address)
    assert bytes(model.files["config.json"]) == b"{}"


# ---- parts


def test_targets() -> None:
    assert _target.split("longshore+s3://bucket/run/step-100") == _target.Target("s3://bucket/run", 100)
    assert _target.split("s3://bucket/run/step-0/") == _target.Target("s3://bucket/run", 0)
    for wrong in ("s3://bucket/run", "s3://bucket/run/step-", "s3://bucket/run/step-01", "s3://bucket/run/step-x"):
        assert _target.split(wrong) is None
    assert LongshoreWriter.validate_checkpoint_id("s3://bucket/run/step-1")
    assert not LongshoreWriter.validate_checkpoint_id("s3://bucket/run")
    refused: list[dict[str, Any]] = [{"layout": "no"}, {"wait": "peer_durable"}, {"when_full": "no"}, {"timeout": 0}]
    for wrong_options in refused:
        with pytest.raises(longshore.InvalidArgument):
            LongshoreWriter("s3://bucket/run", step=1, **wrong_options)


def test_metadata_with_code_in_it_is_refused() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return print, ("run",)

    data = pickle.dumps(dcp.Metadata({}, planner_data=Bad()))
    with pytest.raises(longshore.FailedPrecondition, match=r"builtins\.print"):
        _metadata.parse(data, allow_pickle=False)
    with pytest.raises(longshore.Corrupt):
        _metadata.parse(data[:20], allow_pickle=False)


def test_a_process_that_ended_is_told() -> None:
    assert not _exchange.myself().is_gone
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    assert _exchange.Member(_exchange._machine(), process.pid, "1").is_gone
    assert not _exchange.Member("elsewhere", process.pid, "1").is_gone
