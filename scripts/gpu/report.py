"""Rows, the JSON file they are kept in, and the page that is made from it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cases import CASES, CHECKS, MEASURES, PUBLISHED

#: What a row can be. Only `measured` and `passed` say something good.
MEASURED, PASSED, FAILED, NOT_MEASURED, PUBLISHED_FIGURE = (
    "measured",
    "passed",
    "failed",
    "not measured",
    "as published",
)
FAKE = "fake"
#: What a run over the fake driver does not tell.
SPEEDS = ("value", "limit", "ratio_to_limit", "cpu_s_per_gb", "min", "max")
NOT_YET = "not measured yet"


@dataclass
class Row:
    """One subject on one case."""

    case: str
    subject: str
    status: str
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    ratio_to_limit: float | None = None
    cpu_s_per_gb: float | None = None
    runs: int = 0
    min: float | None = None
    max: float | None = None
    cache_state: str = ""
    command: str = ""
    note: str = ""


@dataclass
class Samples:
    """Repeated measurements of one subject: rates and CPU, round by round."""

    rates: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)
    error: str = ""

    def add(self, size_bytes: int, seconds: float, cpu_seconds: float) -> None:
        """One round."""
        gigabytes = size_bytes / 1e9
        self.rates.append(gigabytes / seconds)
        self.cpu_s_per_gb.append(cpu_seconds / gigabytes)

    def row(self, case: str, subject: str, limit: Samples | None = None, **more: Any) -> Row:
        """The medians; the ratio is the median of the ratios within each round."""
        note = more.pop("note", "")
        if not self.rates:
            return Row(case, subject, FAILED, note=f"{note}; {self.error or 'no round ended'}".lstrip("; "), **more)
        if self.error:
            note = f"{note}; ended early: {self.error}".lstrip("; ")
        row = Row(
            case,
            subject,
            MEASURED,
            value=statistics.median(self.rates),
            unit="GB/s",
            cpu_s_per_gb=statistics.median(self.cpu_s_per_gb),
            runs=len(self.rates),
            min=min(self.rates),
            max=max(self.rates),
            note=note,
            **more,
        )
        if limit is not None and limit.rates:
            row.limit = statistics.median(limit.rates)
            pairs = zip(self.rates, limit.rates, strict=False)
            row.ratio_to_limit = statistics.median([ours / theirs for ours, theirs in pairs])
        return row


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


class Report:
    """The rows of one run, written after each of them: what was measured stays when the run is cut off."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.facts = facts
        self.rows: list[Row] = []

    def add(self, *rows: Row) -> None:
        """Adds rows and writes the file."""
        for row in rows:
            if row.case not in {case.name for case in CASES}:
                raise ValueError(f"case {row.case} is not listed in cases.py")
            self.rows.append(row)
            print(_line(row), flush=True)
        self.write()

    def missing(self, case: str, subject: str) -> bool:
        """Whether there is no such row yet."""
        return not any(row.case == case and row.subject == subject for row in self.rows)

    def complete(self, reason: str) -> None:
        """Adds a row for everything that has none."""
        for case in CASES:
            for subject in case.subjects:
                if self.missing(case.name, subject):
                    if subject in PUBLISHED:
                        self.add(Row(case.name, subject, PUBLISHED_FIGURE, note=PUBLISHED[subject]))
                    else:
                        self.add(Row(case.name, subject, NOT_MEASURED, note=f"not measured: {reason}"))

    def value(self) -> dict[str, Any]:
        """What the JSON file holds."""
        order = {(case.name, subject): at for at, case in enumerate(CASES) for subject in case.subjects}
        rows = sorted(self.rows, key=lambda row: order.get((row.case, row.subject), len(order)))
        values = [asdict(row) for row in rows]
        if self.facts["card"] == FAKE:
            # Nobody shall read a speed out of a run that has none.
            self.facts["seconds"] = 0
            self.facts.pop("page_locked", None)
            values = [value | dict.fromkeys(SPEEDS, None) | {"note": ""} for value in values]
        return {**self.facts, "rows": values}

    def write(self) -> None:
        """Replaces the JSON file and the page."""
        value = self.value()
        for name, text in (("gpu.json", json.dumps(value, indent=1) + "\n"), ("gpu.md", page([value]))):
            target = self.folder / name
            fresh = target.with_suffix(".new")
            fresh.write_text(text)
            fresh.replace(target)


def _line(row: Row) -> str:
    return f"{row.status:<13} {row.case:<28} {row.subject:<32} {_value(asdict(row)):<16} {row.note[:200]}"


def _value(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    text = f"{row['value']:.0f}" if row["unit"] in {"", "bytes", "tensors", "reads"} else f"{row['value']:.3g}"
    return f"{text} {row['unit']}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


INTRODUCTION = """# Benchmarks on a GPU

Written by `make gpu-page` from the files of `benches/results/gpu*`; no number here is edited by hand. How it is
measured: the binaries, the Python client and the other loaders' wheels are carried to the machine with the card as
one folder (`make gpu-bundle`, `scripts/gpu-wheels.sh`); `scripts/gpu.sh FOLDER OUT` then checks correctness,
measures, and writes one JSON and one page. Everything is timed from the call to usable torch tensors on the GPU, in
one run, in alternation with its limit; rates are medians over the rounds, *of limit* is the median of the ratios
within each round. After each load the tensors are compared: byte for byte with the file on the CPU the first time, by
two sums over all of their bytes afterwards. CPU seconds are those of all processes that took part.
"""


def page(results: list[dict[str, Any]]) -> str:
    """The page of all results: cards first, the fake driver last and without its speeds."""
    text = [INTRODUCTION]
    cards = merged([result for result in results if result["card"] != FAKE])
    for result in cards:
        text.append(_section(result))
    if not cards:
        text.append(_empty())
    for result in results:
        if result["card"] == FAKE:
            text.append(_fake(result))
    return "\n".join(text)


def merged(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of some stages each, on one kind of card on one day, as one: of each row what says most."""
    best = [MEASURED, PASSED, PUBLISHED_FIGURE, FAILED, NOT_MEASURED]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        key = (result["card"], result["date"])
        if key not in found:
            found[key] = {**result, "rows": list(result["rows"])}
            continue
        whole = found[key]
        rows = {(row["case"], row["subject"]): row for row in whole["rows"]}
        for row in result["rows"]:
            name = (row["case"], row["subject"])
            if name not in rows or best.index(row["status"]) < best.index(rows[name]["status"]):
                rows[name] = row
        whole["rows"] = list(rows.values())
        whole["seconds"] = whole.get("seconds", 0) + result.get("seconds", 0)
        whole["command"] = "`, `".join(dict.fromkeys([*whole["command"].split("`, `"), result["command"]]))
    return list(found.values())


def _section(result: dict[str, Any]) -> str:
    """One run on a card."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"## {result['card']}, {result['date']}\n",
        f"{result['machine']}. Driver {result['driver']}. {versions}.",
        f"Model: {result.get('model', '')}.\n" if result.get("model") else "",
        _page_locked(result),
        *_checks(result["rows"]),
        *_measures(result["rows"]),
        f"\nCommand: `{result['command']}`. It took {result.get('seconds', 0):.0f} s.\n",
    ]
    return "\n".join(lines)


def _page_locked(result: dict[str, Any]) -> str:
    """How long the daemon of the large model took to start, and the disk that files were read from."""
    found = []
    if locked := result.get("page_locked"):
        size, seconds = locked["bytes"] / 1e9, locked["start_seconds"]
        found.append(f"{size:.1f} GB of page-locked memory ({locked['pages']}) were ready in {seconds:.1f} s.")
    if disk := result.get("disk"):
        found.append(f"Files on a disk: {disk}.")
    return " ".join(found) + "\n" if found else ""


def _checks(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["### Correctness\n", "| check | what | result | |", "|---|---|---|---|"]
    for case in CHECKS:
        for row in rows:
            if row["case"] == case.name:
                lines.append(f"| `{case.name}` | {case.what} | {row['status']} | {_cell(row['note'])} |")
    return lines


def _measures(rows: list[dict[str, Any]]) -> list[str]:
    head = "| case | subject | median | min to max | limit | of limit | CPU s per GB | runs | state | |"
    lines = ["\n### Speed\n", head, "|---|---|---|---|---|---|---|---|---|---|"]
    for case in MEASURES:
        for row in rows:
            if row["case"] != case.name:
                continue
            value = _value(row) or row["status"]
            span = "" if row["min"] is None else f"{row['min']:.3g} to {row['max']:.3g}"
            limit, share = _number(row["limit"], ".3g"), _number(row["ratio_to_limit"], ".1%")
            cpu = _number(row["cpu_s_per_gb"], ".3f")
            lines.append(
                f"| `{row['case']}` | {row['subject']} | {value} | {span} | {limit} | {share} | {cpu} | "
                f"{row['runs'] or ''} | {row['cache_state']} | {_cell(row['note'])} |"
            )
    lines.append("\n" + _legend())
    return lines


def _legend() -> str:
    lines = []
    for case in MEASURES:
        goal = f" Wanted: {case.goal}." if case.goal else ""
        lines.append(f"* `{case.name}`: {case.what}.{goal}")
    return "\n".join(lines)


def _empty() -> str:
    """The list of cases, when no card has run them."""
    lines = ["## On a card\n", "| case | subject | |", "|---|---|---|"]
    for case in CASES:
        lines += [f"| `{case.name}` | {subject} | {PUBLISHED.get(subject, NOT_YET)} |" for subject in case.subjects]
    return "\n".join([*lines, "", _legend(), ""])


def _fake(result: dict[str, Any]) -> str:
    """What the same script says over the fake driver: whether it works, never how fast."""
    lines = [
        "## On the fake driver (logic only, no speed)\n",
        f"{result['date']}. The same script over the fake CUDA driver with tiny models, as the tests run it. It proves "
        "our code's logic, not the real driver's behaviour, and its times mean nothing: none are shown.\n",
        "| case | subject | result |",
        "|---|---|---|",
    ]
    words = {MEASURED: "works", PASSED: "passed", FAILED: "failed"}
    for row in result["rows"]:
        if row["status"] in words:
            lines.append(f"| `{row['case']}` | {row['subject']} | {words[row['status']]} |")
    return "\n".join([*lines, ""])
