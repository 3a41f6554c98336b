"""The speed report of checkpoints: what a save costs training, the disk and the link, beside plain limits of the same.

Every round measures every row once, in alternation. Run it with the interpreter of `scripts/bench-peers.sh`, and with
`scripts/gpu` in PYTHONPATH: `make bench-checkpoint` does both.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import limits
import page
import torch
from daemons import Daemon, fetch, free_address, store_environment
from ending import Ending, end_children
from machine import describe, versions
from peers import PEERS, Peer
from report import Samples
from subject import Measure, Saved, Subject, state_dict

ROOT = Path(__file__).resolve().parents[2]
#: One bucket for everything that is uploaded.
BUCKET = "bench"
#: A row of its own: two cores have enough to do with an upload.
ALONE = "longshore, nothing uploaded meanwhile"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/checkpoint", description=__doc__)
    parser.add_argument("--size", type=float, default=2.0, help="GB of the checkpoint; takes nine times that of memory")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, behind one that warms up")
    parser.add_argument("--bin", type=Path, default=ROOT / "target" / "release", help="folder of the binaries")
    parser.add_argument("--folder", type=Path, default=ROOT / "target", help="a folder on the disk to measure")
    parser.add_argument("--results", type=Path, default=ROOT / "benches" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks-checkpoint.md")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    ending = Ending()
    ending.listen()
    work = Path(tempfile.mkdtemp(prefix="longshore-bench-", dir=options.folder))
    address, ops = free_address(), free_address()
    store = Daemon(
        "store",
        [options.bin / "fake-origin", "--listen", address, "--bucket", BUCKET, "--memory", "16GiB"],
        work / "store.log",
        dict(os.environ),
    )
    loader = None
    # The copies in flight of two checkpoints, and what is loaded or uploaded beside them.
    slabs, memory = int(options.size * 2.5e9), int(options.size * 3e9) + (2 << 30)
    disk = int(options.size * 8e9) + (1 << 30)
    try:
        store.wait_for("readiness", lambda: fetch(f"http://{address}/_counters") is not None, 60)
        os.environ |= store_environment(f"http://{address}")
        loader = Daemon(
            "loader",
            [
                options.bin / "longshore", "loader", "--socket-dir", work / "run", "--listen", "none",
                "--ops-listen", ops, "--gpus", "none", "--checkpoint-dir", work / "spool",
                "--checkpoint-memory", slabs, "--checkpoint-disk", disk, "--memory", memory,
            ],
            work / "loader.log",
            dict(os.environ),
        )  # fmt: skip
        loader.wait_for("readiness", lambda: fetch(f"http://{ops}/readyz") is not None, 60)
        os.environ["LONGSHORE_LOADER"] = f"unix://{work}/run/loader.sock"
        rows = run(options, work, f"http://{address}", Subject(loader))
    finally:
        with ending.shield():
            for daemon in (loader, store):
                if daemon is not None:
                    daemon.end()
            end_children()
            shutil.rmtree(work, ignore_errors=True)
    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": describe(),
        "disk": limits.file_system(options.folder),
        "versions": versions(options.bin / "longshore", dict(os.environ), sys.executable) | PEERS.versions(),
        "checkpoint_bytes": rows.size_bytes,
        "command": shlex.join(["scripts/checkpoint", "--size", str(options.size), "--rounds", str(options.rounds)]),
    }
    path = options.results / f"checkpoint-{facts['date']}-{os.cpu_count()}-cores.json"
    page.write(path, options.page, facts, rows.made())
    print(options.page.read_text())
    return 0


class Rows:
    """Samples by case and subject, in the order in which they first came."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.samples: dict[tuple[str, str], Samples] = {}

    def measure(self, case: str, subject: str, work: Callable[[], Measure | None], counted: bool) -> None:
        """One round of one row: what fails is a row that says so."""
        samples = self.samples.setdefault((case, subject), Samples())
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 - a peer's defect must not end the run
            samples.error = f"{type(error).__name__}: {error}"[:200]
            return
        if counted and found is not None:
            samples.add(self.size_bytes, found.seconds, found.cpu_seconds)

    def made(self) -> list[page.Row]:
        """The medians, each beside the best limit of its case."""
        made = []
        for (case, subject), samples in self.samples.items():
            limit = None
            if not subject.startswith("limit:"):
                plain = [
                    each
                    for (of, name), each in self.samples.items()
                    if of == case and name.startswith("limit:") and each.rates
                ]
                limit = max(plain, key=lambda each: sorted(each.rates)[len(each.rates) // 2], default=None)
            made.append(samples.row(case, subject, limit, note=page.NOTES.get((case, subject), "")))
        return made


def run(options: argparse.Namespace, work: Path, store: str, ours: Subject) -> Rows:
    """All rounds."""
    torch.manual_seed(1)
    state = state_dict(int(options.size * 1e9))
    tensors = list(state["model"].values())
    size_bytes = sum(each.nbytes for each in tensors)
    rows = Rows(size_bytes)
    copy = limits.HostCopy(tensors)
    disk = work / "disk"
    disk.mkdir()
    peers = PEERS.open(state, disk, store, BUCKET)
    for number in range(options.rounds + 1):
        counted = number > 0
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        saved = Saved()
        stall = partial(ours.save, state, f"s3://{BUCKET}/run", number, saved)
        in_folder = partial(ours.save_committed, state, str(work / "origin"), number)
        written = partial(limits.fio, disk, size_bytes)
        for case, subject, measured in [
            ("checkpoint/stall", "limit: copy into warm memory", copy.run),
            ("checkpoint/stall", "longshore", stall),
            ("checkpoint/local-durable", "longshore", partial(getattr, saved, "local_durable")),
            ("checkpoint/committed", "longshore", partial(getattr, saved, "committed")),
            ("checkpoint/committed-folder", "longshore", in_folder),
            ("checkpoint/local-durable", "limit: fio, buffered, fsync", partial(written, direct=False)),
            ("checkpoint/local-durable", "limit: fio, direct, fsync", partial(written, direct=True)),
            ("checkpoint/committed-folder", "limit: fio, direct, fsync", partial(written, direct=True)),
            ("checkpoint/local-durable", ALONE, partial(ours.save_here, state, "s3://no-such-bucket/run", number)),
            (
                "checkpoint/committed",
                "limit: plain multipart PUTs",
                partial(limits.multipart, store, f"/{BUCKET}/limit", size_bytes),
            ),
        ]:
            rows.measure(case, subject, measured, counted)
        for peer in peers:
            measure_peer(rows, peer, counted)
        limits.clear(store, BUCKET)
    return rows


def measure_peer(rows: Rows, peer: Peer, counted: bool) -> None:
    """One round of a peer."""
    for case, work in peer.cases.items():
        rows.measure(case, peer.name, work, counted)
    peer.clean()


if __name__ == "__main__":
    sys.exit(main())
