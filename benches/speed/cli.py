"""The command line: what is measured, and where it goes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ending import Ending
from machine import describe, versions

from speed import groups, needs, page, perf, profile_page, profiles
from speed.agents import PEERS, ROOT, clean_environment, python_of
from speed.bench import Bench, Options
from speed.results import Results, is_partial
from speed.rounds import run_group
from speed.rows import Row, Series

RESULTS = ROOT / "benches" / "results"


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/speed", description=__doc__)
    parser.add_argument("--bin-dir", type=Path, default=ROOT / "target" / "release", help="folder of the binaries")
    parser.add_argument("--size", type=float, default=1.0, help="GB of the model")
    parser.add_argument("--shards", type=int, default=2, help="files of the model")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, behind one that warms up and verifies")
    parser.add_argument("--threads", type=int, default=4, help="connections of the limits")
    parser.add_argument("--small-files", type=int, default=10_000, help="files of 100 kB")
    parser.add_argument("--small-model", type=float, default=0.128, help="GB of each of eight models loaded at once")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of metadata, and small reads")
    parser.add_argument("--workers", default="1,2,4,8", help="numbers of TCP workers")
    parser.add_argument("--peers", default=",".join(PEERS), help="adapters of benches/peers; empty for none")
    parser.add_argument(
        "--concurrent-peers", default="runai,s3torchconnector", help="those with eight processes at once"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3600,
        help="after so long only the first two rounds of a group are measured, and after twice as long no group",
    )
    parser.add_argument(
        "--short-seconds",
        type=float,
        default=30,
        help="a group goes on up to three times --rounds while its rounds took less than this in all",
    )
    parser.add_argument("--needs", action="store_true", help="only tell the memory and disk that each group takes")
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="a case, or the first part of one")
    parser.add_argument("--folder", type=Path, default=ROOT / "target", help="a folder on the disk to measure")
    parser.add_argument("--results", type=Path, help="the file to write [default: by date, in benches/results]")
    parser.add_argument("--full", action="store_true", help="call the results, and the page, those of the full run")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="RESULTS",
        help="only write the page of these results; of an ended run's (*.partial.json) with --docs alone",
    )
    parser.add_argument("--docs", type=Path, help="where benchmarks.md and its plots go [default: docs]")
    parser.add_argument(
        "--profile", action="store_true", help="profile the hot paths, or those of --only, into benches/profiles"
    )
    parser.add_argument("--profiles", type=Path, default=profiles.FOLDER, help="where profiles go")
    parser.add_argument("--no-page", action="store_true", help="write no page")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    given = arguments(words)
    docs = given.docs or ROOT / "docs"
    if given.page is not None:
        if is_partial(given.page) and given.docs is None:
            raise SystemExit(
                f"{given.page} is of a run that did not end by itself: say with --docs where its page goes"
            )
        page.write(given.page, docs)
        return 0
    options = options_of(given)
    if given.needs:
        print(needs.table(options))
        return 0
    check(options)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.profile:
        names = profiles.wanted(given.only)
        if why_not := perf.why_not():
            raise SystemExit(f"no profile can be made: {why_not}")
        options.only, options.peers = [], []
    ending = Ending()
    ending.listen()
    bench = Bench(options, Path(tempfile.mkdtemp(prefix="longshore-speed-", dir=given.folder)), ending)
    try:
        if given.profile:
            return profile(bench, given, names)
        results = results_of(bench, given)
        rows = run(bench, command_of(given), results)
        if not rows:
            raise SystemExit(f"no case is called {', '.join(options.only)}")
    finally:
        bench.end()
    if results is None:
        print(json.dumps([row.as_dict() for row in rows], indent=1))
        return 0
    results.finish(rows)
    print(f"written: {results.path}")
    if not given.no_page:
        page.write(results.path, docs)
    return 0


def results_of(bench: Bench, given: argparse.Namespace) -> Results | None:
    """Where the rows go; some rows alone are for who asked, not for the page."""
    if given.only and given.results is None:
        return None
    facts = facts_of(bench, given)
    name = f"{facts['date']}-{os.cpu_count()}-cores{'-full' if given.full else ''}.json"
    # Peers say their versions when they are started.
    return Results(
        given.results or RESULTS / name,
        lambda seconds: {
            **facts,
            "versions": facts["versions"] | dict(sorted(bench.versions.items())),
            "seconds": round(seconds),
        },
        bench.ending,
    )


def check(options: Options) -> None:
    """That everybody is there who takes part."""
    unknown = {*options.peers, *options.concurrent_peers} - PEERS.keys()
    if unknown:
        raise SystemExit(f"--peers: there is no {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    for program in ("longshore", "fake-origin", "bench-tool"):
        if not (options.bin_dir / program).exists():
            raise SystemExit(f"{options.bin_dir / program} is missing: run `make bench`, which builds it")


def profile(bench: Bench, given: argparse.Namespace, names: list[str]) -> int:
    """Profiles instead of figures."""
    found = facts_of(bench, given)
    said = ", ".join(f"{what} {version}" for what, version in found["versions"].items())
    facts = {
        "date": found["date"],
        "machine": found["machine"],
        "disk": found["disk"],
        "versions": said,
        "command": f"{command_of(given)} --profile",
    }
    failed = profiles.run(bench, names, facts, given.profiles)
    if not given.no_page:
        profile_page.write(given.profiles, given.docs or ROOT / "docs")
    return 1 if failed else 0


def options_of(given: argparse.Namespace) -> Options:
    return Options(
        bin_dir=given.bin_dir.resolve(),
        size_bytes=int(given.size * 1e9),
        shards=given.shards,
        rounds=max(given.rounds, 1),
        threads=given.threads,
        small_files=given.small_files,
        small_model_bytes=int(given.small_model * 1e9),
        calls=max(given.calls, 100),
        workers=[int(count) for count in given.workers.split(",") if count],
        seconds=given.seconds,
        short_seconds=given.short_seconds,
        peers=[name for name in given.peers.split(",") if name],
        only=given.only,
        concurrent_peers=[name for name in given.concurrent_peers.split(",") if name],
    )


def command_of(given: argparse.Namespace) -> str:
    """How the same run is started again; `--only` is added for each row."""
    default = arguments([])
    words = ["python3", "benches/speed"]
    for name in (
        "size",
        "shards",
        "rounds",
        "threads",
        "small_files",
        "small_model",
        "calls",
        "workers",
        "peers",
        "concurrent_peers",
        "seconds",
        "short_seconds",
        "bin_dir",
    ):
        value = getattr(given, name)
        if value != getattr(default, name):
            value = os.path.relpath(value, ROOT) if isinstance(value, Path) else value
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def run(bench: Bench, command: str, results: Results | None = None) -> list[Row]:
    """All groups, one after the other; the results have what there is behind each."""
    rows: list[Row] = []
    needed = needs.of(bench.options)
    for name, (cases, make) in groups.of(bench.options).items():
        if not any(bench.wants(case) for case in cases):
            continue
        lacking = "no time was left, see --seconds" if bench.is_over else needed[name].lacking(bench.work)
        if lacking:
            print(f"{name}: {lacking}", file=sys.stderr, flush=True)
            rows += [series.row(command, None) for series in unmeasured(bench, cases, lacking)]
            continue
        rows += group_rows(bench, name, cases, make, command)
        if results is not None:
            results.keep(rows)
    return rows


def unmeasured(bench: Bench, cases: list[str], why: str) -> list[Series]:
    """Rows that say why there is nothing in them."""
    return [Series(case, "longshore", "", error=why) for case in cases if bench.wants(case)]


def group_rows(bench: Bench, name: str, cases: list[str], make: groups.Make, command: str) -> list[Row]:
    """The rows of a group; when it cannot be set up, rows that say why."""
    try:
        series = run_group(bench, name, make)
    except Exception as error:  # noqa: BLE001 # the other groups are measured all the same
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        series = unmeasured(bench, cases, f"the case could not be set up: {type(error).__name__}: {error}"[:300])
    by_key = {each.key: each for each in series}
    rows = []
    for each in series:
        # A limit is measured with the cases that it limits.
        only = cases[0] if each.case.startswith("limit/") else each.case
        rows.append(each.row(f"{command} --only {only}", by_key.get(each.limit) if each.limit else None))
    return rows


def facts_of(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    """What is known of a run when it begins."""
    longshore = bench.options.bin_dir / "longshore"
    found = versions(longshore, clean_environment(), str(python_of("longshore")))
    found.pop("CUDA of torch", None)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": describe(),
        "disk": file_system(given.folder),
        "versions": found,
        "model": f"{bench.options.size_bytes / 1e9:g} GB of BF16 tensors in {bench.options.shards} safetensors files",
        "rounds": bench.options.rounds,
        "command": command_of(given),
    }


def file_system(folder: Path) -> str:
    """Type and device of the file system of a folder."""
    done = subprocess.run(["findmnt", "-no", "FSTYPE,SOURCE", "-T", folder], capture_output=True, text=True)
    return " on ".join(done.stdout.split()) or "unknown"
