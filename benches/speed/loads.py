"""What all cases have in common that load one model: Longshore's rows, those of the peers, and plain limits."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from daemons import Failed

from speed.agents import GPU_ONLY, PEERS
from speed.bench import Bench, Peer, sample_of
from speed.nodes import BUCKET, Node
from speed.rounds import Entry, Measured, Round
from speed.rows import LONGSHORE, PREFAULTED, Sample

MODEL = f"s3://{BUCKET}/model"
REGION_NOTE = "the same load, as the loader reports it: until the shared memory is filled and verified"
LONGSHORE_NOTE = "a Python process: from the call until one byte of each page of the torch tensors was read"
PREFAULTED_NOTE = (
    "by a loader with `--prefault`: the memory was touched while no load ran, and the CPU includes making as much of "
    "it ready again behind the load"
)

KEPT_NOTE = "two threads read the {} into memory that was touched before and keeps all of the bytes"


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
        "limit/read-kept": (
            "pread",
            KEPT_NOTE.format("files"),
            functools.partial(ask, "read-kept", threads=2),
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
    """A load by the client, and by the loader alone; with what is done behind it for the row, untimed.

    `settles`: until the daemons rest. Where memory is prefaulted, until it is again.
    """

    def measure(number: Round) -> Measured:
        ready, used = node.prefaulted, 0.0
        if ready is not None:
            ready.wait()
            used = ready.used_bytes()
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
            if settles or ready is not None:
                # What the worker still writes, and the next memory, are part of the price: in CPU, not in time.
                if ready is not None:
                    ready.wait()
                if settles:
                    node.settle()
                windows.append((timed_end, time.monotonic(), False))
                behind = node.cpu_seconds() - cpu - region_cpu
                whole.cpu_seconds = (whole.cpu_seconds or 0) + behind
                region_cpu += behind
        if ready is not None:
            ready.check(used, whole.size_bytes)
        region = Sample(answer["loader_seconds"], region_cpu, whole.size_bytes, whole.size_bytes, whole.steps)
        return {names[0]: whole, names[1]: region}

    return measure


def own_entries(bench: Bench, node: Node, prefaulted: Node | Failed | None, model: str, row: Entry) -> list[Entry]:
    """Longshore's rows like this one: with the loader's default options, and with prefaulted memory if it is tried."""
    made = []
    for names, of, note in [(LONGSHORE, node, ""), (PREFAULTED, prefaulted, f", {PREFAULTED_NOTE}")]:
        if of is None:
            continue
        along = {names[1]: REGION_NOTE + note}
        entry = dataclasses.replace(row, subject=names[0], note=LONGSHORE_NOTE + note, along=along)
        if isinstance(of, Node):
            entry.measure = longshore_load(bench, of, model, names=names)
        else:
            entry.error = str(of)
        made.append(entry)
    return made


def start_prefaulted(
    bench: Bench, stack: ExitStack, environment: dict[str, str], beside: Node | None = None
) -> Node | Failed:
    """A node whose loader has its memory ready, or why this system has none: that is for its own rows to say."""
    try:
        return bench.node(stack, "prefaulted", environment).start_loader(beside, prefault=True)
    except Failed as error:
        return error


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
    return [Entry(case, PEERS[name], unit, None, why_not=why) for name in bench.options.peers]
