"""Cases of an S3-compatible origin: without a cache, and through one that is empty."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from speed import loads
from speed.bench import Bench
from speed.loads import LONGSHORE_NOTE, MODEL, REGION_NOTE
from speed.nodes import BUCKET, PACE, WORKER_MEMORY_EMPTY_BYTES
from speed.rounds import Entry
from speed.rows import LONGSHORE, OVER_TCP

NO_CACHE = "has no cache between the process and the origin"


def origin(is_paced: bool) -> Callable[[Bench, ExitStack], list[Entry]]:
    """An S3-compatible origin without a cache, and through one that is empty."""

    def make(bench: Bench, stack: ExitStack) -> list[Entry]:
        assert bench.model
        store = bench.origin(stack, *(PACE if is_paced else []))
        suffix, threads = ("-paced", 16) if is_paced else ("", bench.options.threads)
        agent = bench.limits(stack)
        objects = [
            {"path": f"/{BUCKET}/model/{Path(path).name}", "bytes": Path(path).stat().st_size} for path in bench.weights
        ]
        every = 2 if is_paced else 1
        warm = "each into one warm buffer over and over"
        kept = "into memory that was touched before and keeps all of the bytes"
        # Memory is not what anything waits for that reads from the slow store.
        ways = [("limit/get-paced", "get", warm)] if is_paced else []
        ways = ways or [("limit/get", "get", warm), ("limit/get-kept", "get-kept", kept)]
        entries = []
        for case, way, where in ways:
            get = functools.partial(agent.call, way, 180, address=store.address, objects=objects, threads=threads)
            note = f"{threads} connections, ranges of 16 MiB, {where}"
            entries.append(loads.limit_entry(bench, case, "raw GET", note, get))
            entries[-1].every = every
        limit = (entries[-1].case, "raw GET")
        more: dict[str, object] = {"limit": limit, "every": every, "cache_state": "no cache"}
        bare = bench.node(stack, "bare", store.environment).start()
        direct = f"origin/direct{suffix}"
        row = Entry(direct, "longshore", "GB/s", None, "no cache", limit=limit, every=every)
        prefaulted = None if is_paced else loads.start_prefaulted(bench, stack, store.environment)
        entries += loads.own_entries(bench, bare, prefaulted, MODEL, row)
        peers = bench.peers(stack, "s3", store.environment)
        entries += loads.peer_entries(bench, direct, peers, MODEL, None, **more)
        empty = f"origin/empty-cache{suffix}"
        for subject, is_unix, where in [
            (LONGSHORE, True, "a worker on the same host, by its unix socket"),
            (OVER_TCP, False, "a worker over TCP"),
        ]:
            cold = bench.node(stack, "cold", store.environment).start(1, is_unix, WORKER_MEMORY_EMPTY_BYTES)
            load = loads.longshore_load(bench, cold, MODEL, settles=True, names=subject)
            note = f"{LONGSHORE_NOTE}, through {where}; CPU includes what the worker writes afterwards"
            own = Entry(empty, subject[0], "GB/s", load, "empty cache", note, limit, every, {subject[1]: REGION_NOTE})
            own.before = functools.partial(cold.free, MODEL)
            entries.append(own)
        return entries + loads.cannot(bench, empty, "GB/s", NO_CACHE)

    return make
