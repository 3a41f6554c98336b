"""What the aims are judged by, what is said beside it, and the causes of those that are not reached."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0:0] = [str(HERE.parent), str(HERE.parents[1] / "scripts" / "gpu")]

from speed import aims  # noqa: E402 # behind the path
from speed.rows import LONGSHORE, PREFAULTED, REGION, Row  # noqa: E402


def a_row(case: str, subject: str, value: float | None, **more: object) -> dict[str, object]:
    row = Row(case, subject, value, "GB/s", runs=3, min=value, max=value, command="c")
    return row.as_dict() | {"limit": None} | more


def line(rows: list[dict[str, object]], start: str) -> str:
    return next(each for each in aims.table(rows) if each.startswith(f"| {start}"))


def cause(rows: list[dict[str, object]], start: str) -> str:
    return next(each for each in aims.table(rows) if each.startswith(f"* {start}"))


def test_aims_are_judged_by_the_rows() -> None:
    rows = [
        a_row("local/cold", "longshore", 2.0),
        a_row("local/cold", REGION, 2.1, ratio_to_limit=0.98),
        a_row("local/cold", "slow", 1.0),
        a_row("local/cold", "missing", None),
    ]
    cold = line(rows, "cold local file")
    assert cold.endswith("| 98% of fio; 2.00 x slow | yes |")
    rows[2] |= {"value": 2.5, "min": 1.9, "max": 2.6}
    lines = aims.table(rows)
    cold = line(rows, "cold local file")
    assert cold.endswith("0.80 x slow | no |")
    assert lines[-1].endswith(
        "Rounds: longshore 2.00 to 2.00 GB/s, longshore, host region 2.10 to 2.10 GB/s, slow 1.90 to 2.60 GB/s."
    )
    assert all(each.endswith("| not measured |") for each in aims.table([])[2:])
    # A cause holds for rows that were not all measured, too.
    assert [aim.case for aim in aims.AIMS if aim.cause is not None and not aim.cause({})] == []


def test_work_of_another_kind_is_shown_and_not_judged() -> None:
    rows = [
        a_row("local/resident", "longshore", 6.0),
        a_row("local/resident", REGION, 6.5, ratio_to_limit=0.95),
        a_row("local/resident", "safetensors, mapped", 60.0),
        a_row("local/resident", "tensorizer", 3.0),
        a_row("files/random-4k", "longshore", 900.0, ratio_to_limit=0.9),
        a_row("files/random-4k", "s3fs, safetensors, bulk", 10.0),
        a_row("files/random-4k", "s3fs, safetensors, disk", 500.0),
    ]

    resident, reads = line(rows, "resident local file"), line(rows, "random 4 kB reads")
    assert "2.00 x tensorizer; 95% of the read; 0.10 x safetensors, mapped (not judged: " in resident
    assert "90.00 x s3fs; 90% of pread; 1.80 x s3fs from a copy" in reads
    assert resident.endswith("| yes |")
    assert reads.endswith("| yes |")
    # Judged is what does the same work.
    rows[3]["value"], rows[5]["value"] = 5.0, 300.0
    assert line(rows, "resident local file").endswith("| no |")
    assert line(rows, "random 4 kB reads").endswith("| no |")


def test_prefaulted_rows_are_judged_and_default_options_stand_beside() -> None:
    case = "local/resident"
    rows = [
        a_row("limit/read-kept", "pread", 7.5),
        a_row(case, LONGSHORE[0], 5.25),
        a_row(case, REGION, 5.5, ratio_to_limit=0.8, limit=7.5),
        a_row(case, "run:ai model streamer", 5.0),
        a_row(case, "safetensors, mapped", 50.0),
    ]
    # Without such rows default options are all there is.
    plain = line(rows, "resident")
    assert "| 1.05 x run:ai model streamer; 80% of the read; 0.10 x safetensors, mapped (not judged: " in plain
    assert "prefault" not in plain
    rows += [a_row(case, PREFAULTED[0], 8.0), a_row(case, PREFAULTED[1], 8.5, ratio_to_limit=0.95)]
    both = line(rows, "resident")
    assert "| 1.60 x run:ai model streamer (1.05 x without --prefault); 95% of the read (80% without" in both
    assert "0.16 x safetensors, mapped (0.10 x without --prefault; not judged: " in both
    assert both.endswith("| yes |")
    rows[-2] |= {"value": 7.0, "min": 6.0, "max": 7.25}
    assert line(rows, "resident").endswith("| no |")
    said = cause(rows, "Resident")
    assert "1.5 x its rate is 7.5 GB/s here, 100% of the read" in said
    assert said.endswith(
        "Rounds: longshore, prefaulted 6.00 to 7.25 GB/s, longshore 5.25 to 5.25 GB/s, "
        "run:ai model streamer 5.00 to 5.00 GB/s, pread 7.50 to 7.50 GB/s."
    )
    # Plain work that keeps nothing stands beside, and is not judged.
    rows.append(a_row("limit/read-warm", "pread", 17.0))
    assert "50% of the read into the same buffers again (32% without --prefault; not judged: " in line(rows, "resident")
    rows.pop()
    # A row that failed is no measurement: default options are judged.
    rows[-2] |= {"value": None}
    assert line(rows, "resident") == plain


def test_workers_are_judged_by_one_setting_that_meets_every_condition() -> None:
    rows = [
        a_row("limit/tcp", "sendfile to recv", 4.0, cpu_s_per_gb=0.5),
        a_row("worker/tcp", REGION, 3.0, ratio_to_limit=0.75, cpu_ratio_to_limit=1.0, cpu_s_per_gb=0.5),
        a_row("worker/tcp", PREFAULTED[0], 3.7),
        a_row("worker/tcp", PREFAULTED[1], 3.8, ratio_to_limit=0.95, cpu_ratio_to_limit=1.2, cpu_s_per_gb=0.6),
        a_row("worker/same-host", REGION, 3.0, ratio_to_limit=0.75, cpu_s_per_gb=0.2),
        a_row("worker/same-host", PREFAULTED[0], 3.7),
        a_row("worker/same-host", PREFAULTED[1], 3.8, ratio_to_limit=0.96, cpu_s_per_gb=0.25),
        # Another group's rounds of the same limit.
        a_row("limit/tcp", "sendfile to recv", 1.0, cpu_s_per_gb=9.0),
    ]
    tcp = "| 95% of raw TCP (75% without --prefault); 1.20 x its CPU (1.00 x without --prefault) | no |"
    assert line(rows, "TCP worker").endswith(tcp)
    same_host = "| 96% of the read (75% without --prefault); 0.25 CPU s per GB (0.20 without --prefault) | yes |"
    assert line(rows, "same-host").endswith(same_host)
    said = cause(rows, "TCP worker")
    assert "Rounds: longshore, host region, prefaulted 3.80 to 3.80 GB/s, longshore, host region 3.00" in said
    assert said.endswith(
        "CPU s per GB: longshore, host region, prefaulted 0.60, longshore, host region 0.50, sendfile to recv 0.50."
    )
    # Its rate is enough in both settings, its CPU in one of them.
    rows[4] |= {"ratio_to_limit": 0.97}
    rows[6] |= {"cpu_s_per_gb": 0.45}
    same_host = "| 97% of the read (96% with --prefault); 0.20 CPU s per GB (0.45 with --prefault) | yes |"
    assert line(rows, "same-host").endswith(same_host)
    # No setting meets both.
    rows[4] |= {"ratio_to_limit": 0.9}
    assert line(rows, "same-host").endswith("0.45 CPU s per GB (0.20 without --prefault) | no |")
