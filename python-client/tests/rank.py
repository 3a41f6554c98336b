"""One rank of a process group, for the tests: what it does is a function of this module, named on the command line.

``rank.py FUNCTION ADDRESS WORLD_SIZE RENDEZVOUS [ARGUMENTS]``; ADDRESS may be ``private``.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import longshore

RUN = os.environ.get("TEST_RUN", "s3://bucket/run")


def full(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """The same numbers on every rank."""
    count = 1
    for extent in shape:
        count *= extent
    return torch.arange(count).reshape(shape).to(kind)


def state_of(world: int, *, zero: bool = False) -> dict[str, Any]:
    """A state whose tensors are dealt out in every way."""
    line = init_device_mesh("cpu", (world,))

    def dealt(tensor: torch.Tensor, mesh: Any, placements: list[Any]) -> DTensor:
        return distribute_tensor(torch.zeros_like(tensor) if zero else tensor, mesh, placements)

    model = {
        "rows": dealt(full(10, 6), line, [Shard(0)]),
        "columns": dealt(full(4, 9), line, [Shard(1)]),
        "copies": dealt(full(5, 5), line, [Replicate()]),
        "few": dealt(full(1, 3), line, [Shard(0)]),
        "none": dealt(full(0, 3), line, [Shard(0)]),
        "plain": torch.zeros(7) if zero else full(7),
        "bf16": dealt(full(300, 70, kind=torch.bfloat16), line, [Shard(0)]),
    }
    if world == 4:
        square = init_device_mesh("cpu", (2, 2))
        model["both"] = dealt(full(6, 8), square, [Shard(0), Shard(1)])
        model["half"] = dealt(full(6, 8), square, [Replicate(), Shard(1)])
        model["twice"] = dealt(full(9, 8), square, [Shard(0), Shard(0)])
    model["tied"] = model["rows"]
    moments = {name: {"exp_avg": value, "step": torch.tensor(0.0 if zero else 3.0)} for name, value in model.items()}
    return {"model": model, "optim": {"state": moments}, "epoch": 0 if zero else 5}


def check(state: dict[str, Any], world: int) -> None:
    """That a state holds what `state_of` makes."""
    wanted = state_of(world)
    for name, value in wanted["model"].items():
        for found in (state["model"][name], state["optim"]["state"][name]["exp_avg"]):
            local = found.to_local() if isinstance(found, DTensor) else found
            expected = value.to_local() if isinstance(value, DTensor) else value
            assert torch.equal(local, expected), name
        assert state["optim"]["state"][name]["step"] == 3
    assert state["epoch"] == 5


def save(rank: int, world: int, address: str | None, layout: Any = "auto") -> None:
    handle = longshore.save(state_of(world), RUN, step=1, layout=layout, address=address, wait="committed", timeout=120)
    assert (handle.rank, handle.world_size) == (rank, world)
    print(handle.attempt)


def load(rank: int, world: int, address: str | None) -> None:
    state = state_of(world, zero=True)
    # What only a world of 4 has was not saved by others.
    for name in ("both", "half", "twice"):
        state["model"].pop(name, None)
        state["optim"]["state"].pop(name, None)
    longshore.load(RUN, step=1, into=state, address=address).close()
    wanted = state_of(world)
    for name in state["model"]:
        local, expected = state["model"][name], wanted["model"][name]
        if isinstance(local, DTensor):
            local, expected = local.to_local(), expected.to_local()
        assert torch.equal(local, expected), (rank, name)
    assert state["epoch"] == 5


def load_all(rank: int, world: int, address: str | None) -> None:
    state = state_of(world, zero=True)
    longshore.load(RUN, step=1, into=state, address=address).close()
    check(state, world)


def fail_on_one(rank: int, world: int, address: str | None) -> None:
    """One rank has something that cannot be saved: all of them raise, none hangs."""
    state = {"a": torch.ones(3) if rank != 1 else torch.empty(3, device="meta")}
    refused(state, address, "meta")
    state = {"a": DTensor.from_local(torch.ones(3), init_device_mesh("cpu", (world,)), [Partial()])}
    refused(state, address, "Partial")


def refused(state: dict[str, Any], address: str | None, why: str) -> None:
    try:
        longshore.save(state, RUN, step=1, address=address, timeout=60)
    except longshore.InvalidArgument as error:
        print("refused" if why in str(error) else error)


def subgroup(rank: int, world: int, address: str | None) -> None:
    """Ranks 1 and 2 of three save together."""
    group = dist.new_group([1, 2])
    if rank in (1, 2):
        state = {"mine": {str(rank): torch.full((3,), rank)}}
        handle = longshore.save(state, RUN, step=2, group=group, address=address, wait="committed", timeout=60)
        assert (handle.rank, handle.world_size) == (rank - 1, 2)
    else:
        try:
            longshore.save({}, RUN, step=2, group=group, address=address)
        except longshore.InvalidArgument:
            print("not in it")


def die(rank: int, world: int, address: str | None, timeout: str) -> None:
    """Rank 1 ends after the plan, before it has copied anything."""
    from longshore import _save

    if rank == 1:
        vars(_save)["stage"] = lambda *_, **__: os._exit(7)
    handle = longshore.save({str(rank): torch.ones(10)}, RUN, step=1, address=address, timeout=float(timeout))
    start = time.monotonic()
    try:
        handle.result(120)
    except longshore.Error as error:
        print(f"{error.code}: {error} after {time.monotonic() - start:.0f} s")


def fork(world: int, meeting: str, run: Callable[[int], None]) -> None:
    """Forks the ranks, so that the packages are imported once, and prints how each ended."""
    # Ranks of a node, as torchrun tells them.
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    torch.set_num_threads(1)
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            for fd, kind in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{meeting}.{rank}.{kind}", os.O_WRONLY | os.O_CREAT), fd)
            code = 1
            try:
                dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
                run(rank)
                code = 0
            except BaseException:  # noqa: BLE001 - the test shows it
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(pid)
    for pid in children:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def main() -> int:
    name, given, size, meeting, *arguments = sys.argv[1:]
    world, address = int(size), None if given == "private" else given

    def run(rank: int) -> None:
        globals()[name](rank, world, address, *arguments)
        if name != "die":
            dist.barrier()
            dist.destroy_process_group()

    fork(world, meeting, run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
