"""Runs the micro benchmarks and writes the medians of criterion's record, in the form of the other results.

    python3 benches/micro.py [--no-run] [FILTER]

Criterion's own record is in target/criterion; what is measured once a process is in lines that begin with ``once:``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ["cargo", "bench", "--locked", "-p", "longshore-benches", "--bench", "micro"]
ONCE = re.compile(r"^once: (\S+) ([0-9.]+) (\S+)$", re.MULTILINE)
#: What the machine can do at most, where a benchmark of the same run measures it.
LIMITS = {f"micro/random-4k-verified-{threads}": f"micro/random-4k-pread-{threads}" for threads in (1, 4)}
#: Whose work a benchmark also measures, beside ours: its name is that of ours and this.
PEERS = ("safetensors",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-run", action="store_true", help="take what an earlier run left")
    parser.add_argument("--binary", type=Path, help="a bench that was built already, instead of cargo")
    parser.add_argument("filter", nargs="?", help="only benchmarks whose name holds this")
    options = parser.parse_args()
    criterion = Path(os.environ.get("CRITERION_HOME", ROOT / "target" / "criterion"))
    log = criterion / "once.txt"
    if not options.no_run:
        command = [str(options.binary), "--bench"] if options.binary else [*COMMAND, "--"]
        command += [options.filter] if options.filter else []
        run = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        criterion.mkdir(parents=True, exist_ok=True)
        log.write_text(run.stdout)
    found = rows(criterion) + (once(log.read_text()) if log.exists() else [])
    compare(found)
    plain = not options.no_run and options.binary is None and options.filter is None
    said = "make bench-micro" if plain else f"benches/micro.py {' '.join(sys.argv[1:])}"
    found = [{**each, "command": said} for each in found]
    write(sorted(found, key=lambda row: (row["case"], row["subject"])))


def row(case: str, value: float, unit: str, samples: list[float]) -> dict[str, Any]:
    """A row as all results have it."""
    subject = next((peer for peer in PEERS if case.endswith(f"-{peer}")), "longshore")
    return {
        "case": case.removesuffix(f"-{subject}"),
        "subject": subject,
        "value": round(value, 3),
        "unit": unit,
        "limit": None,
        "ratio_to_limit": None,
        "cpu_s_per_gb": None,
        "runs": len(samples),
        "min": round(min(samples), 3),
        "max": round(max(samples), 3),
        "cache_state": "cold" if "-cold" in case else "warm",
    }


def rows(criterion: Path) -> list[dict[str, Any]]:
    """The median of each benchmark, and the fastest and the slowest sample."""
    found = []
    for path in criterion.glob("*/*/new/estimates.json"):
        sample = json.loads((path.parent / "sample.json").read_text())
        times = [time / count for time, count in zip(sample["times"], sample["iters"], strict=True)]
        median = json.loads(path.read_text())["median"]["point_estimate"]
        case = f"micro/{path.parent.parent.name}"
        found.append(row(case, median, "ns", times))
    return found


def once(text: str) -> list[dict[str, Any]]:
    """What was measured once."""
    taken = [(f"micro/{case}", float(value), unit) for case, value, unit in ONCE.findall(text)]
    return [row(case, value, unit, [value]) for case, value, unit in taken]


def compare(found: list[dict[str, Any]]) -> None:
    """Puts the limits, or what a peer needs, beside ours; all are times, so that a ratio over 1 is slower than that."""
    values = {(each["case"], each["subject"]): each["value"] for each in found}
    for each in found:
        if each["subject"] != "longshore":
            continue
        limit = values.get((LIMITS.get(each["case"], ""), "longshore"))
        for peer in PEERS:
            limit = limit or values.get((each["case"], peer))
        if limit:
            each["limit"], each["ratio_to_limit"] = limit, round(each["value"] / limit, 3)


def write(found: list[dict[str, Any]]) -> None:
    cores = len(os.sched_getaffinity(0))
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    rustc = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    record = {
        "date": date,
        "machine": f"{cpu()}, {cores} cores, Linux {platform.release()}",
        "versions": {"longshore": revision(), "rustc": rustc, **{peer: locked(peer) for peer in PEERS}},
        "rows": found,
    }
    path = ROOT / "benches" / "results" / f"micro-{date}-{cores}-cores.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    for each in found:
        ratio = "" if each["ratio_to_limit"] is None else f"  {each['ratio_to_limit']:.2f} x"
        print(f"{each['case']:<36} {each['subject']:<12} {each['value']:>16,.1f} {each['unit']}{ratio}")
    print(f"written: {path.relative_to(ROOT)}")


def cpu() -> str:
    """The name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def locked(crate: str) -> str:
    """The version of a crate that is measured."""
    found = re.search(rf'^name = "{crate}"\nversion = "(.*)"$', (ROOT / "Cargo.lock").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def revision() -> str:
    """The commit that was measured."""
    described = ["git", "describe", "--always", "--dirty"]
    run = subprocess.run(described, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
