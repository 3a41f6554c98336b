"""Correctness, before anything is timed: every byte where it belongs, and memory that behaves as the documents say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent import Agent
from cases import LONGSHORE
from context import DEVICE, Context, remove
from daemons import Failed
from report import FAILED, NOT_MEASURED, Row

MIB = 1 << 20
#: Of the model that the checks of sharing use.
SHARED_BYTES = 200 * MIB


def files_of(folder: Path) -> list[str]:
    """The safetensors files of a model."""
    return sorted(str(path) for path in folder.rglob("*.safetensors"))


def equal(agent: Agent, files: list[str], seconds: float = 120) -> dict[str, Any]:
    """Compares what an agent holds with the files, byte for byte on the CPU."""
    found = agent.call("compare", files=files, seconds=seconds)
    if found["wrong_count"]:
        raise Failed(f"{found['wrong_count']} tensors differ: {'; '.join(found['wrong'])}")
    return found


def on_the_device(ctx: Context, agent: Agent) -> None:
    """On a card, tensors must be on it: a load that quietly ended in host memory is wrong."""
    where = agent.call("where")["devices"]
    if where != (["cpu"] if ctx.fake else [DEVICE]):
        raise Failed(f"the tensors are on {where}, not on {DEVICE}")


def run(ctx: Context) -> None:
    """All checks that need a node, over one with little page-locked memory."""
    memory, pinned = 2 * ctx.sizes.staging_bytes + 256 * MIB, ctx.sizes.staging_bytes
    with (
        ctx.agent("checks") as agent,
        ctx.agent("checks", "second") as second,
        ctx.agent("checks", "writer") as writer,
        ctx.node("checks", memory=memory, pinned_memory=pinned),
    ):
        shared = ctx.memory_folder / "shared"
        size = min(SHARED_BYTES, ctx.sizes.model_bytes // 2)
        made = ctx.bench("model", shared, "--size", size, "--tensors", 30, "--files", 2, "--seed", 3)
        count = json.loads(made)["tensors"]
        ctx.step(["check/every-dtype"], 60, lambda: every_dtype(ctx, agent))
        ctx.step(["check/side-files"], 30, lambda: side_files(ctx, agent, shared))
        ctx.step(["check/writable-copy"], 45, lambda: writable_copy(ctx, agent, second, shared, count))
        ctx.step(["check/read-only"], 45, lambda: read_only(ctx, agent, writer, shared))
        ctx.step(["check/tensor-parallel"], 45, lambda: tensor_parallel(ctx, agent, shared))
        ctx.step(["check/segments"], 60, lambda: segments(ctx, agent))
        ctx.step(["check/visible-devices"], 45, lambda: visible_devices(ctx, shared))
        remove(shared)
    ctx.step(["check/memory-outlives-creator"], 60, lambda: outlives(ctx))


def every_dtype(ctx: Context, agent: Agent) -> None:
    folder = ctx.memory_folder / "every-dtype"
    subprocess.run(
        [ctx.program("modelgen"), "every-dtype", folder, "--shards", "3"], check=True, capture_output=True, timeout=60
    )
    loaded = agent.call("load", uri=str(folder))
    on_the_device(ctx, agent)
    found = equal(agent, files_of(folder))
    agent.call("unload", uri=str(folder))
    remove(folder)
    ctx.passed(
        "check/every-dtype", LONGSHORE, f"{found['tensors']} tensors on {loaded['device']}", found["tensors"], "tensors"
    )


def side_files(ctx: Context, agent: Agent, folder: Path) -> None:
    agent.call("load", uri=str(folder))
    found = bytes.fromhex(agent.call("files", name="config.json")["hex"])
    if found != (folder / "config.json").read_bytes():
        raise Failed("config.json has other bytes than the file")
    ctx.passed("check/side-files", LONGSHORE, f"config.json, {len(found)} bytes")


def writable_copy(ctx: Context, agent: Agent, second: Agent, folder: Path, count: int) -> None:
    files = files_of(folder)
    agent.call("load", uri=str(folder))
    second.call("load", uri=str(folder), writable=True)
    on_the_device(ctx, second)
    equal(second, files)
    second.call("write", name="model.norm.weight")
    changed = second.call("compare", files=files)["wrong_count"]
    if changed != 1:
        raise Failed(f"a write to one tensor of the copy changed {changed}")
    equal(agent, files)
    second.call("drop")
    ctx.passed("check/writable-copy", LONGSHORE, f"{count} tensors; one written in the copy, none in the shared memory")


def read_only(ctx: Context, agent: Agent, writer: Agent, folder: Path) -> None:
    """The writer is a process of its own: its context may not survive."""
    files = files_of(folder)
    agent.call("load", uri=str(folder))
    writer.call("load", uri=str(folder))
    try:
        writer.call("write", name="model.norm.weight")
        seen = ""
    except Failed as error:
        seen = str(error)
    equal(agent, files)
    if not seen:
        raise Failed("the write went through without an error; other clients' bytes are unchanged")
    again = agent.call("load", uri=str(folder))
    if not again["reattached"]:
        raise Failed("the write cost the model")
    agent.call("unload", uri=str(folder))
    # A process that ended says nothing more; one that goes on tells the driver's reason.
    short = seen.splitlines()[0].split(": ", 1)[0 if " ended with " in seen else 1][:200]
    ctx.passed(
        "check/read-only", LONGSHORE, f"the writer got: {short}. Other clients and the loader go on, bytes unchanged"
    )


def tensor_parallel(ctx: Context, agent: Agent, folder: Path) -> None:
    files, world = files_of(folder), 2
    long = json.loads((folder / "config.json").read_text())["hidden_size"] * 7 // 2
    for rank in range(world):
        agent.call("load", uri=str(folder), rank=rank, world=world, long=long)
        on_the_device(ctx, agent)
        found = agent.call("slices", files=files, rank=rank, world=world)
        if found["wrong_count"]:
            raise Failed(f"rank {rank}: {found['wrong_count']} slices differ: {'; '.join(found['wrong'])}")
    agent.call("unload", uri=str(folder))
    ctx.passed("check/tensor-parallel", LONGSHORE, f"{world} ranks, {found['tensors']} tensors each")


def segments(ctx: Context, agent: Agent) -> None:
    seen = []
    for number, size in enumerate(ctx.sizes.segment_bytes):
        folder = ctx.memory_folder / f"segments-{number}"
        ctx.bench("model", folder, "--size", size, "--tensors", 100, "--files", 2, "--seed", 10 + number)
        try:
            agent.call("load", uri=str(folder))
            found = equal(agent, files_of(folder))
            agent.call("unload", uri=str(folder))
        finally:
            remove(folder)
        seen.append(f"{found['bytes'] / 1e9:.2f} GB")
    ctx.passed("check/segments", LONGSHORE, f"models of {', '.join(seen)}, every byte", len(seen))


def visible_devices(ctx: Context, folder: Path) -> None:
    count = ctx.report.facts.get("devices", 1)
    if count < 2:
        note = "not measured: there is one GPU"
        ctx.report.add(Row("check/visible-devices", LONGSHORE, NOT_MEASURED, note=note))
        return
    order = ",".join(str(number) for number in reversed(range(count)))
    with ctx.agent("checks", "reordered", {"CUDA_VISIBLE_DEVICES": order}) as agent:
        agent.call("load", uri=str(folder))
        equal(agent, files_of(folder))
        used = agent.call("devices")
        agent.call("unload", uri=str(folder))
    last = f"cuda:{count - 1}"
    if [name for name, size in used.items() if name.startswith("cuda:") and size] != [last]:
        raise Failed(f"with CUDA_VISIBLE_DEVICES={order} the client's cuda:0 is not the loader's {last}: {used}")
    ctx.passed(
        "check/visible-devices", LONGSHORE, f"CUDA_VISIBLE_DEVICES={order}: the client's cuda:0 is the loader's {last}"
    )


def outlives(ctx: Context) -> None:
    """A question about the driver, not about Longshore: the design works with either answer."""
    size = 8 * MIB if ctx.fake else 2 << 30
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("outlive.py"), str(size)],
        capture_output=True, text=True, env=ctx.environment, timeout=60,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"the processes failed: {done.stderr[-300:].strip()}")
    found = json.loads(done.stdout)
    note = (
        "memory made without a context: yes; bytes there after the creator was killed: "
        f"{'yes' if found['kept'] else 'no'}; "
        f"{found['taken_while_held'] / MIB:.0f} MiB taken while only the descriptor was left, "
        f"{found['taken_after_close'] / MIB:.0f} MiB after it was closed"
    )
    if found["written"] and found["kept"]:
        ctx.passed("check/memory-outlives-creator", "driver", note)
    else:
        ctx.report.add(Row("check/memory-outlives-creator", "driver", FAILED, note=note))
