"""The plots: SVG, from the rows alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt  # behind the choice of a backend
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Okabe and Ito's palette, which the colour-blind can tell apart.
LONGSHORE, REGION, PEER, LIMIT = "#0072B2", "#56B4E9", "#E69F00", "#7F7F7F"
STEPS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F"]
BARS = ["local/resident", "local/cold", "origin/direct", "origin/direct-paced"]
CASES_OF_CPU = ["local/resident", "local/cold", "worker/same-host", "worker/tcp", "origin/direct", "origin/empty-cache"]
WATERFALL = ["local/resident", "worker/tcp", "origin/direct"]
Rows = list[dict[str, Any]]


def write(rows: Rows, folder: Path) -> dict[str, str]:
    """All plots that the rows have something for: name to what it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    style = {"svg.fonttype": "none", "svg.hashsalt": "longshore", "font.family": "sans-serif", "font.size": 9}
    found = {}
    with mpl.rc_context(style):
        for name, (title, make) in PLOTS.items():
            (folder / f"{name}.svg").unlink(missing_ok=True)
            figure = make(rows)
            if figure is not None:
                save(figure, folder / f"{name}.svg")
                found[name] = title
    return found


def save(figure: Figure, path: Path) -> None:
    """Without a date, so that the same results give the same file."""
    # White behind it: pages are dark on some screens.
    figure.savefig(
        path, bbox_inches="tight", facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None
    )
    plt.close(figure)


def colour(subject: str) -> str:
    if subject == "longshore":
        return LONGSHORE
    return REGION if subject.startswith("longshore") else PEER


def of_case(rows: Rows, case: str) -> Rows:
    return [row for row in rows if row["case"] == case and row["value"]]


def panels(rows: Rows, cases: list[str], draw: Callable[[Axes, Rows], None], label: str) -> Figure | None:
    """One below the other, as high as it has bars."""
    shown = [(case, of_case(rows, case)) for case in cases]
    shown = [(case, found) for case, found in shown if found]
    if not shown:
        return None
    heights = [len(found) + 1.2 for _, found in shown]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(8.2, 0.27 * sum(heights) + 0.5), height_ratios=heights, squeeze=False
    )
    for axis, (case, found) in zip(axes[:, 0], shown, strict=True):
        draw(axis, found)
        axis.set_title(case, loc="left", fontsize=10, fontweight="bold")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[-1, 0].set_xlabel(label)
    figure.tight_layout(h_pad=0.8)
    return figure


def bars(axis: Axes, names: list[str], values: list[float], spans: list[tuple[float, float]] | None, form: str) -> None:
    """Horizontal, the best on top, each with its number behind it."""
    places = range(len(names))
    axis.barh(places, values, color=[colour(name) for name in names], height=0.72)
    ends = values
    if spans is not None:
        low = [value - span[0] for value, span in zip(values, spans, strict=True)]
        high = [span[1] - value for value, span in zip(values, spans, strict=True)]
        axis.errorbar(values, places, xerr=[low, high], fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        ends = [span[1] for span in spans]
    room = max(ends)
    for place, value, end in zip(places, values, ends, strict=True):
        axis.text(end + room * 0.012, place, form.format(value), va="center", fontsize=8)
    axis.set_xlim(0, room * 1.13)
    axis.set_yticks(list(places), names)
    axis.invert_yaxis()


def load_time(rows: Rows) -> Figure | None:
    """Seconds a GB of each subject."""

    def draw(axis: Axes, found: Rows) -> None:
        ordered = sorted(found, key=lambda row: -row["value"])
        spans = [(1 / row["max"], 1 / row["min"]) for row in ordered]
        bars(axis, [row["subject"] for row in ordered], [1 / row["value"] for row in ordered], spans, "{:.2f}")
        limits = [row["limit"] for row in ordered if row["limit"]]
        if limits:
            axis.axvline(1 / limits[0], color=LIMIT, linestyle="--", linewidth=1.2)
            name = next(row["limit_name"] for row in ordered if row["limit"])
            axis.set_title(f"- - {name}: {1 / limits[0]:.2f}", loc="right", fontsize=8, color=LIMIT)

    return panels(
        rows, BARS, draw, "seconds to load 1 GB, shorter is better (bar: median, whisker: fastest and slowest round)"
    )


def cpu(rows: Rows) -> Figure | None:
    """CPU seconds a GB of each subject."""

    def draw(axis: Axes, found: Rows) -> None:
        known = [row for row in found if row["cpu_s_per_gb"] is not None]
        ordered = sorted(known, key=lambda row: row["cpu_s_per_gb"])
        bars(axis, [row["subject"] for row in ordered], [row["cpu_s_per_gb"] for row in ordered], None, "{:.2f}")

    return panels(
        rows, CASES_OF_CPU, draw, "CPU seconds per GB, client and servers without the origin, shorter is better"
    )


def workers(rows: Rows) -> Figure | None:
    """Throughput against the number of workers."""
    found = [row for row in rows if row["case"].startswith("worker/tcp-") and row["value"]]
    counts = sorted({int(row["case"].removeprefix("worker/tcp-")) for row in found})
    if not counts:
        return None
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    for subject, style in [("longshore", "-"), ("longshore, host region", "--")]:
        line = {int(row["case"].removeprefix("worker/tcp-")): row for row in found if row["subject"] == subject}
        points = [line[count] for count in counts if count in line]
        at = [count for count in counts if count in line]
        values = [row["value"] for row in points]
        errors = [[row["value"] - row["min"] for row in points], [row["max"] - row["value"] for row in points]]
        axis.errorbar(
            at, values, yerr=errors, color=colour(subject), linestyle=style, marker="o", capsize=3, label=subject
        )
        if subject == "longshore":
            axis.plot(
                at, [row["limit"] for row in points], color=LIMIT, linestyle=":", marker="s", label="limit: raw TCP"
            )
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("cache workers, on the cores of one machine")
    axis.set_ylabel("GB/s")
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.legend(fontsize=8, loc="best")
    return figure


def works(step: dict[str, Any]) -> bool:
    """Whether a step does something, or takes no time."""
    span = step["end"] - step["start"]
    return bool(span < 0.005 or step["busy"] > span / 100)


def waterfall(rows: Rows) -> Figure | None:
    """The steps of one load, from first start to last end."""
    with_steps = {
        row["case"]: [step for step in row["steps"] if works(step)]
        for row in rows
        if row["subject"] == "longshore" and row.get("steps")
    }
    shown = [case for case in WATERFALL if case in with_steps]
    if not shown:
        return None
    heights = [len(with_steps[case]) + 1.2 for case in shown]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(8.2, 0.27 * sum(heights) + 0.6), height_ratios=heights, squeeze=False
    )
    names = list(dict.fromkeys(step["step"] for case in shown for step in with_steps[case]))
    colours = {name: STEPS[at % len(STEPS)] for at, name in enumerate(names)}
    for axis, case in zip(axes[:, 0], shown, strict=True):
        steps = sorted(with_steps[case], key=lambda step: (step["start"], step["end"]))
        last = max(step["end"] for step in steps)
        for place, step in enumerate(steps):
            width = max(step["end"] - step["start"], last * 0.002)
            axis.barh(place, width * 1e3, left=step["start"] * 1e3, color=colours[step["step"]], height=0.72)
            text = f"{(step['end'] - step['start']) * 1e3:.0f} ms, busy {step['busy'] * 1e3:.0f}"
            axis.text((step["start"] + width + last * 0.01) * 1e3, place, text, va="center", fontsize=8)
        axis.set_xlim(0, last * 1e3 * 1.25)
        axis.set_yticks(range(len(steps)), [step["step"] for step in steps])
        axis.invert_yaxis()
        axis.set_title(case, loc="left", fontsize=10, fontweight="bold")
        axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[-1, 0].set_xlabel("milliseconds since the load began; busy: summed over threads")
    figure.tight_layout(h_pad=0.8)
    return figure


PLOTS: dict[str, tuple[str, Callable[[Rows], Figure | None]]] = {
    "load-time": ("Seconds to load 1 GB, by case and subject", load_time),
    "workers": ("Throughput against the number of workers", workers),
    "waterfall": ("The steps of one load", waterfall),
    "cpu": ("CPU seconds per GB, by case and subject", cpu),
}
