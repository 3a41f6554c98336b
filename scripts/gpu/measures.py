"""What is timed: loads into the GPU beside their limits and beside other loaders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from agent import Agent
from cases import LONGSHORE, PEERS
from checks import files_of
from context import Context, remove
from daemons import Failed, Node
from machine import file_system, huge_pages, least_page_locked
from report import FAILED, NOT_MEASURED, Row, Samples
from rounds import LongshoreLoad, Measured, PeerLoad, alternate

GIB = 1 << 30
MIB = 1 << 20
DISK_READ_SECONDS, DISK_WRITE_SECONDS = 1.5, 25.0
#: Host memory of a daemon beside its page-locked part: side files, descriptions, bytes in flight.
BESIDE_BYTES = 1 * GIB


def make_model(ctx: Context) -> None:
    """The model that everything large is measured with, in memory."""
    folder = ctx.memory_folder / "model"
    sizes = ctx.sizes
    made = ctx.bench("model", folder, "--size", sizes.model_bytes, "--tensors", sizes.tensors, "--files", sizes.files)
    ctx.model = {**json.loads(made), "folder": folder, "files": files_of(folder)}
    described = (
        f"{ctx.model['bytes'] / 1e9:.2f} GB of BF16 safetensors, {ctx.model['tensors']} tensors in {sizes.files} files"
    )
    ctx.report.facts["model"] = described
    print(f"  model: {described}, written in {ctx.model['seconds']:.1f} s", flush=True)


def limit(agent: Agent, size: int, operation: str = "to_device") -> Measured:
    """One run of a plain copy."""
    found = agent.call(operation, size=size, seconds=60)
    return found["bytes"], found["seconds"], found["cpu_seconds"]


def pinned(ctx: Context, node: Node, agent: Agent, limits: Agent, other: str) -> LongshoreLoad:
    """Page-locked tier to device; leaves the model loaded.

    Another model needs its room each time, so that it is evicted: unloaded by name it would leave the tier too.
    """
    load = LongshoreLoad(node, agent, str(ctx.model["folder"]), evicted_by=other)
    found = load.first(ctx.model["files"])
    note = f"{found['tensors']} tensors, {found['bytes'] / 1e9:.2f} GB equal to the files"
    ctx.passed("check/large-model", LONGSHORE, note, found["tensors"], "tensors")
    ctx.model["fingerprint"] = load.fingerprint
    made_by = limits.call("ready", seconds=120)["made_by"]
    load.measured()
    subjects = {"limit": lambda: limit(limits, ctx.model["bytes"]), LONGSHORE: load.measured}
    samples = alternate(subjects, ctx.sizes.rounds, 60)
    share = load.tier_share("pinned")
    if share < 0.99:
        samples[LONGSHORE].error = f"only {share:.0%} came from the page-locked tier; {load.tiers()}"
    cache = "page-locked"
    ctx.samples("limit/pinned-copy", "cuMemcpyHtoDAsync", samples["limit"], cache_state=cache, note=made_by)
    inside = load.last["bytes"] / 1e9 / max(load.last["loader_seconds"], 1e-9)
    note = f"{load.tiers()}; the last load took {load.last['loader_seconds']:.3f} s in the loader ({inside:.1f} GB/s)"
    ctx.samples("gpu/pinned-to-device", LONGSHORE, samples[LONGSHORE], samples["limit"], cache_state=cache, note=note)
    return load


def writable(ctx: Context, agent: Agent, limits: Agent, load: LongshoreLoad) -> None:
    """Attach with a private copy, which moves every byte on the device."""
    last = load.last

    def copy() -> Measured:
        done = agent.call("attach", model_id=last["model_id"], attach_socket=last["attach_socket"], writable=True)
        return last["bytes"], done["seconds"], 0.0

    copy()
    subjects = {"limit": lambda: limit(limits, last["bytes"], "on_device"), LONGSHORE: copy}
    samples = alternate(subjects, ctx.sizes.rounds, 30)
    ctx.samples("limit/device-copy", "cuMemcpyDtoDAsync", samples["limit"], cache_state="on the GPU")
    note = "the whole attach, with making and freeing the memory"
    ctx.samples(
        "gpu/writable-copy", LONGSHORE, samples[LONGSHORE], samples["limit"], cache_state="on the GPU", note=note
    )


def some_files(ctx: Context) -> Path:
    """A model of some of the large one's files, by links."""
    folder = ctx.memory_folder / "part"
    folder.mkdir()
    for file in ctx.model["files"][: ctx.sizes.shared_files]:
        os.link(file, folder / Path(file).name)
    return folder


@contextlib.contextmanager
def peers(ctx: Context, case: str, files: list[str], resident: bool) -> Iterator[dict[str, PeerLoad]]:
    """The other loaders, started; those that are not there get their row."""
    started: dict[str, PeerLoad] = {}
    try:
        for name, title in PEERS.items():
            if name not in ctx.peers:
                ctx.report.add(Row(case, title, NOT_MEASURED, note="not installed on the machine"))
                continue
            started[title] = PeerLoad(ctx, name, files, resident)
            started[title].start()
        for title, peer in list(started.items()):
            try:
                peer.started()
            except Failed as error:
                started.pop(title).end()
                ctx.report.add(Row(case, title, FAILED, note=str(error)[:400]))
        yield started
    finally:
        for peer in started.values():
            peer.end()


def side_by_side(
    ctx: Context,
    case: str,
    node: Node,
    agent: Agent,
    folder: Path,
    *,
    plain: dict[str, object],
    cold: bool,
    seconds: float,
) -> dict[str, Samples]:
    """One folder through Longshore and through each peer, beside the `plain` limits (named functions)."""
    files = files_of(folder)
    load = LongshoreLoad(node, agent, str(folder))

    def before() -> None:
        if cold:
            for file in files:
                drop_from_cache(file)

    def longshore() -> Measured:
        load.forget()
        before()
        return load.measured_again()

    with peers(ctx, case, files, resident=not cold) as others:
        load.first(files)

        def peer(each: PeerLoad) -> Measured:
            # Room on the device, and nothing of ours in the way.
            before()
            return each.measured(load.fingerprint)

        subjects = {**plain, LONGSHORE: longshore}
        subjects |= {title: (lambda each=each: peer(each)) for title, each in others.items()}
        if not cold:
            # Pools, contexts and the page cache are what they stay: not counted.
            warm = alternate(subjects, 1, seconds)
            subjects = {name: run for name, run in subjects.items() if not warm[name].error}
            for name, samples in warm.items():
                if samples.error and name not in plain:
                    ctx.report.add(Row(case, name, FAILED, note=samples.error, command=ctx.command))
        found = alternate(subjects, ctx.sizes.rounds if not cold else 3, seconds)
        notes = {title: each.version for title, each in others.items()} | {LONGSHORE: load.tiers()}
    base = next((found[name] for name in plain if found.get(name) and found[name].rates), None)
    for name, samples in found.items():
        if name not in plain and ctx.report.missing(case, name):
            state = "cold" if cold else "resident"
            ctx.samples(case, name, samples, base, cache_state=state, note=notes.get(name, ""))
    load.forget()
    return found


def resident(ctx: Context, node: Node, agent: Agent, limits: Agent) -> None:
    """tmpfs to device."""
    folder = some_files(ctx)
    try:
        size = sum(os.path.getsize(file) for file in files_of(folder))
        plain: dict[str, object] = {"limit": lambda: limit(limits, size)}
        side_by_side(ctx, "gpu/resident-to-device", node, agent, folder, plain=plain, cold=False, seconds=110)
    finally:
        remove(folder)


def drop_from_cache(file: str) -> None:
    """Written back, then out of the page cache."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def read_limits(ctx: Context, files: list[str], direct: bool) -> dict[str, object]:
    """The disk by fio where it is installed, and by our own reader."""
    smallest = min(os.path.getsize(file) for file in files)
    block = "16M" if smallest >= 64 * MIB else "1M"

    def own() -> Measured:
        for file in files:
            drop_from_cache(file)
        found = json.loads(ctx.bench("read", *(["--direct"] if direct else []), *files))
        return found["bytes"], found["seconds"], found["cpu_seconds"]

    def fio() -> Measured:
        command = [
            "fio", "--name=limit", f"--filename={':'.join(files)}", "--rw=read", f"--bs={block}", "--iodepth=16",
            "--ioengine=libaio", f"--direct={int(direct)}", "--readonly", "--output-format=json",
            "--file_service_type=sequential",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        if done.returncode != 0:
            raise Failed(f"fio: {(done.stderr or done.stdout)[-300:].strip()}")
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        seconds = job["read"]["runtime"] / 1000
        cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds
        return job["read"]["io_bytes"], seconds, cpu

    found: dict[str, object] = {}
    if shutil.which("fio") is None:
        ctx.report.add(Row("limit/disk", "fio", NOT_MEASURED, note="not installed on the machine"))
    else:
        found["fio"] = fio
    found["gpu-bench read"] = own
    return found


def disk_model(ctx: Context) -> Path:
    """A model on the disk that takes it a second or two to read, so that every loader can read it three times."""
    folder, probe_bytes = ctx.disk_folder / "disk", 12 * MIB if ctx.fake else GIB
    begun = time.monotonic()
    ctx.bench("model", folder, "--size", probe_bytes, "--tensors", 30, "--files", 1, "--seed", 40)
    for file in files_of(folder):
        drop_from_cache(file)
    written = probe_bytes / (time.monotonic() - begun)
    found = json.loads(ctx.bench("read", "--direct", *files_of(folder)))
    read = found["bytes"] / found["seconds"]
    size = 0 if ctx.fake else int(min(read * DISK_READ_SECONDS, written * DISK_WRITE_SECONDS, ctx.sizes.disk_bytes))
    if size > 2 * probe_bytes:
        remove(folder)
        ctx.bench("model", folder, "--size", size, "--tensors", 300, "--files", 2, "--seed", 41)
    ctx.report.facts["disk"] = file_system(folder)
    print(f"  disk: writes {written / 1e9:.2f} GB/s, reads {read / 1e9:.2f} GB/s", flush=True)
    return folder


def disk(ctx: Context, node: Node, agent: Agent) -> None:
    """A local disk to device: cold, then out of the page cache."""
    folder = disk_model(ctx)
    try:
        files = files_of(folder)

        def cold() -> None:
            plain = read_limits(ctx, files, direct=True)
            found = side_by_side(ctx, "gpu/local-cold", node, agent, folder, plain=plain, cold=True, seconds=60)
            for name in plain:
                ctx.samples("limit/disk", name, found[name], cache_state="O_DIRECT")

        def warm() -> None:
            for file in files:
                subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True, timeout=120)
            side_by_side(ctx, "gpu/page-cache-to-device", node, agent, folder, plain={}, cold=False, seconds=60)

        ctx.step(["limit/disk", "gpu/local-cold"], 110, cold)
        ctx.step(["gpu/page-cache-to-device"], 90, warm)
    finally:
        remove(folder)


def page_kind(node: Node) -> str:
    """What page-locked memory is made of, as the loader says."""
    return str(node.command("status")["loader"]["pinned"]["pages"])


def large(ctx: Context) -> None:
    """The stage with a whole model in page-locked memory, and room for one model on the GPU."""
    from attaching import attach
    from surviving import once

    # The other model does not fit beside the large one.
    gap = 24 * MIB if ctx.fake else 1 * GIB
    options = {
        "memory": ctx.sizes.pinned_bytes + 2 * gap + BESIDE_BYTES,
        "pinned_memory": ctx.sizes.pinned_bytes + 2 * gap,
        "gpu_memory": ctx.model["bytes"] + gap,
    }
    other = ctx.memory_folder / "other"
    ctx.bench("model", other, "--size", gap + gap // 4, "--tensors", 30, "--files", 1, "--seed", 30)
    begun = time.monotonic()
    with (
        huge_pages(options["pinned_memory"]) if ctx.huge_pages else contextlib.nullcontext(),
        ctx.agent("large") as agent,
        ctx.agent("large", "second") as second,
        ctx.limits() as limits,
        ctx.node("large", **options) as node,
    ):
        took = time.monotonic() - begun
        pages = page_kind(node)
        ctx.report.facts["page_locked"] = {"bytes": options["pinned_memory"], "pages": pages, "start_seconds": took}
        print(f"  {options['pinned_memory'] / 1e9:.1f} GB page-locked ({pages}), ready in {took:.1f} s", flush=True)
        kept: list[LongshoreLoad] = []
        cases = ["check/large-model", "limit/pinned-copy", "gpu/pinned-to-device"]
        ctx.step(cases, 150, lambda: kept.append(pinned(ctx, node, agent, limits, str(other))))
        if not kept:
            return
        cases = ["gpu/attach", "gpu/attach-bytes"]
        ctx.step(cases, 80, lambda: attach(ctx, node, second, kept[0]))
        ctx.step(["limit/device-copy", "gpu/writable-copy"], 40, lambda: writable(ctx, second, limits, kept[0]))
        ctx.guard(70, lambda: once(ctx, node, second, kept[0], options["pinned_memory"]))


def few_page_locked(ctx: Context) -> dict[str, int]:
    """Options of a node whose page-locked memory is for staging: less than the models that are loaded."""
    pinned_bytes = ctx.sizes.staging_bytes
    return {"memory": pinned_bytes + BESIDE_BYTES, "pinned_memory": pinned_bytes}


def beside_peers(ctx: Context) -> None:
    """Files in tmpfs through every loader."""
    with (
        ctx.agent("small") as agent,
        ctx.limits() as limits,
        ctx.node("small", **few_page_locked(ctx)) as node,
    ):
        resident(ctx, node, agent, limits)


def killing(ctx: Context) -> None:
    """The daemon of a node with as little page-locked memory as there can be is killed."""
    from surviving import kills

    least = least_page_locked()
    with ctx.node("kills", memory=least + BESIDE_BYTES, pinned_memory=least) as node:
        kills(ctx, node, least)


def from_disk(ctx: Context) -> None:
    """Files on a local disk through every loader."""
    with ctx.agent("disk") as agent, ctx.node("disk", **few_page_locked(ctx)) as node:
        disk(ctx, node, agent)
