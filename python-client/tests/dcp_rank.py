"""One rank of a process group, for the tests of torch.distributed.checkpoint: functions named on the command line.

``dcp_rank.py FUNCTION[,FUNCTION...] ADDRESS WORLD_SIZE RENDEZVOUS RUN``; they run one after the other.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
from rank import fork, full
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import longshore
from longshore.torch.checkpoint import LongshoreReader, LongshoreStager, LongshoreWriter, save

# It does not say what it exports.
dcp: Any = importlib.import_module("torch.distributed.checkpoint")

ADDRESS, RUN = "", ""
RANK, WORLD = 0, 1


def dealt(tensor: torch.Tensor, placements: list[Any], mesh: Any, *, zero: bool) -> DTensor:
    return distribute_tensor(torch.zeros_like(tensor) if zero else tensor, mesh, placements)


def state_of(*, zero: bool = False) -> dict[str, Any]:
    """A nested state whose tensors are dealt out in every way that any number of ranks has."""
    line = init_device_mesh("cpu", (WORLD,))
    model = {
        "rows": dealt(full(10, 6), [Shard(0)], line, zero=zero),
        "columns": dealt(full(4, 9), [Shard(1)], line, zero=zero),
        "copies": dealt(full(5, 5), [Replicate()], line, zero=zero),
        "few": dealt(full(1, 3), [Shard(0)], line, zero=zero),
        "none": dealt(full(0, 3), [Shard(0)], line, zero=zero),
        "plain": torch.zeros(7) if zero else full(7),
        "strided": torch.zeros(8, 6).t() if zero else full(8, 6).t(),
        "scalar": torch.tensor(0.0 if zero else 2.5),
        "bf16": dealt(full(300, 70, kind=torch.bfloat16), [Shard(0)], line, zero=zero),
        "fp8": torch.zeros(16, 4).to(torch.float8_e4m3fn) if zero else full(16, 4).to(torch.float8_e4m3fn),
    }
    optim = {
        "state": {
            0: {"exp_avg": dealt(full(10, 6), [Shard(0)], line, zero=zero), "step": torch.tensor(0.0 if zero else 3.0)}
        },
        "param_groups": [{"lr": 0.0 if zero else 0.1, "betas": (0.0, 0.0) if zero else (0.9, 0.999), "params": [0]}],
    }
    return {
        "model": model,
        "optim": optim,
        "epoch": 0 if zero else 5,
        "mixed": [torch.zeros(2) if zero else full(2), {"deep": 0 if zero else 9}],
    }


def local(value: Any) -> torch.Tensor:
    tensor = value.to_local() if isinstance(value, DTensor) else value
    assert isinstance(tensor, torch.Tensor)
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def check(found: dict[str, Any]) -> None:
    """That a state holds what `state_of` makes."""
    wanted = state_of()
    for name, value in wanted["model"].items():
        assert torch.equal(local(found["model"][name]), local(value)), (RANK, name)
    assert torch.equal(local(found["optim"]["state"][0]["exp_avg"]), local(wanted["optim"]["state"][0]["exp_avg"]))
    assert found["optim"]["state"][0]["step"] == 3
    assert found["optim"]["param_groups"] == wanted["optim"]["param_groups"]
    assert found["epoch"] == 5
    assert torch.equal(found["mixed"][0], full(2))
    assert found["mixed"][1]["deep"] == 9


def writer(step: int | None = None, **options: Any) -> LongshoreWriter:
    return LongshoreWriter(None if step is None else RUN, step=step, address=ADDRESS, timeout=60, **options)


# ---- what ranks do


def save_sync() -> None:
    made = writer()
    metadata = dcp.save(state_of(), checkpoint_id=f"longshore+{RUN}/step-1", storage_writer=made)
    assert metadata.state_dict_metadata["model.rows"].size == (10, 6)
    assert made.handle is not None
    if RANK == 0:
        assert made.handle.committed.done(), "the coordinator has waited for it"
    # The same step again: nobody overwrites what is committed.
    try:
        dcp.save(state_of(), checkpoint_id=f"{RUN}/step-1", storage_writer=made)
    except dcp.CheckpointException as error:
        failures = [each for each, _ in error.failures.values()]
    else:
        raise AssertionError("saved twice")
    assert all(isinstance(each, longshore.FailedPrecondition) for each in failures), failures
    assert "committed already" in str(failures[0])


def load_sync() -> None:
    state = state_of(zero=True)
    dcp.load(state, checkpoint_id=f"{RUN}/step-1", storage_reader=LongshoreReader(address=ADDRESS))
    check(state)


def load_of_save() -> None:
    """What `longshore.save` wrote, with torch's API."""
    state = state_of()
    longshore.save(state, RUN, step=2, address=ADDRESS, wait="committed", timeout=60)
    state = state_of(zero=True)
    dcp.load(state, storage_reader=LongshoreReader(RUN, step=2, address=ADDRESS))
    check(state)


def load_in_place() -> None:
    """With `longshore.load`, what torch's API saved."""
    state, wanted = state_of(zero=True)["model"], state_of()["model"]
    longshore.load(RUN, step=1, into=dict(state), address=ADDRESS).close()
    for name in state:
        assert torch.equal(local(state[name]), local(wanted[name])), (RANK, name)


def save_threads() -> None:
    """`async_save` in a thread: staged in slabs, and with the target known too late for that."""
    state = state_of()
    made = writer(3)
    future = dcp.async_save(state, storage_writer=made)
    spoil(state)
    future.result()
    assert made.handle is not None
    made.handle.result(60)
    check_step(3)
    made.aim(RUN, 4)
    future = dcp.async_save(state_of(), storage_writer=made)
    future.result()
    check_step(4)
    state = state_of()
    future = dcp.async_save(state, checkpoint_id=f"{RUN}/step-5", storage_writer=writer())
    spoil(state)
    future.result()
    check_step(5)
    # Two objects.
    stager = LongshoreStager(RUN, step=6, address=ADDRESS)
    future = dcp.async_save(state_of(), storage_writer=writer(), async_stager=stager)
    future.result()
    check_step(6)


def save_processes() -> None:
    """`async_save` in a process: the copy is made before it returns, and the process waits for the commit."""
    kind = AsyncCheckpointerType.PROCESS
    state = state_of()
    future = dcp.async_save(state, storage_writer=writer(7), async_checkpointer_type=kind)
    spoil(state)
    metadata = future.result()
    assert metadata.planner_data["optim.state.0.step"] == ("optim", "state", "0", "step")
    check_step(7)
    plain: dict[str, Any] = {"model": {"a": full(1000), "b": full(9)}, "epoch": 4}
    future = dcp.async_save(plain, checkpoint_id=f"{RUN}/step-8", storage_writer=writer(), async_checkpointer_type=kind)
    plain["model"]["a"].zero_()
    future.result()
    found: dict[str, Any] = {"model": {"a": torch.zeros(1000)}, "epoch": 0}
    dcp.load(found, checkpoint_id=f"{RUN}/step-8", storage_reader=LongshoreReader(address=ADDRESS))
    assert torch.equal(found["model"]["a"], full(1000))
    assert found["epoch"] == 4


def spoil(state: dict[str, Any]) -> None:
    for value in (*state["model"].values(), state["mixed"][0]):
        local(value).zero_()


def check_step(step: int) -> None:
    state = state_of(zero=True)
    dcp.load(state, checkpoint_id=f"{RUN}/step-{step}", storage_reader=LongshoreReader(address=ADDRESS))
    check(state)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 20, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        made = self.head(hidden)
        assert isinstance(made, torch.Tensor)
        return made


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(20, (4, 8), generator=generator)
        model(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def fsdp_save() -> None:
    model, optimizer = trained(3)
    weights, moments = get_state_dict(model, optimizer)
    save({"model": weights, "optim": moments}, RUN, step=20, address=ADDRESS, layout="huggingface", timeout=60)
    save({"model": weights, "optim": moments}, RUN, step=21, address=ADDRESS, timeout=60)


def fsdp_load() -> None:
    """Goes on with the training, with another number of ranks: it ends as if it had not been interrupted."""
    for step in (20, 21):
        model, optimizer = trained(1)
        weights, moments = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": weights, "optim": moments}
        dcp.load(state, storage_reader=LongshoreReader(RUN, step=step, address=ADDRESS))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        wanted, other = trained(3)
        advance(model, optimizer, 2)
        advance(wanted, other, 2)
        for (name, found), expected in zip(model.named_parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(local(found), local(expected), msg=name)


def fail_on_one() -> None:
    """A rank that cannot write: all of them hear why, nothing is committed, and the next save works."""

    class Refuses:
        def __reduce__(self) -> Any:
            raise ValueError("this cannot be pickled")

    refused = {"model": {"a": full(100)}, "own": {f"rank-{RANK}": Refuses() if RANK == 1 else RANK}}
    heard = ""
    try:
        dcp.save(refused, checkpoint_id=f"{RUN}/step-30", storage_writer=writer())
    except dcp.CheckpointException as error:
        heard = str(error)
    assert "cannot be pickled" in heard, heard
    heard = ""
    try:
        dcp.async_save(refused, storage_writer=writer(30))
    except (longshore.Error, ValueError) as error:
        heard = str(error)
    assert "cannot be pickled" in heard, heard
    assert 30 not in [each.step for each in longshore.list(RUN, address=ADDRESS)]
    state = {"model": {"a": full(100)}, "own": {f"rank-{RANK}": RANK}}
    dcp.save(state, storage_writer=writer(30))
    found = {"own": {f"rank-{RANK}": -1}}
    dcp.load(found, storage_reader=LongshoreReader(RUN, step=30, address=ADDRESS))
    assert found["own"][f"rank-{RANK}"] == RANK


def save_again() -> None:
    dcp.save(state_of(), storage_writer=writer(9))


def load_again() -> None:
    check_step(9)
    check_step(7)


def die() -> None:
    """Rank 1 ends while the checkpoint is written."""
    from longshore.torch import _part

    made = writer(40)
    if RANK == 1:
        vars(_part)["begin"] = lambda *_, **__: os._exit(7)
    start = time.monotonic()
    try:
        dcp.save(state_of(), storage_writer=made)
    except Exception as error:  # noqa: BLE001 - what torch raises is torch's
        print(f"torch: {error}", file=sys.stderr)
    print(f"{made.failure.code}: {made.failure}" if made.failure is not None else "nothing", flush=True)
    print(f"after {time.monotonic() - start:.1f} s", flush=True)
    os._exit(0)


def main() -> None:
    names, address, size, meeting, url = sys.argv[1:]
    warnings.simplefilter("ignore")

    def run(rank: int) -> None:
        global ADDRESS, RUN, RANK, WORLD
        ADDRESS, RUN, RANK, WORLD = address, url, rank, int(size)
        os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
        faulthandler.enable()
        faulthandler.dump_traceback_later(160, exit=True)
        for name in names.split(","):
            start = time.monotonic()
            globals()[name]()
            print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)
        sys.stdout.flush()
        dist.barrier()
        dist.destroy_process_group()

    fork(int(size), meeting, run)


if __name__ == "__main__":
    main()
