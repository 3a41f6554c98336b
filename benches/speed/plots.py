"""The plots: SVG, from the rows alone."""

from __future__ import annotations

import math
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
BARS = ["local/resident", "local/untouched", "local/cold", "origin/direct", "origin/direct-paced"]
CASES_OF_CPU = ["local/resident", "local/cold", "worker/same-host", "worker/tcp", "origin/direct", "origin/empty-cache"]
WATERFALL = ["local/resident", "worker/tcp", "origin/direct"]
#: Panels of small operations: title, axis, and the cases of each with what is said behind the subject.
SMALL: list[tuple[str, str, dict[str, str]]] = [
    (
        "files of 100 kB",
        "files per second",
        {"files/small": "", "files/small-cached": ", again, out of the cache", "files/warm": ", into the cache alone"},
    ),
    ("random reads of 4 kB", "reads per second", {"files/random-4k": ""}),
    ("metadata", "calls per second", {"metadata/ops": ""}),
]
#: Inches: a bar with its gap, what lies between two panels, and the width of a panel.
BAR, BETWEEN, WIDTH = 0.27, 0.72, 6.2
#: A panel whose values span more has a logarithmic axis.
LINEAR_SPAN = 50
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
    if subject in {"longshore", "longshore, prefaulted"}:
        return LONGSHORE
    if subject.startswith("limit"):
        return LIMIT
    return REGION if subject.startswith("longshore") else PEER


def of_case(rows: Rows, case: str) -> Rows:
    return [row for row in rows if row["case"] == case and row["value"]]


def stack(titles: list[str], counts: list[int]) -> tuple[Figure, list[Axes]]:
    """Panels one below the other, each as high as it has bars, with room for a title above and numbers below."""
    heights = [BAR * (count + 0.4) for count in counts]
    whole = sum(heights) + BETWEEN * len(heights)
    figure, axes, top = plt.figure(figsize=(WIDTH + 2, whole)), [], whole
    for title, height in zip(titles, heights, strict=True):
        top -= BETWEEN + height
        # What is left of the panel is the names' room; the file is cut to what is drawn.
        axis = figure.add_axes((2 / (WIDTH + 2), (top + BETWEEN / 2) / whole, WIDTH / (WIDTH + 2), height / whole))
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
        axes.append(axis)
    return figure, axes


def panels(rows: Rows, cases: list[str], draw: Callable[[Axes, Rows], None], label: str) -> Figure | None:
    """A panel for each case that has something."""
    shown = [(case, found) for case in cases if (found := of_case(rows, case))]
    if not shown:
        return None
    figure, axes = stack([case for case, _ in shown], [len(found) for _, found in shown])
    for axis, (_, found) in zip(axes, shown, strict=True):
        draw(axis, found)
    axes[-1].set_xlabel(label)
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
    for place, value, end in zip(places, values, ends, strict=True):
        number = axis.annotate(
            form.format(value), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
        # A line that lies below must not strike it out.
        number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85})
    axis.set_xlim(0, max(ends) * 1.13)
    axis.set_ylim(len(names) - 0.3, -0.7)
    axis.set_yticks(list(places), names)


def load_time(rows: Rows) -> Figure | None:
    """Seconds a GB of each subject."""

    def draw(axis: Axes, found: Rows) -> None:
        ordered = sorted(found, key=lambda row: -row["value"])
        spans = [(1 / row["max"], 1 / row["min"]) for row in ordered]
        bars(axis, [row["subject"] for row in ordered], [1 / row["value"] for row in ordered], spans, "{:.2f}")
        limits = [row["limit"] for row in ordered if row["limit"]]
        if limits:
            axis.axvline(1 / limits[0], color=LIMIT, linestyle="--", linewidth=1.2, zorder=2.5)
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


def small(rows: Rows) -> Figure | None:
    """Small files, small reads and metadata: rates."""
    shown = []
    for title, label, cases in SMALL:
        found = {row["subject"] + cases[case]: row for case in cases for row in of_case(rows, case)}
        if found:
            shown.append((title, label, dict(sorted(found.items(), key=lambda item: -item[1]["value"]))))
    if not shown:
        return None
    figure, axes = stack([title for title, _, _ in shown], [len(found) for _, _, found in shown])
    for axis, (_, label, found) in zip(axes, shown, strict=True):
        values = [row["value"] for row in found.values()]
        bars(axis, list(found), values, [(row["min"], row["max"]) for row in found.values()], "{:,.0f}")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        scale = "more is better"
        if max(values) > LINEAR_SPAN * min(values):
            axis.set_xscale("log")
            axis.set_xlim(10 ** math.floor(math.log10(min(row["min"] for row in found.values()))), max(values) * 6)
            scale = "logarithmic, more is better"
        # Beside the title: below is the next panel's.
        axis.set_title(f"{label}, {scale}", loc="right", fontsize=8, color=LIMIT)
    return figure


def workers(rows: Rows) -> Figure | None:
    """Throughput against the number of workers."""
    found = [row for row in rows if row["case"].startswith("worker/tcp-") and row["value"]]
    counts = sorted({int(row["case"].removeprefix("worker/tcp-")) for row in found})
    if not counts:
        return None
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    # Side by side, so that no whisker lies below another one.
    for subject, style, shift in [("longshore", "-", 0.97), ("longshore, host region", "--", 1.03)]:
        line = {int(row["case"].removeprefix("worker/tcp-")): row for row in found if row["subject"] == subject}
        at = [count for count in counts if count in line]
        points = [line[count] for count in at]
        values = [row["value"] for row in points]
        errors = [[row["value"] - row["min"] for row in points], [row["max"] - row["value"] for row in points]]
        shared = {"color": colour(subject), "linestyle": style, "marker": "o", "capsize": 3, "label": subject}
        axis.errorbar([count * shift for count in at], values, yerr=errors, **shared)
        if subject == "longshore" and all(row["limit"] for row in points):
            limits = [row["limit"] for row in points]
            axis.plot(at, limits, color=LIMIT, linestyle=":", marker="s", label="limit: raw TCP")
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("cache workers, on the cores of one machine")
    axis.set_ylabel("GB/s")
    axis.grid(color="#DDDDDD", linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(fontsize=8, loc="lower left", frameon=False)
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
    figure, axes = stack(shown, [len(with_steps[case]) for case in shown])
    names = list(dict.fromkeys(step["step"] for case in shown for step in with_steps[case]))
    colours = {name: STEPS[at % len(STEPS)] for at, name in enumerate(names)}
    for axis, case in zip(axes, shown, strict=True):
        steps = sorted(with_steps[case], key=lambda step: (step["start"], step["end"]))
        last = max(step["end"] for step in steps)
        for place, step in enumerate(steps):
            width = max(step["end"] - step["start"], last * 0.002)
            axis.barh(place, width * 1e3, left=step["start"] * 1e3, color=colours[step["step"]], height=0.72)
            text = f"{(step['end'] - step['start']) * 1e3:.0f} ms, busy {step['busy'] * 1e3:.0f}"
            axis.text((step["start"] + width + last * 0.01) * 1e3, place, text, va="center", fontsize=8)
        axis.set_xlim(0, last * 1e3 * 1.25)
        axis.set_yticks(range(len(steps)), [step["step"] for step in steps])
        axis.set_ylim(len(steps) - 0.3, -0.7)
    axes[-1].set_xlabel("milliseconds since the load began; busy: summed over threads")
    return figure


PLOTS: dict[str, tuple[str, Callable[[Rows], Figure | None]]] = {
    "load-time": ("Seconds to load 1 GB, by case and subject", load_time),
    "workers": ("Throughput against the number of workers", workers),
    "waterfall": ("The steps of one load", waterfall),
    "small": ("Small files, small reads and metadata, by subject", small),
    "cpu": ("CPU seconds per GB, by case and subject", cpu),
}
