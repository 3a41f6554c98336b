"""Cases that load one model: from a disk, from workers, from an origin."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from daemons import Failed

from speed.agents import GPU_ONLY
from speed.bench import Bench, Peer, sample_of
from speed.nodes import BUCKET, PACE, WORKER_MEMORY_EMPTY_BYTES, Node
from speed.rounds import Entry, Measured, Round
from speed.rows import Sample

MODEL = f"s3://{BUCKET}/model"
#: The same load up to the end of the loader's work: what the limits are limits of.
REGION = "longshore, host region"
#: A load by the client, and its part up to there.
LONGSHORE = ("longshore", REGION)
OVER_TCP = ("longshore, over TCP", f"{REGION}, over TCP")
REGION_NOTE = "the same load, as the loader reports it: until the shared memory is filled and verified"
LONGSHORE_NOTE = "a Python process: from the call until every page of the torch tensors is mapped"
NO_WORKERS = "has no cache that other processes or machines share"
NO_CACHE = "has no cache between the process and the origin"
THREADS = "limit/read-warm"


def limit_entry(
    bench: Bench,
    case: str,
    subject: str,
    note: str,
    work: Callable[[], dict[str, float]],
    *,
    before: Callable[[], object] | None = None,
) -> Entry:
    """A plain limit over the model's bytes."""

    def measure(_: Round) -> Measured:
        found = work()
        size = bench.model_bytes
        return Sample(found["seconds"], found.get("cpu_seconds"), size, size)

    return Entry(case, subject, "GB/s", measure, note=note, before=before)


def read_limits(bench: Bench, stack: ExitStack, names: Iterable[str]) -> dict[str, Entry]:
    """Those of files and loopback."""
    agent = bench.limits(stack)
    files, threads = bench.weights, bench.options.threads
    ask = functools.partial(agent.call, seconds=120, files=files)
    made = {
        "limit/read-warm": (
            "pread",
            "two threads read the files, each into one warm buffer of 16 MiB over and over",
            functools.partial(ask, "read-warm", threads=2),
        ),
        "limit/read": (
            "pread",
            "two threads read the files into fresh private memory with huge pages",
            functools.partial(ask, "read", threads=2),
        ),
        "limit/read-shared": (
            "pread",
            "two threads read the files into a fresh memfd, as any program must that shares the memory",
            functools.partial(ask, "read-shared", threads=2),
        ),
        "limit/tcp": (
            "sendfile to recv",
            f"loopback, {threads} connections, each into one warm buffer of 16 MiB over and over",
            functools.partial(ask, "tcp", threads=threads),
        ),
        "limit/memcpy": (
            "memcpy",
            "one thread copies between two buffers of 16 MiB that were touched before",
            functools.partial(agent.call, "memcpy", seconds=60, bytes=bench.model_bytes),
        ),
    }
    before = functools.partial(make_resident, [bench.model])
    return {name: limit_entry(bench, name, *made[name], before=before) for name in names}


def drop_from_page_cache(folders: Iterable[Path]) -> None:
    """Files that are on the disk, and nowhere else then."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_resident(folders: Iterable[Path]) -> None:
    """Reads files once, so that the page cache has them."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.read(16 << 20):
                        pass


def longshore_load(
    bench: Bench,
    node: Node,
    model: str,
    *,
    settles: bool = False,
    names: tuple[str, str] = LONGSHORE,
) -> Callable[[Round], Measured]:
    """A load by the client, and by the loader alone."""

    def measure(number: Round) -> Measured:
        cpu = node.cpu_seconds()
        client = node.client()
        with bench.watched() as windows:
            answer = client.call("load", 180, model=model, verify=number.number == 0)
            check(bench, answer, model)
            if answer["reattached"] or answer["fallbacks"]:
                raise Failed(f"not a plain load: reattached {answer['reattached']}, fallbacks {answer['fallbacks']}")
            whole = sample_of(answer)
            timed_end = answer["begin"] + answer["seconds"]
            windows.append((answer["begin"], timed_end, True))
            region_cpu = answer["daemon_cpu_seconds"]
            if settles:
                # What the worker still writes is part of the price, in CPU if not in time.
                node.settle()
                windows.append((timed_end, time.monotonic(), False))
                behind = node.cpu_seconds() - cpu - region_cpu
                whole.cpu_seconds = (whole.cpu_seconds or 0) + behind
                region_cpu += behind
        region = Sample(answer["loader_seconds"], region_cpu, whole.size_bytes, whole.size_bytes, whole.steps)
        return {names[0]: whole, names[1]: region}

    return measure


def check(bench: Bench, answer: dict[str, object], model: str) -> None:
    """All subjects must have loaded what the files hold."""
    digest = answer.get("digest")
    if digest and model in (MODEL, str(bench.model)) and digest != bench.digest:
        raise Failed("loaded other bytes than the files hold")


def peer_entries(
    bench: Bench, case: str, peers: list[Peer], model: str, before: Callable[[Peer], None] | None = None, **more: object
) -> list[Entry]:
    """A load by each peer."""
    made = []
    for peer in peers:

        def measure(number: Round, peer: Peer = peer) -> Measured:
            answer = peer.load(model, number.number == 0)
            check(bench, answer, model)
            return sample_of(answer)

        entry = Entry(case, peer.subject, "GB/s", None if peer.why_not or peer.error else measure)
        entry.why_not, entry.error = peer.why_not, peer.error
        entry.before = None if before is None else functools.partial(before, peer)
        if entry.measure is not None:
            try:
                entry.note = peer.prepare(model).removeprefix("nothing to prepare")
            except (Failed, OSError) as error:
                entry.measure, entry.error = None, f"could not be prepared: {error}"
        for name, value in more.items():
            setattr(entry, name, value)
        made.append(entry)
    return made + [Entry(case, name, "GB/s", None, why_not=why) for name, why in GPU_ONLY.items()]


def cannot(bench: Bench, case: str, unit: str, why: str) -> list[Entry]:
    """A row of every peer that says why there is nothing."""
    from speed.agents import PEERS

    return [Entry(case, PEERS[name], unit, None, why_not=why) for name in bench.options.peers]


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
    limits = read_limits(bench, stack, ["limit/memcpy", "limit/read-warm", "limit/read", "limit/read-shared"])
    node = bench.node(stack, "bare", clean_of_s3()).start()
    peers = bench.peers(stack, "local", clean_of_s3())
    warm_limit, cold_limit = (THREADS, "pread"), ("limit/fio", "fio")
    entries = [*limits.values()]
    entries.append(
        limit_entry(bench, *cold_limit, "sequential O_DIRECT reads of 4 MiB, eight in flight", lambda: fio(bench))
    )
    along = {REGION: REGION_NOTE}
    load = longshore_load(bench, node, model)
    for case, state, limit, prepare in [
        ("local/resident", "resident", warm_limit, make_resident),
        ("local/cold", "cold", cold_limit, drop_from_page_cache),
    ]:
        before = functools.partial(prepare, [folder])
        entries.append(Entry(case, "longshore", "GB/s", load, state, LONGSHORE_NOTE, limit, along=along, before=before))

        def before_peer(peer: Peer, prepare: Callable[[Iterable[Path]], None] = prepare) -> None:
            prepare([folder, *peer.prepared_folders])

        entries += peer_entries(bench, case, peers, model, before_peer, limit=limit, cache_state=state)
    return entries


def clean_of_s3() -> dict[str, str]:
    """The environment of subjects that read files."""
    from speed.agents import clean_environment

    return clean_environment()


def worker(bench: Bench, stack: ExitStack) -> list[Entry]:
    """A worker that has the model, on this host and over TCP."""
    assert bench.model
    origin = bench.origin(stack)
    limits = read_limits(bench, stack, ["limit/read-warm", "limit/read-shared", "limit/tcp"])
    entries = [*limits.values()]
    for case, is_unix, limit in [
        ("worker/same-host", True, ("limit/read-chunks", "pread")),
        ("worker/tcp", False, ("limit/tcp", "sendfile to recv")),
    ]:
        node = bench.node(stack, "worker", origin.environment).start(1, is_unix)
        before = functools.partial(make_resident, [node.folder])
        if is_unix:
            entries.append(chunk_files(bench, stack, node, limit, before))
        load, along = longshore_load(bench, node, MODEL), {REGION: REGION_NOTE}
        state = "on the worker's disk, resident"
        entries.append(Entry(case, "longshore", "GB/s", load, state, LONGSHORE_NOTE, limit, along=along, before=before))
        entries += cannot(bench, case, "GB/s", NO_WORKERS)
    return entries


def chunk_files(
    bench: Bench, stack: ExitStack, node: Node, limit: tuple[str, str], before: Callable[[], None]
) -> Entry:
    """The plain read of what a worker has on its disk, which this fills."""
    node.command("warm", MODEL)
    node.settle()
    files = [str(path) for path in sorted((node.folder / "worker-0" / "cache" / "chunks").rglob("*")) if path.is_file()]
    size = sum(os.path.getsize(path) for path in files)
    if size < bench.model_bytes:
        raise Failed(f"the worker's chunk files have {size} bytes, the model {bench.model_bytes}")
    agent = bench.limits(stack)
    note = "two threads read the worker's chunk files, each into one warm buffer of 16 MiB over and over"
    work = functools.partial(agent.call, "read-warm", 120, files=files, threads=2)
    return limit_entry(bench, *limit, note, work, before=before)


def scaling(count: int) -> Callable[[Bench, ExitStack], list[Entry]]:
    """So many workers on this machine, over TCP: a group for each number, since all need memory."""

    def make(bench: Bench, stack: ExitStack) -> list[Entry]:
        assert bench.model
        origin = bench.origin(stack)
        limits = read_limits(bench, stack, ["limit/tcp"])
        node = bench.node(stack, f"workers-{count}", origin.environment).start(count)
        those = "one worker has" if count == 1 else f"{count} workers share"
        note = f"{those} the model; workers, loader and client share the cores of this machine"
        limit, along = ("limit/tcp", "sendfile to recv"), {REGION: REGION_NOTE}
        before = functools.partial(make_resident, [node.folder])
        state, load = "on the workers' disks, resident", longshore_load(bench, node, MODEL)
        case = f"worker/tcp-{count}"
        own = Entry(case, "longshore", "GB/s", load, state, note, limit, along=along, before=before)
        return [*limits.values(), own]

    return make


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
        get = functools.partial(agent.call, "get", 180, address=store.address, objects=objects, threads=threads)
        limit = (f"limit/get{suffix}", "raw GET")
        note = f"{threads} connections, ranges of 16 MiB, each into one warm buffer over and over"
        every = 2 if is_paced else 1
        entries = [limit_entry(bench, *limit, note, get)]
        entries[0].every = every
        along, more = {REGION: REGION_NOTE}, {"limit": limit, "every": every, "cache_state": "no cache"}
        bare = bench.node(stack, "bare", store.environment).start()
        direct = f"origin/direct{suffix}"
        load = longshore_load(bench, bare, MODEL)
        entries.append(Entry(direct, "longshore", "GB/s", load, "no cache", LONGSHORE_NOTE, limit, every, along))
        peers = bench.peers(stack, "s3", store.environment)
        entries += peer_entries(bench, direct, peers, MODEL, None, **more)
        empty = f"origin/empty-cache{suffix}"
        for subject, is_unix, where in [
            (LONGSHORE, True, "a worker on the same host, by its unix socket"),
            (OVER_TCP, False, "a worker over TCP"),
        ]:
            cold = bench.node(stack, "cold", store.environment).start(1, is_unix, WORKER_MEMORY_EMPTY_BYTES)
            load = longshore_load(bench, cold, MODEL, settles=True, names=subject)
            note = f"{LONGSHORE_NOTE}, through {where}; CPU includes what the worker writes afterwards"
            own = Entry(empty, subject[0], "GB/s", load, "empty cache", note, limit, every, {subject[1]: REGION_NOTE})
            own.before = functools.partial(cold.free, MODEL)
            entries.append(own)
        return entries + cannot(bench, empty, "GB/s", NO_CACHE)

    return make
