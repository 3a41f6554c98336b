"""The GPU report: correctness first, then speed, into one JSON file and one page. See `scripts/gpu.sh`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import checks
import machine
import measures
import remote
from cases import CHECKS
from context import Context, find_peers
from report import FAILED, FAKE, Report, page

HERE = Path(__file__).resolve().parent
#: Not /tmp, which often is in memory.
DISK_FOLDER = "/var/tmp"
MEMORY_FOLDER = "/dev/shm"
SECONDS = 525.0
#: On the fake driver: enough for everything tiny, little enough that budgets are met.
FAKE_MEMORY_MIB = 1024


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", help="folder made by `make gpu-bundle`")
    parser.add_argument("out", type=Path, nargs="?", help="folder for gpu.json, gpu.md and log.txt")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it works, not how fast")
    parser.add_argument("--driver-folder", type=Path, help="folder with another libcuda.so.1: the fake driver's")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after so long, what is left is not measured")
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), help="only these; results of several runs make one page"
    )
    parser.add_argument("--huge-pages", action="store_true", help="reserve huge pages meanwhile (root)")
    parser.add_argument("--memory-folder", type=Path, help="a tmpfs for models [default: /dev/shm]")
    parser.add_argument("--disk-folder", type=Path, help="a folder on a local disk [default: /var/tmp]")
    parser.add_argument("--page", type=Path, nargs="*", metavar="JSON", help="only print the page of these results")
    chosen = parser.parse_args()
    if chosen.page is None and (chosen.bundle is None or chosen.out is None):
        parser.error("BUNDLE and OUT are needed")
    if chosen.driver_folder is not None and not (chosen.driver_folder / "libcuda.so.1").exists():
        parser.error(f"--driver-folder {chosen.driver_folder} has no libcuda.so.1")
    return chosen


def environment(bundle: Path, driver_folder: Path | None, work: Path) -> dict[str, str]:
    """What every process of the run gets: nothing of a Longshore that may be set up on this machine."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
    values["PYTHONPATH"] = str(bundle / "python")
    values["LONGSHORE_BIN"] = str(bundle / "bin" / "longshore")
    values["PYTHONDONTWRITEBYTECODE"] = "1"
    values.pop("CUDA_VISIBLE_DEVICES", None)
    if driver_folder is not None:
        state = work / "fake-cuda"
        state.mkdir()
        values |= {
            "LD_LIBRARY_PATH": str(driver_folder.resolve()),
            "FAKE_CUDA_DIR": str(state),
            "FAKE_CUDA_DEVICES": "2",
            "FAKE_CUDA_MEM_MIB": str(FAKE_MEMORY_MIB),
        }
    return values


def sizes(quick: bool, facts: dict[str, object], memory_folder: Path, disk_folder: Path) -> machine.Sizes:
    """As large as the machine allows."""
    if quick:
        return machine.Sizes.tiny()
    found = facts["cards"]
    if not isinstance(found, list) or not found:
        sys.exit(
            "neither nvidia-smi nor torch sees a GPU here: give --driver-folder and --quick to run over the fake driver"
        )
    gpu = int(found[0]["memory.total"]) << 20
    tmpfs, disk = shutil.disk_usage(memory_folder).free, shutil.disk_usage(disk_folder).free
    return machine.Sizes.fitting(machine.memory_bytes("MemAvailable"), gpu, tmpfs, disk)


def large(ctx: Context) -> None:
    """The model is made by whichever stage needs it first."""
    with_model(ctx)
    measures.large(ctx)


def with_model(ctx: Context) -> None:
    if not ctx.model:
        measures.make_model(ctx)


def beside_peers(ctx: Context) -> None:
    with_model(ctx)
    ctx.peers = find_peers(ctx.bundle, ctx.work, ctx.environment)
    print(f"  other loaders here: {', '.join(ctx.peers) or 'none'}", flush=True)
    measures.beside_peers(ctx)


def killing(ctx: Context) -> None:
    with_model(ctx)
    measures.killing(ctx)


def from_disk(ctx: Context) -> None:
    with_model(ctx)
    ctx.peers = ctx.peers or find_peers(ctx.bundle, ctx.work, ctx.environment)
    measures.from_disk(ctx)


LARGE = ["check/large-model", "limit/pinned-copy", "gpu/pinned-to-device", "gpu/attach", "gpu/attach-bytes"]
LARGE += ["limit/device-copy", "gpu/writable-copy"]
#: In the order of what matters most: what comes late may find no time. Cases, seconds at most, and the work.
STAGES: dict[str, tuple[list[str], float, Callable[[Context], None]]] = {
    "checks": ([case.name for case in CHECKS if case.name != "check/large-model"], 240, checks.run),
    "large": (LARGE, 300, large),
    "peers": (["gpu/resident-to-device"], 180, beside_peers),
    "kills": (["gpu/kill-9"], 140, killing),
    "remote": (["gpu/tensor-parallel-bytes", "gpu/checksum"], 200, remote.run),
    "disk": (["limit/disk", "gpu/local-cold", "gpu/page-cache-to-device"], 220, from_disk),
}


def logs(work: Path, out: Path) -> None:
    """The ends of all logs in one file."""
    parts = []
    for path in sorted(work.rglob("*.log")):
        text = path.read_text(errors="replace")
        if text.strip():
            parts.append(f"==== {path.relative_to(work)}\n{text[-60_000:]}\n")
    (out / "log.txt").write_text("".join(parts)[-8_000_000:])


def main() -> int:
    chosen = arguments()
    if chosen.page is not None:
        results = [json.loads(path.read_text()) for path in chosen.page]
        print(page(results), end="")
        return 0
    begun = time.monotonic()
    chosen.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="longshore-gpu-"))
    memory = Path(tempfile.mkdtemp(prefix="longshore-gpu-", dir=chosen.memory_folder or MEMORY_FOLDER))
    mounted = not chosen.quick and machine.mount_tmpfs(memory)
    disk = Path(tempfile.mkdtemp(prefix="longshore-gpu-", dir=chosen.disk_folder or DISK_FOLDER))
    (work / "logs").mkdir()
    bundle = chosen.bundle.resolve()
    fake = chosen.driver_folder is not None
    values = environment(bundle, chosen.driver_folder, work)
    # What is written down names the script and its options, not this machine's folders.
    options = [
        *(["--quick"] if chosen.quick else []),
        *(["--huge-pages"] if chosen.huge_pages else []),
        *(["--stages", *chosen.stages] if chosen.stages else []),
    ]
    command = shlex.join(["scripts/gpu.sh", "BUNDLE", "OUT", *options, *(["--driver-folder", "DIR"] if fake else [])])
    try:
        facts = machine.facts(bundle / "bin" / "longshore", values, sys.executable, command, fake)
        facts["devices"] = 2 if fake else len(facts["cards"])
        report = Report(chosen.out, facts)
        print(f"{facts['card']}, driver {facts['driver']}; {facts['machine']}", flush=True)
        ctx = Context(
            bundle=bundle,
            out=chosen.out,
            work=work,
            memory_folder=memory,
            disk_folder=disk,
            environment=values,
            fake=fake,
            sizes=sizes(chosen.quick, facts, memory, disk),
            report=report,
            deadline=begun + chosen.seconds,
            command=command,
            huge_pages=chosen.huge_pages,
        )
        report.write()
        for name in chosen.stages or STAGES:
            cases, seconds, work_of = STAGES[name]
            ctx.step(cases, seconds, lambda work_of=work_of: work_of(ctx))
        report.facts["seconds"] = time.monotonic() - begun
        report.complete("not asked for" if chosen.stages else "out of time")
        logs(work, chosen.out)
    finally:
        if mounted:
            machine.unmount(memory)
        for folder in (work, memory, disk):
            shutil.rmtree(folder, ignore_errors=True)
    failed = [row for row in report.rows if row.status == FAILED]
    card = "the fake driver" if facts["card"] == FAKE else facts["card"]
    print(f"{len(report.rows)} rows on {card}, {len(failed)} failed; {chosen.out}/gpu.json and gpu.md", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
