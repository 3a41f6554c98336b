"""Cases of workers that have the model: on this host, and 1 to 8 over TCP."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack

from daemons import Failed

from speed import loads
from speed.bench import Bench
from speed.loads import MODEL
from speed.nodes import Node
from speed.rounds import Entry
from speed.rows import REGION

NO_WORKERS = "has no cache that other processes or machines share"


def worker(bench: Bench, stack: ExitStack) -> list[Entry]:
    """A worker that has the model, on this host and over TCP."""
    assert bench.model
    origin = bench.origin(stack)
    limits = loads.read_limits(bench, stack, ["limit/read-warm", "limit/read-shared", "limit/tcp"])
    entries = [*limits.values()]
    for case, is_unix, limit in [
        ("worker/same-host", True, ("limit/read-chunks-kept", "pread")),
        ("worker/tcp", False, ("limit/tcp", "sendfile to recv")),
    ]:
        node = bench.node(stack, "worker", origin.environment).start(1, is_unix)
        node.command("warm", MODEL)
        node.settle()
        before = functools.partial(loads.make_resident, [node.folder])
        if is_unix:
            entries += chunk_files(bench, stack, node, before)
        prefaulted = loads.start_prefaulted(bench, stack, origin.environment, node)
        row = Entry(case, "longshore", "GB/s", None, "on the worker's disk, resident", limit=limit, before=before)
        entries += loads.own_entries(bench, node, prefaulted, MODEL, row)
        entries += loads.cannot(bench, case, "GB/s", NO_WORKERS)
    return entries


def chunk_files(bench: Bench, stack: ExitStack, node: Node, before: Callable[[], None]) -> list[Entry]:
    """The plain reads of what a worker has on its disk."""
    files = [str(path) for path in sorted((node.folder / "worker-0" / "cache" / "chunks").rglob("*")) if path.is_file()]
    size = sum(os.path.getsize(path) for path in files)
    if size < bench.model_bytes:
        raise Failed(f"the worker's chunk files have {size} bytes, the model {bench.model_bytes}")
    agent = bench.limits(stack)
    warm = "two threads read the worker's chunk files, each into one warm buffer of 16 MiB over and over"
    return [
        loads.limit_entry(
            bench, case, "pread", note, functools.partial(agent.call, way, 120, files=files, threads=2), before=before
        )
        for case, way, note in [
            ("limit/read-chunks", "read-warm", warm),
            ("limit/read-chunks-kept", "read-kept", loads.KEPT_NOTE.format("worker's chunk files")),
        ]
    ]


def scaling(count: int) -> Callable[[Bench, ExitStack], list[Entry]]:
    """So many workers on this machine, over TCP: a group for each number, since all need memory."""

    def make(bench: Bench, stack: ExitStack) -> list[Entry]:
        assert bench.model
        origin = bench.origin(stack)
        limits = loads.read_limits(bench, stack, ["limit/tcp"])
        node = bench.node(stack, f"workers-{count}", origin.environment).start(count)
        those = "one worker has" if count == 1 else f"{count} workers share"
        note = f"{those} the model; workers, loader and client share the cores of this machine"
        limit, along = ("limit/tcp", "sendfile to recv"), {REGION: loads.REGION_NOTE}
        before = functools.partial(loads.make_resident, [node.folder])
        state, load = "on the workers' disks, resident", loads.longshore_load(bench, node, MODEL)
        case = f"worker/tcp-{count}"
        own = Entry(case, "longshore", "GB/s", load, state, note, limit, along=along, before=before)
        return [*limits.values(), own]

    return make
