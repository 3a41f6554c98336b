"""docs/profiles.md: the tops of the kept profiles, and what was learned of them."""

from __future__ import annotations

import re
from pathlib import Path

from speed import lessons
from speed.profiles import PATHS

INTRODUCTION = """# Profiles

Written by `make bench-profile` from the texts in `benches/profiles`, which have more of each: machine, versions,
command, threads and twenty symbols. The processes are those of the [benchmarks](benchmarks.md); perf samples all
threads of loader, worker and client while a load is timed. Shares are of all their samples. Time under perf is not
compared with anything: the figures of the benchmarks are. What was learned, and changed because of it, stands below
each table; the reasons are among the decisions in `ARCHITECTURE.md`.
"""
SHARE = re.compile(r"^\s*(?P<share>[0-9.]+%)  (?P<role>\S+(?: \S+)*?)\s{2,}(?P<what>.+)$")
#: Of each part of a profile.
ROWS = 6


def write(folder: Path, docs: Path) -> None:
    """From all profiles that are kept."""
    lines = [INTRODUCTION]
    for name, path in PATHS.items():
        kept = folder / f"{name}.txt"
        if kept.exists():
            lines += section(name, path.case, kept.read_text())
    (docs / "profiles.md").write_text("\n".join(lines).rstrip() + "\n")


def section(name: str, case: str, text: str) -> list[str]:
    """One path."""
    head, *parts = text.split("\n\n")[1:]
    told = dict(line.split(": ", 1) for line in head.splitlines())
    what = lessons.WHAT[name]
    lines = [
        f"## {name}\n",
        f"{what[0].upper()}{what[1:]}: the row `{case}`. {told['date']}, {told['measured']}. "
        f"CPU seconds per GB, by samples: {told['CPU seconds per GB, by samples']}. "
        f"[benches/profiles/{name}.txt](../benches/profiles/{name}.txt)\n",
        "| share | process | by what the kernel was entered |",
        "|---|---|---|",
        *rows(parts[1]),
        "",
        "| share | process | symbol, by the time in itself |",
        "|---|---|---|",
        *rows(parts[2], "`"),
        "",
    ]
    if learned := lessons.learned(name):
        lines += ["Learned:\n", learned, ""]
    return lines


def rows(part: str, quote: str = "") -> list[str]:
    """The first lines of a part, as lines of a table."""
    found = [match for line in part.splitlines()[1:] if (match := SHARE.match(line))]
    made = []
    for each in found[:ROWS]:
        what = each["what"].replace("|", "\\|")
        made.append(f"| {each['share']} | {each['role']} | {quote}{what}{quote} |")
    return made
