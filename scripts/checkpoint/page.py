"""The results as JSON, and the page that is made from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from report import Row

__all__ = ["NOTES", "Row", "write"]

#: What each case is.
CASES = {
    "checkpoint/stall": "how long training stands still: until `longshore.save` returns, everything copied. "
    "The limit copies the same tensors into plain memory that was touched before",
    "checkpoint/local-durable": "from the call until the bytes are on this node's disk, synced and recorded",
    "checkpoint/committed": "from the call until the checkpoint is whole, verified and visible in the S3-compatible "
    "store",
    "checkpoint/committed-folder": "the same into a folder of the same disk, where the bytes are written twice and "
    "read back once",
}
#: How the work is done, by case and subject.
NOTES = {
    (
        "checkpoint/local-durable",
        "longshore",
    ): "with the copy; checksums of every block and tensor; the upload runs beside it",
    ("checkpoint/local-durable", "longshore, nothing uploaded meanwhile"): "the store refuses the intent",
    ("checkpoint/committed", "longshore"): "with the copy, the local disk, checksums, verification and the commit",
    (
        "checkpoint/committed",
        "limit: plain multipart PUTs",
    ): "8 connections, parts of 32 MiB from memory; no disk, no checksum",
    ("checkpoint/committed", "torch.save and boto3"): "8 connections, parts of 32 MiB; no local copy",
    ("checkpoint/committed", "s3torchconnector"): "streams while it pickles; no local copy",
    ("checkpoint/local-durable", "torch.save and fsync"): "no checksums of ours; not atomic",
    ("checkpoint/stall", "DCP async_save, staged in shared memory"): "copies, then writes in a thread",
}


def write(results: Path, target: Path, facts: dict[str, Any], rows: list[Row]) -> None:
    """Both files."""
    results.parent.mkdir(parents=True, exist_ok=True)
    value = {**facts, "rows": [asdict(row) | {"command": facts["command"]} for row in rows]}
    results.write_text(json.dumps(value, indent=2) + "\n")
    target.write_text(_page(results.name, facts, rows))


def _page(name: str, facts: dict[str, Any], rows: list[Row]) -> str:
    lines = [
        "# Benchmarks of checkpoints",
        "",
        f"Written by `make bench-checkpoint` from `benches/results/{name}`; no number here is edited by hand.",
        "",
        f"{facts['date']}. {facts['machine']}. Disk: {facts['disk']}. "
        + ", ".join(f"{what} {version}" for what, version in facts["versions"].items())
        + f". Checkpoint: {facts['checkpoint_bytes'] / 1e9:.2f} GB of BF16 tensors.",
        "",
        "Each round measures every row once, in alternation. Rates are medians; *of limit* is the median",
        "of the ratios within each round, against the fastest plain limit of the case. CPU seconds are those of this",
        "process and of the loader; the store's are left out.",
        "",
        "| case | subject | GB/s (median) | min to max | of limit | CPU s per GB | runs | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = list(CASES)
    for row in sorted(
        rows, key=lambda row: (order.index(row.case), not row.subject.startswith("limit:"), row.subject != "longshore")
    ):
        if row.value is None:
            lines.append(f"| `{row.case}` | {row.subject} | {row.status} | | | | | {row.note} |")
            continue
        share = "limit" if row.ratio_to_limit is None else f"{row.ratio_to_limit:.0%}"
        lines.append(
            f"| `{row.case}` | {row.subject} | {row.value:.2f} | {row.min:.2f} to {row.max:.2f} | {share} "
            f"| {row.cpu_s_per_gb:.2f} | {row.runs} | {row.note} |"
        )
    lines += ["", "## The cases", "", *(f"* `{case}`: {what}" for case, what in CASES.items())]
    lines += ["", f"Command: `{facts['command']}`", ""]
    return "\n".join(lines)
