"""How long a process waits for a model that is loaded already."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from agent import Agent
from context import DEVICE, Context
from daemons import Failed, Node
from report import MEASURED, Row, percentile
from rounds import LongshoreLoad

READ_BYTES = "longshore_loader_read_bytes_total"
NEW_PROCESS_SECONDS = 50
WARM_UP = 5


def _row(ctx: Context, subject: str, seconds: list[float], tensors: int, note: str) -> Row:
    milliseconds = [each * 1e3 for each in seconds]
    p50, p99 = statistics.median(milliseconds), percentile(milliseconds, 0.99)
    return Row(
        "gpu/attach",
        subject,
        MEASURED,
        value=p99,
        unit="ms (p99)",
        limit=50.0,
        ratio_to_limit=p99 / 50.0,
        runs=len(seconds),
        min=min(milliseconds),
        max=max(milliseconds),
        cache_state="on the GPU",
        command=ctx.command,
        note=f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; {tensors} tensors; {note}",
    )


def attach(ctx: Context, node: Node, agent: Agent, load: LongshoreLoad) -> None:
    """Over and over in one process, then once in each of many new ones."""
    last = load.last
    before = node.metric(READ_BYTES)
    place = {"model_id": last["model_id"], "attach_socket": last["attach_socket"]}
    agent.call("attaches", **place, count=WARM_UP)
    seconds = agent.call("attaches", **place, count=ctx.sizes.attaches)["seconds"]
    gigabytes = last["bytes"] / 1e9
    note = f"{gigabytes:.1f} GB; from the call to all torch tensors, synchronised"
    ctx.report.add(_row(ctx, "same process", seconds, last["tensors"], note))

    script = Path(__file__).with_name("new_process.py")
    words = [last["model_id"], last["attach_socket"], str(ctx.sizes.new_processes), DEVICE, str(NEW_PROCESS_SECONDS)]
    done = subprocess.run(
        [sys.executable, script, *words],
        capture_output=True,
        text=True,
        env=ctx.environment,
        timeout=NEW_PROCESS_SECONDS + 40,
    )
    if done.returncode != 0:
        raise Failed(f"new processes: {done.stderr[-400:].strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    contexts = statistics.median(each["context"] for each in found)
    note = (
        f"first attach of each process, after its CUDA context (which took {contexts * 1e3:.0f} ms and is not counted)"
    )
    seconds = [each["attach"] for each in found]
    ctx.report.add(_row(ctx, "new process", seconds, int(found[0]["tensors"]), note))

    moved = node.metric(READ_BYTES) - before
    ctx.report.add(
        Row(
            "gpu/attach-bytes",
            "longshore",
            MEASURED,
            value=moved,
            unit="bytes",
            runs=WARM_UP + ctx.sizes.attaches + len(found),
            command=ctx.command,
            note=f"{READ_BYTES} before and after",
        )
    )
