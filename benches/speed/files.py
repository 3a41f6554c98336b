"""Cases of many small objects, of small reads, and of metadata."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from daemons import Failed

from speed.agents import PEERS
from speed.bench import Bench, Peer, sample_of
from speed.nodes import BUCKET, WORKER_MEMORY_EMPTY_BYTES, Node
from speed.rounds import Entry, Measured, Round
from speed.rows import Sample

SMALL = f"s3://{BUCKET}/small"
SMALL_BYTES = 100_000


def small_objects(count: int) -> list[str]:
    """What the origin is told to make up."""
    return [f"--generate={BUCKET}/small/{number:05}={SMALL_BYTES}" for number in range(count)]


def small_files(bench: Bench, stack: ExitStack) -> list[Entry]:
    """10,000 objects of 100 kB: brought to this machine, and into the cache."""
    count = bench.options.small_files
    assert bench.data
    store = bench.origin(stack, *small_objects(count))
    node = bench.node(stack, "small", store.environment, count * SMALL_BYTES * 2)
    node.start(1, unix_socket=True, memory=WORKER_MEMORY_EMPTY_BYTES)
    pulled = bench.folder("pulled")

    def files(sample: Sample) -> Sample:
        sample.amount, sample.size_bytes = count, count * SMALL_BYTES
        return sample

    def pull(is_cached: bool, folder: Path) -> Callable[[Round], Measured]:
        def measure(_: Round) -> Measured:
            target = Path(tempfile.mkdtemp(dir=folder)) / "small"
            if is_cached:
                node.command("warm", SMALL, "--include", "*")
            else:
                node.free(SMALL)
            node.settle()
            with bench.watched() as windows:
                begin = time.monotonic()
                sample, _answer = node.command("pull", SMALL, target, "--include", "*")
                windows.append((begin, time.monotonic(), True))
            sample.cpu_seconds = (sample.cpu_seconds or 0) + node.settle()
            found = sum(1 for path in target.iterdir() if path.stat().st_size == SMALL_BYTES)
            if found != count:
                raise Failed(f"{found} of {count} files were written")
            # On the disk it stays to the end: ext4 searches long for an inode where many were deleted a minute ago.
            if folder != pulled:
                shutil.rmtree(target.parent)
            return files(sample)

        return measure

    def warm(_: Round) -> Measured:
        node.free(SMALL)
        node.settle()
        sample, _answer = node.command("warm", SMALL, "--include", "*")
        sample.cpu_seconds = (sample.cpu_seconds or 0) + node.settle()
        return files(sample)

    note = (
        "`longshore pull` with a cache worker between, which keeps what it brings; its chunk files are written behind "
        "the pull, and their CPU is counted. The pull writes files to "
    )
    entries = []
    for subject, folder, where in [
        ("longshore", pulled, "the disk"),
        ("longshore, into memory", bench.shared_memory, "a folder of tmpfs, and the worker its own to the disk"),
    ]:
        for case, is_cached, state in [
            ("files/small", False, "empty cache"),
            ("files/small-cached", True, "in the worker's cache"),
        ]:
            entries.append(Entry(case, subject, "files/s", pull(is_cached, folder), state, note + where, every=2))
    entries += [
        Entry("files/warm", "longshore", "files/s", warm, "empty cache", "`longshore warm`", every=2),
    ]
    urls = [f"{SMALL}/{number:05}" for number in range(count)]
    peers = bench.peers(stack, "read_files", store.environment)
    for peer in peers:

        def read(_: Round, peer: Peer = peer) -> Measured:
            answer = peer.agent().call("read_files", 240, urls=urls)
            if answer["bytes"] != count * SMALL_BYTES:
                raise Failed(f"{answer['bytes']} bytes were read")
            return files(sample_of(answer))

        work = None if peer.why_not or peer.error else read
        entry = Entry("files/small", peer.subject, "files/s", work, "no cache", "into memory only", every=2)
        entry.why_not, entry.error = peer.why_not, peer.error
        entries.append(entry)
    for case in ("files/small-cached", "files/warm"):
        why = "has no cache that outlives the process"
        entries += [Entry(case, PEERS[peer.name], "files/s", None, why_not=why) for peer in peers]
    return entries


def random_reads(bench: Bench, stack: ExitStack) -> list[Entry]:
    """4 kB at random places of one file of the model."""
    case, unit = "files/random-4k", "reads/s"
    path = Path(bench.weights[0])
    url = f"s3://{BUCKET}/model/{path.name}"
    store = bench.origin(stack)
    node = bench.node(stack, "random", store.environment).start(1, unix_socket=True)
    node.command("warm", f"s3://{BUCKET}/model", "--include", "*")
    node.settle()
    node.restart_workers()
    worker = node.workers[0]

    def tool(count: int, *words: str | Path | int) -> Callable[[Round], Measured]:
        def measure(number: Round) -> Measured:
            answer = bench.tool("random", *words, "--count", count, "--seed", number.number + 1)
            return Sample(answer["seconds"], None, count)

        return measure

    calls, warm = bench.options.calls, max(path.stat().st_size // (1 << 20) * 8, 1000)
    of_worker: list[str | Path | int] = ["--url", url, "--control", worker.control]
    limit = (case, "limit: pread")
    by_socket = tool(calls, *of_worker, "--socket", worker.socket or "", "--warm", warm)
    # Over TCP a block of 1 MiB comes for each read that is not in the reader's 64 blocks.
    by_tcp = tool(calls // 10, *of_worker, "--worker", worker.data)
    note = f"one thread, after {warm} reads that verify each block once; what it reads is compared with checksums"
    far = "one thread, nothing read before; whole blocks of 1 MiB come, and 64 of them are kept"
    state = "on the worker's disk, resident"
    entries = [
        Entry(*limit, unit, tool(calls, "--file", path), "resident", "one thread, on a plain file"),
        Entry(case, "longshore", unit, by_socket, state, note, limit),
        Entry(case, "longshore, over TCP", unit, by_tcp, state, far, limit),
    ]
    for peer in bench.peers(stack, "random", store.environment):
        modes = [""] if peer.why_not or peer.error else peer.agent().told.get("random_modes", [""])
        entries += [random_of(peer, url, mode, limit) for mode in modes]
    return entries


def random_of(peer: Peer, url: str, mode: str, limit: tuple[str, str]) -> Entry:
    """A peer in one of its ways to read."""
    case, unit, count = limit[0], "reads/s", peer.bench.options.calls // 10

    def measure(number: Round) -> Measured:
        more = {"mode": mode} if mode else {}
        asked = {"url": url, "count": count, "bytes": 4096, "seed": number.number + 1}
        return Sample(peer.agent().call("random", 120, **asked, **more)["seconds"], None, count)

    words = {"each": "one after the other", "bulk": "many at once", "disk": "from its cache of files on this disk"}
    note = f"a range at a time, {words.get(mode, mode)}" if mode else ""
    subject = f"{peer.subject}, {mode}" if mode else peer.subject
    entry = Entry(case, subject, unit, measure, "resident" if mode == "disk" else "no cache", note, limit, every=2)
    if peer.why_not or peer.error:
        entry.measure, entry.why_not, entry.error = None, peer.why_not, peer.error
    return entry


def metadata(bench: Bench, stack: ExitStack) -> list[Entry]:
    """Size and version of objects, and listings."""
    case, unit = "metadata/ops", "calls/s"
    assert bench.data
    store = bench.origin(stack, *small_objects(1000))
    node = bench.node(stack, "metadata", store.environment, 1 << 28).start(1)
    calls = bench.options.calls
    kinds = {
        "longshore": (["--call", "stat"], calls, "cached", "Stat over gRPC"),
        "longshore, asking the origin": (["--call", "stat", "--revalidate"], calls // 5, "no cache", "Stat over gRPC"),
        "longshore, pages of a listing": (
            ["--call", "list"],
            calls // 20,
            "cached",
            "List over gRPC, 1,000 objects each",
        ),
    }
    entries = []
    for subject, (words, count, state, what) in kinds.items():
        work = calls_of(bench, node, words, count)
        note = f"{what}, one worker, 64 calls in flight"
        entries.append(Entry(case, subject, unit, work, state, note))
    for peer in bench.peers(stack, "metadata", store.environment):

        def measure(_: Round, peer: Peer = peer) -> Measured:
            asked = {"url": SMALL, "count": calls // 10}
            return sample_of(peer.agent().call("metadata", 120, **asked), calls // 10)

        entry = Entry(case, peer.subject, unit, measure, "no cache", "of the origin", every=2)
        if peer.why_not or peer.error:
            entry.measure, entry.why_not, entry.error = None, peer.why_not, peer.error
        entries.append(entry)
    return entries


def calls_of(bench: Bench, node: Node, words: list[str], count: int) -> Callable[[Round], Measured]:
    """Calls to the node's worker."""

    def measure(_: Round) -> Measured:
        worker = node.workers[0].control
        answer = bench.tool("metadata", "--worker", worker, "--url", SMALL, *words, "--count", count)
        return Sample(answer["seconds"], None, count)

    return measure
