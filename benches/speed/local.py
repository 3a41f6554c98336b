"""Cases of files on this machine's disk: in the page cache or not, and into memory that was touched or not."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from daemons import Failed

from speed import loads
from speed.agents import clean_environment
from speed.bench import Bench, Peer
from speed.rounds import Entry


def fio(bench: Bench) -> dict[str, float]:
    """Sequential reads past the page cache of the model's files, eight of 4 MiB in flight."""
    command = [
        "fio", "--name=r", "--rw=read", "--bs=4M", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--readonly",
        f"--filename={':'.join(bench.weights)}", "--file_service_type=sequential", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if done.returncode != 0:
        raise Failed(f"fio: {done.stderr.strip()[-200:]}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    seconds = job["read"]["runtime"] / 1000 * bench.model_bytes / job["read"]["io_bytes"]
    return {"seconds": seconds, "cpu_seconds": (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds}


def local(bench: Bench, stack: ExitStack) -> list[Entry]:
    """Files on this machine's disk, in the page cache and not."""
    folder, model = bench.model, str(bench.model)
    names = ["limit/memcpy", "limit/read-warm", "limit/read-kept", "limit/read", "limit/read-shared"]
    limits = loads.read_limits(bench, stack, names)
    environment = clean_environment()
    node = bench.node(stack, "bare", environment).start()
    prefaulted = loads.start_prefaulted(bench, stack, environment)
    peers = bench.peers(stack, "local", environment)
    kept_limit, cold_limit = ("limit/read-kept", "pread"), ("limit/fio", "fio")
    entries = [*limits.values()]
    entries.append(
        loads.limit_entry(bench, *cold_limit, "sequential O_DIRECT reads of 4 MiB, eight in flight", lambda: fio(bench))
    )
    for case, state, limit, prepare in [
        ("local/resident", "resident", kept_limit, loads.make_resident),
        ("local/cold", "cold", cold_limit, loads.drop_from_page_cache),
    ]:
        before = functools.partial(prepare, [folder])
        row = Entry(case, "longshore", "GB/s", None, state, limit=limit, before=before)
        entries += loads.own_entries(bench, node, prefaulted, model, row)

        def before_peer(peer: Peer, prepare: Callable[[Iterable[Path]], None] = prepare) -> None:
            prepare([folder, *peer.prepared_folders])

        entries += loads.peer_entries(bench, case, peers, model, before_peer, limit=limit, cache_state=state)
    return entries


def untouched(bench: Bench, stack: ExitStack) -> list[Entry]:
    """The resident load again, when nobody has touched memory for a while, as between two loads of a node."""
    folder, model, case = bench.model, str(bench.model), "local/untouched"
    limit = ("limit/read-kept", "pread")
    environment = clean_environment()
    node = bench.node(stack, "bare", environment).start()
    prefaulted = loads.start_prefaulted(bench, stack, environment)
    before = functools.partial(loads.make_resident, [folder])
    row = Entry(case, "longshore", "GB/s", None, "resident", limit=limit, before=before, rests=True, every=2)
    peers = bench.peers(stack, "local", environment)
    entries = loads.own_entries(bench, node, prefaulted, model, row)
    more: dict[str, object] = {"limit": limit, "cache_state": "resident", "rests": True, "every": 2}
    entries += loads.peer_entries(
        bench, case, peers, model, lambda peer: loads.make_resident([folder, *peer.prepared_folders]), **more
    )
    return [*loads.read_limits(bench, stack, ["limit/read-kept"]).values(), *entries]
