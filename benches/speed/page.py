"""The page and its plots, made of the results alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from speed import aims, words
from speed.agents import ROOT
from speed.results import name_of
from speed.rows import RATES

PLOTS_PYTHON = ROOT / ".cache" / "bench-plots" / "bin" / "python"


def write(results: Path, docs: Path) -> None:
    """`docs/benchmarks.md` and `docs/benchmarks/*.svg`; `benchmarks-full` for results whose name ends with it."""
    if importlib.util.find_spec("matplotlib") is None:
        if not PLOTS_PYTHON.exists():
            raise SystemExit(f"the plots need matplotlib: run scripts/bench-plots.sh, then {again(results)}")
        command = [str(PLOTS_PYTHON), str(ROOT / "benches" / "speed"), "--page", str(results), "--docs", str(docs)]
        subprocess.run(command, check=True, timeout=300)
        return
    from speed import plots

    value = json.loads(results.read_text())
    name = "benchmarks-full" if name_of(results).endswith("-full") else "benchmarks"
    alts = plots.write(value["rows"], docs / name)
    made = {figure: f"![{alt}]({name}/{figure}.svg)\n" for figure, alt in alts.items()}
    others = {kind: newest(results.parent, kind) for kind in ("micro", "checkpoint")}
    text = page(value, results.name, others, made)
    (docs / f"{name}.md").write_text(text)
    print(f"written: {docs / name}.md", file=sys.stderr)


def again(results: Path) -> str:
    return f"`python3 benches/speed --page {results}`"


def figure_section(title: str, text: str, figure: str, plots: dict[str, str]) -> list[str]:
    """A heading and a plot, when there is one."""
    if figure not in plots:
        return []
    return [f"## {title}\n", *([f"{text}\n"] if text else []), plots[figure]]


def newest(folder: Path, kind: str) -> dict[str, Any] | None:
    """The newest results of another report, which are shown, not measured again."""
    found = sorted(folder.glob(f"{kind}-*.json"))
    if not found:
        return None
    value: dict[str, Any] = json.loads(found[-1].read_text())
    return value | {"name": found[-1].name}


def page(value: dict[str, Any], name: str, others: dict[str, dict[str, Any] | None], plots: dict[str, str]) -> str:
    """All of it."""
    rows, micro, saves = value["rows"], others["micro"], others["checkpoint"]
    versions = ", ".join(f"{what} {version}" for what, version in value["versions"].items())
    minutes = value["seconds"] / 60
    lines = [
        words.INTRODUCTION.format(name=name),
        f"{value['date']}. {value['machine']}. Disk: {value['disk']}. {versions}. Model: {value['model']}. "
        f"{value['rounds']} rounds or more, where time allowed, behind one that warms up and verifies; "
        f"{minutes:.0f} minutes in all. "
        f"Command: `{value['command']}`; with `--only CASE` a case alone.",
        *([words.UNFINISHED] if value.get("unfinished") else []),
        words.METHOD.rstrip() + "\n",
        words.COLUMNS,
        "## Aims\n",
        *aims.table(rows + (micro["rows"] if micro is not None else [])),
        words.AIMS_NOTE,
        *figure_section("Load time", words.LOAD_TIME, "load-time", plots),
    ]
    for title, prefix, text in words.SECTIONS:
        of_section = [row for row in rows if row["case"].startswith(prefix)]
        if not of_section:
            continue
        lines += [f"## {title}\n", text, ""]
        if prefix == "worker/" and "workers" in plots:
            lines += [plots["workers"]]
        if "files/" in prefix and "small" in plots:
            lines += [words.SMALL, "", plots["small"]]
        lines += table(of_section)
    lines += figure_section("The steps of a load", words.STEPS, "waterfall", plots)
    lines += figure_section("CPU", words.CPU, "cpu", plots)
    if micro is not None:
        lines += micro_section(micro)
    if saves is not None:
        lines += checkpoint_section(saves)
    return "\n".join([*lines, words.HISTORY]).rstrip() + "\n"


def table(rows: list[dict[str, Any]], with_notes: bool = True) -> list[str]:
    """What was measured; below it what was not, with the reasons, and how the work is done."""
    lines = [
        "| case | subject | median | min to max | of limit | CPU s per GB | CPU over limit's | runs | state |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(dict.fromkeys(row["case"] for row in rows))
    for row in sorted((row for row in rows if row["value"] is not None), key=lambda row: rank(row, order)):
        lines.append(line(row))
    lines.append("")
    missing: dict[tuple[str, str], list[str]] = {}
    for case in order:
        of_case = [row for row in rows if row["case"] == case]
        for reason, subjects in reasons(of_case).items():
            missing.setdefault((reason, ", ".join(subjects)), []).append(f"`{case}`")
    for (reason, who), cases in missing.items():
        lines.append(f"* Not in {', '.join(cases)}: {who}: {reason}.")
    if with_notes:
        lines += notes(rows, order)
    return [*lines, ""]


def rank(row: dict[str, Any], order: list[str]) -> tuple[int, int, float]:
    """By case; limits first, then Longshore, then the peers by speed."""
    subject = row["subject"]
    kind = 0 if is_limit(row) else 1 if subject.startswith("longshore") else 2
    sign = -1 if row["unit"] in RATES else 1
    return (order.index(row["case"]), kind, sign * row["value"] if kind == 2 else 0)


def is_limit(row: dict[str, Any]) -> bool:
    return str(row["case"]).startswith("limit/") or str(row["subject"]).startswith("limit")


def line(row: dict[str, Any]) -> str:
    unit = row["unit"]
    share = "is the limit" if is_limit(row) else ""
    if row["ratio_to_limit"] is not None:
        share = f"{part(row['ratio_to_limit'])} `{row.get('limit_name') or row['case']}`"
    cpu = "" if row["cpu_s_per_gb"] is None else f"{row['cpu_s_per_gb']:.2f}"
    ratio = row.get("cpu_ratio_to_limit")
    of_limit = "" if ratio is None else f"{ratio:.2f} x"
    ours = row["subject"].startswith("longshore")
    subject = f"**{row['subject']}**" if ours else row["subject"]
    return (
        f"| `{row['case']}` | {subject} | {number(row['value'])} {unit} | "
        f"{number(row['min'])} to {number(row['max'])} | {share} | {cpu} | {of_limit} | {row['runs']} | "
        f"{row['cache_state']} |"
    )


def part(ratio: float) -> str:
    """A ratio, with as many digits as mean something."""
    if ratio >= 10:
        return f"{ratio:.0f} x"
    return f"{ratio:.{0 if ratio >= 0.1 else 1 if ratio >= 0.01 else 2}%} of"


def number(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 100 else f"{value:.2f}"


def reasons(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Why rows have no value: the subjects of each reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        error = row.get("error", "")
        if row["value"] is None:
            said = f"failed: {error}" if error else row.get("note", "")
            found.setdefault(" ".join(said.split()).rstrip("."), []).append(row["subject"])
    return found


def notes(rows: list[dict[str, Any]], order: list[str]) -> list[str]:
    """How the work of each row is done, those that do it alike together."""
    found: dict[str, list[str]] = {}
    for case in order:
        for row in rows:
            if row["case"] != case or row["value"] is None:
                continue
            failed = f"not in every round: {row['error']}" if row.get("error") else ""
            if note := "; ".join(text for text in (row.get("note", ""), failed) if text):
                who = found.setdefault(note, [])
                if (name := f"`{case}` by {row['subject']}") not in who:
                    who.append(name)
    return [f"* {', '.join(who)}: {note}." for note, who in found.items()]


def micro_section(micro: dict[str, Any]) -> list[str]:
    text = words.MICRO.format(name=micro["name"], date=micro["date"], machine=micro["machine"])
    lines = [
        "## Micro benchmarks\n",
        text,
        "",
        "| case | subject | median | fastest to slowest | beside |",
        "|---|---|---|---|---|",
    ]
    for row in micro["rows"]:
        scale, unit = scaled(row["value"], row["unit"])
        beside = "" if row["limit"] is None else f"{row['ratio_to_limit']:.2f} x {number(row['limit'] / scale)} {unit}"
        span = f"{number(row['min'] / scale)} to {number(row['max'] / scale)}"
        case, value = f"`{row['case']}` | {row['subject']}", f"{number(row['value'] / scale)} {unit}"
        lines.append(f"| {case} | {value} | {span} | {beside} |")
    return [*lines, ""]


def scaled(value: float, unit: str) -> tuple[float, str]:
    """Nanoseconds in a unit that can be read."""
    if unit != "ns" or value < 1e3:
        return 1, unit
    return (1e6, "ms") if value >= 1e6 else (1e3, "us")


def checkpoint_section(saves: dict[str, Any]) -> list[str]:
    rows = [{"limit_name": "", **row} for row in saves["rows"]]
    for row in rows:
        row["limit_name"] = "best plain write" if row["ratio_to_limit"] is not None else ""
    text = words.CHECKPOINTS.format(
        name=saves["name"],
        date=saves["date"],
        machine=saves["machine"],
        size=saves["checkpoint_bytes"] / 1e9,
        command=saves["command"],
    )
    return ["## Checkpoints\n", text, "", *table(rows, with_notes=False)]
