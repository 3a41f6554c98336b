"""The daemon is killed, again and again, under a client that reads all the time."""

from __future__ import annotations

import statistics
import time

from agent import Agent
from cases import READOPTED, READOPTED_LARGE
from context import Context
from daemons import Failed, Node
from report import MEASURED, Row, percentile
from rounds import LongshoreLoad

READ_BYTES = "longshore_loader_read_bytes_total"
#: What the whole step may take; fewer kills are said to be fewer.
SECONDS = 95
CASE = "gpu/kill-9"


def kills(ctx: Context, node: Node, page_locked: int) -> None:
    """Each time: kill -9, start, and wait until the loader knows the model again."""
    with ctx.agent("kills", "client") as client, ctx.agent("kills", "control") as control:
        load = LongshoreLoad(node, client, str(ctx.model["folder"]))
        if "fingerprint" in ctx.model:
            load.again(ctx.model["fingerprint"])
        else:
            load.first(ctx.model["files"])
        model_id = load.last["model_id"]
        control.call("ready", seconds=120)
        client.call("watch")
        seconds, moved, late = [], 0.0, 0
        begun = time.monotonic()
        for _ in range(ctx.sizes.kills):
            if time.monotonic() - begun > SECONDS or node.loader is None:
                break
            node.loader.kill()
            start = time.monotonic()
            node.start_loader(wait=False)
            back = control.call("wait_for_model", model_id=model_id, within=20)["at"]
            seconds.append(back - start)
            late += back - start > 1
            moved += _moved(node)
        watched = client.call("watched")
        same = client.call("fingerprint", seconds=60)["fingerprint"] == load.fingerprint
        again = control.call("load", uri=load.uri)
        control.call("drop")
        client.call("disconnect")
        client.call("unload", uri=load.uri)
        failed = watched["wrong"] + len(watched["errors"]) + (not same) + (not again["reattached"])
        note = (
            f"{len(seconds)} kills; p50 {statistics.median(seconds) * 1e3:.0f} ms from the start of the new process; "
            f"the largest {max(seconds) * 1e3:.0f} ms; {late} took more than 1 s; "
            f"{page_locked / 1e9:.1f} GB page-locked at each start"
        )
        ctx.report.add(
            Row(
                CASE,
                READOPTED,
                MEASURED,
                value=percentile(seconds, 0.99),
                unit="s (p99)",
                limit=1.0,
                ratio_to_limit=percentile(seconds, 0.99),
                runs=len(seconds),
                min=min(seconds),
                max=max(seconds),
                cache_state="on the GPU",
                command=ctx.command,
                note=note,
            ),
            Row(
                CASE,
                "wrong or failed reads of clients",
                MEASURED,
                value=failed,
                unit="reads",
                runs=watched["reads"],
                command=ctx.command,
                note=f"of {watched['reads']} reads meanwhile; all bytes {'as before' if same else 'CHANGED'}; a load "
                f"afterwards {'attached' if again['reattached'] else 'moved bytes again'}",
            ),
            Row(CASE, "bytes moved", MEASURED, value=moved, unit="bytes", runs=len(seconds), command=ctx.command),
        )


def once(ctx: Context, node: Node, control: Agent, load: LongshoreLoad, page_locked: int) -> None:
    """One kill of a loader that locks much memory when it starts."""
    if node.loader is None:
        raise Failed("there is no loader")
    node.loader.kill()
    start = time.monotonic()
    node.start_loader(wait=False)
    back = control.call("wait_for_model", model_id=load.last["model_id"], within=60, seconds=70)["at"] - start
    note = f"{page_locked / 1e9:.1f} GB page-locked at the start; from the start of the new process"
    ctx.report.add(
        Row(
            CASE,
            READOPTED_LARGE,
            MEASURED,
            value=back,
            unit="s",
            limit=1.0,
            ratio_to_limit=back,
            runs=1,
            min=back,
            max=back,
            cache_state="on the GPU",
            command=ctx.command,
            note=note,
        )
    )


def _moved(node: Node) -> float:
    """What the new loader read; once it answers."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return node.metric(READ_BYTES)
        except Failed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
