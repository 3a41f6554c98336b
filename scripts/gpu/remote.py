"""Models that come from a store: what the ranks of a node read of it together, and what checksums cost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cases import RANKS
from checks import files_of
from context import Context, remove
from daemons import Failed, Node, fetch, store, store_environment
from machine import least_page_locked
from report import MEASURED, Row, Samples
from rounds import LongshoreLoad, alternate

GIB = 1 << 30
MIB = 1 << 20
BUCKET = "models"
URI = f"s3://{BUCKET}"


def served_bytes(url: str) -> int:
    """What the store has sent so far, by its own count."""
    page = fetch(f"{url}/_counters")
    if page is None:
        raise Failed("the store does not answer")
    return int(json.loads(page)["bytes"])


def run(ctx: Context) -> None:
    """Both cases, over one store."""
    folder = ctx.memory_folder / "remote"
    made = json.loads(
        ctx.bench("model", folder, "--size", ctx.sizes.remote_bytes, "--tensors", 200, "--files", 4, "--seed", 20)
    )
    try:
        with store(ctx.program("fake-origin"), ctx.work, folder, BUCKET) as url:
            environment = store_environment(url)
            ctx.step(["gpu/tensor-parallel-bytes"], 90, lambda: ranks(ctx, folder, url, environment, made["bytes"]))
            ctx.step(["gpu/checksum"], 90, lambda: checksums(ctx, folder, environment, made["bytes"]))
    finally:
        remove(folder)


def ranks(ctx: Context, folder: Path, url: str, environment: dict[str, str], size: int) -> None:
    """All ranks of a node at once, each time with an empty page-locked tier."""
    long = json.loads((folder / "config.json").read_text())["hidden_size"] * 7 // 2
    whole = sum(Path(file).stat().st_size for file in files_of(folder))
    pinned = max(size + size // 4 + 256 * MIB, least_page_locked())
    options = {"memory": pinned + GIB, "pinned_memory": pinned}
    with ctx.agent("ranks") as agent:
        for number, count in enumerate(RANKS):
            # A loader of its own each time: what the one before kept page-locked must not help.
            with ctx.node(f"ranks-{number}", environment, **options) as node:
                agent.call("use", socket=str(node.sockets / "loader.sock"))
                before = served_bytes(url)
                done = agent.call("load_ranks", uri=URI, world=count, long=long, seconds=60)
                served = served_bytes(url) - before
                found = agent.call("rank_slices", files=files_of(folder), world=count, seconds=60)
                agent.call("drop")
            ranks_row(ctx, count, {**done, **found, "served": served}, whole)


def ranks_row(ctx: Context, count: int, done: dict[str, Any], whole: int) -> None:
    """The row of so many ranks."""
    if done["wrong_count"]:
        raise Failed(f"{count} ranks: {done['wrong_count']} slices differ: {'; '.join(done['wrong'])}")
    note = (
        f"{done['served']} bytes served for a checkpoint of {whole} bytes; all ranks at once: {done['seconds']:.2f} s; "
        "slices compared with the files"
    )
    ctx.report.add(
        Row(
            "gpu/tensor-parallel-bytes",
            f"{count} ranks",
            MEASURED,
            value=done["served"] / whole,
            unit="x checkpoint",
            limit=1.0,
            ratio_to_limit=done["served"] / whole,
            runs=1,
            cache_state="nothing cached on the node",
            command=ctx.command,
            note=note,
        )
    )


def checksums(ctx: Context, folder: Path, environment: dict[str, str], size: int) -> None:
    """The same bytes as a local file, which nobody has checksums of, and out of a worker, where each block has one."""
    rates: dict[str, Any] = {}
    for subject, threads in (("one core", 1), ("all cores", 0)):
        words = ["checksum", "--threads", threads or len(ctx.cores), "--size", 64 * MIB if ctx.fake else 32 * GIB]
        if ctx.fake:
            words += ["--memory", 16 * MIB]
        samples = Samples()
        for _ in range(3):
            found = json.loads(ctx.bench(*words))
            samples.add(found["bytes"], found["seconds"], found["cpu_seconds"])
        rates[subject] = samples
        ctx.samples("gpu/checksum", f"CRC-64/NVME, {subject}", samples, cache_state="memory")
    # Less than the model: the tier must not answer instead of the file or the worker.
    pinned = max(min(size // 3, ctx.sizes.staging_bytes), least_page_locked())
    options = {"memory": pinned + GIB, "pinned_memory": pinned}
    with ctx.node("checksum", environment, **options) as node:
        address = node.start_worker(size + size // 4 + 512 * MIB)
        with ctx.node("checksum-worker", environment, workers=address, **options) as other:
            # The worker's CPU belongs to the loads through it.
            other.worker, node.worker = node.worker, None
            through_worker(ctx, node, other, folder, rates)


def through_worker(ctx: Context, node: Node, other: Node, folder: Path, rates: dict[str, Samples]) -> None:
    """Two loaders in alternation: one reads the file, one asks a worker that holds the same bytes in memory."""
    files = files_of(folder)
    with ctx.agent("checksum") as plain_agent, ctx.agent("checksum-worker", "second") as checked_agent:
        plain = LongshoreLoad(node, plain_agent, str(folder))
        checked = LongshoreLoad(other, checked_agent, URI)
        plain.first(files)
        checked.first(files)
        samples = alternate({"without": plain.measured, "with": checked.measured}, ctx.sizes.rounds, 45)
        plain.forget()
        checked.forget()
    note = plain.tiers()
    ctx.samples("gpu/checksum", "load without checksums", samples["without"], cache_state="tmpfs", note=note)
    note = f"{checked.tiers()}, over descriptors of a worker on this machine; {explain(rates, samples)}"
    limit = samples["without"]
    ctx.samples("gpu/checksum", "load with checksums", samples["with"], limit, cache_state="worker's memory", note=note)


def explain(rates: dict[str, Samples], samples: dict[str, Samples]) -> str:
    """What the checksum is of the load's CPU, and what it would take at 55 GB/s."""
    one = rates["one core"].row("gpu/checksum", "")
    load = samples["with"].row("gpu/checksum", "")
    if one.value is None or load.cpu_s_per_gb is None:
        return "no load ended"
    share = 1 / one.value / load.cpu_s_per_gb
    return (
        f"a checksum takes {1 / one.value:.3f} CPU s per GB, {share:.0%} of this load's; at 55 GB/s it keeps "
        f"{55 / one.value:.1f} cores busy, on the threads that fetch, while the copies run"
    )
