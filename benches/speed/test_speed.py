"""The speed report's own tests: its arithmetic, its page, and a whole run of tiny sizes over the real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = Path(os.environ.get("LONGSHORE_TEST_BIN", ROOT / "target" / "debug"))
sys.path[0:0] = [str(HERE.parent), str(ROOT / "scripts" / "gpu")]

from daemons import family  # noqa: E402 # behind the path

from speed import groups, needs, page  # noqa: E402 # behind the path
from speed.agents import Adapter  # noqa: E402
from speed.bench import Bench, Options  # noqa: E402
from speed.cli import arguments, command_of, options_of  # noqa: E402
from speed.rounds import REST_SECONDS, Entry, Round, measure, open_series, order_of, run_rounds, wanted_of  # noqa: E402
from speed.rows import LONGSHORE, PREFAULTED, Row, Sample, Series  # noqa: E402

#: What every row has, whatever became of it.
FIELDS = {
    "case", "subject", "value", "unit", "limit", "ratio_to_limit", "cpu_s_per_gb", "runs", "min", "max", "cache_state",
    "command",
}  # fmt: skip


def options(*words: str) -> Options:
    return options_of(arguments(list(words)))


def series(case: str, unit: str, *seconds: float, cpu: float = 1.0) -> Series:
    samples = {at: Sample(each, cpu, 2e9, 2_000_000_000) for at, each in enumerate(seconds, 1)}
    return Series(case, "longshore", unit, samples=samples)


def test_ratios_are_those_within_rounds() -> None:
    ours, limit = series("worker/tcp", "GB/s", 1.0, 4.0, 2.0), series("limit/tcp", "GB/s", 0.5, 1.0, 2.0, cpu=0.5)
    row = ours.row("command", limit)
    assert (row.value, row.min, row.max, row.runs) == (1.0, 0.5, 2.0, 3)
    assert (row.limit, row.ratio_to_limit, row.limit_name) == (2.0, 0.5, "limit/tcp")
    assert (row.cpu_s_per_gb, row.cpu_ratio_to_limit) == (0.5, 2.0)
    # A round that one of them missed is in no ratio.
    del limit.samples[1]
    assert ours.row("command", limit).ratio_to_limit == pytest.approx((0.25 + 1.0) / 2)


def test_less_is_better_where_times_are_measured() -> None:
    ours, limit = series("second-load", "ms", 0.2), series("limit", "ms", 0.1)
    row = ours.row("command", limit)
    assert (row.value, row.ratio_to_limit) == (200.0, 0.5)


def test_a_row_that_fails_says_so_and_ends_nothing() -> None:
    def fails(number: Round) -> Sample:
        raise OSError(f"broken in {number.number}")

    entry = Entry("local/cold", "peer", "GB/s", fails)
    made = open_series([entry])
    for number in range(4):
        measure(entry, made, Round(number))
    row = made[entry.case, entry.subject].row("command", None)
    assert row.value is None
    # It is left alone after two failures.
    assert row.error == "OSError: broken in 1"
    assert row.as_dict().keys() >= FIELDS


def test_the_first_round_is_not_counted() -> None:
    entry = Entry("local/cold", "peer", "GB/s", lambda _: Sample(1.0, 1.0, 1e9, 10**9))
    made = open_series([entry])
    measure(entry, made, Round(0))
    assert not made[entry.case, entry.subject].samples


@dataclass
class FakeBench:
    """What `run_rounds` asks of a run."""

    options: Options
    is_late: bool
    model_bytes: int = 0


@pytest.mark.parametrize(
    ("short_seconds", "is_late", "rounds"),
    [(0.0, False, 4), (0.0, True, 2), (60.0, False, 10), (60.0, True, 10)],
)
def test_what_takes_little_time_is_measured_more_often(short_seconds: float, is_late: bool, rounds: int) -> None:
    numbers: list[int] = []

    def work(number: Round) -> Sample:
        numbers.append(number.number)
        return Sample(1.0)

    entry = Entry("attach/host", "longshore", "ms", work)
    bench = FakeBench(options("--rounds", "3", "--short-seconds", str(short_seconds)), is_late)
    run_rounds(cast(Bench, bench), "attach", [entry], open_series([entry]), Mock(Adapter))
    assert numbers == list(range(rounds))


def test_memory_is_touched_before_a_load_or_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("speed.rounds.time.sleep", lambda seconds: done.append(f"rest {seconds:g}"))

    def work(name: str) -> Callable[[Round], Sample]:
        def load(_: Round) -> Sample:
            done.append(name)
            return Sample(1.0, 1.0, 7, 7)

        return load

    memory = Mock(Adapter)
    memory.call.side_effect = lambda what, _, **more: done.append(f"{what} {more['bytes']}")
    entries = [
        Entry("local/resident", "longshore", "GB/s", work("touched"), before=lambda: done.append("before")),
        Entry("local/untouched", "longshore", "GB/s", work("rested"), rests=True),
        Entry("attach/host", "longshore", "ms", work("attach")),
    ]
    bench = FakeBench(options("--rounds", "1", "--short-seconds", "0"), is_late=False, model_bytes=7)
    run_rounds(cast(Bench, bench), "all", entries, open_series(entries), memory)
    assert done[:6] == ["before", "touch-memory 14", "touched", f"rest {REST_SECONDS:g}", "rested", "attach"]


def test_nobody_always_comes_first_or_behind_the_same_one() -> None:
    entries = [Entry(name, "longshore", "GB/s", None) for name in "abcd"]
    orders = ["".join(entry.case for entry in order_of(entries, number)) for number in range(4)]
    assert orders == ["abcd", "badc", "cdab", "dcba"]
    assert order_of([], 3) == []


def test_one_case_brings_its_limits() -> None:
    limit = Entry("limit/fio", "fio", "GB/s", None)
    entries = [
        limit,
        Entry("limit/tcp", "tcp", "GB/s", None),
        Entry("local/cold", "longshore", "GB/s", None, limit=("limit/fio", "fio")),
        Entry("local/resident", "longshore", "GB/s", None),
    ]
    chosen = wanted_of(entries, lambda case: case == "local/cold")
    assert [entry.case for entry in chosen] == ["limit/fio", "local/cold"]


def test_a_command_gives_the_same_run_again() -> None:
    given = arguments(["--size", "0.5", "--rounds", "7"])
    assert command_of(given) == "python3 benches/speed --size 0.5 --rounds 7"


def test_bench_full_keeps_every_option_of_its_command() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nbench-full: bench-setup")[1].split("\n\n")[0]
    words = recipe.replace("\\\n", " ").split("benches/speed --full ")[1].split()
    words = [{"$(SIZE)": "2.5", "$(BENCH_SECONDS)": "2000.0"}.get(word, word) for word in words]
    # What is said as default is no option of the command.
    at = words.index("--concurrent-peers")
    assert words[at + 1] == arguments([]).concurrent_peers
    assert command_of(arguments(words)).split()[2:] == words[:at] + words[at + 2 :]
    assert {"--size", "--small-model", "--rounds", "--seconds"} <= set(words)


def test_every_group_tells_what_it_takes() -> None:
    small, large = needs.of(options("--size", "1")), needs.of(options("--size", "2"))
    assert small.keys() == groups.of(options()).keys()
    assert all(large[name].memory_bytes >= need.memory_bytes > 0 for name, need in small.items())
    # What `make bench-full` measures on a machine of 24 GiB with 50 GB of disk.
    full = needs.of(options("--size", "2", "--small-model", "0.25"))
    assert max(need.memory_bytes for need in full.values()) < 22e9
    assert max(need.disk_bytes for need in full.values()) < 40e9
    assert "needs 1000000.0 GB of memory" in needs.Need(10**15, 0).lacking(Path("/tmp"))
    assert "of disk in tmp" in needs.Need(0, 10**18).lacking(Path("/tmp"))
    assert not needs.Need(0, 0).lacking(Path("/tmp"))


def test_memory_that_is_prefaulted_counts() -> None:
    small, large = (needs.of(options("--size", size, "--peers", "")) for size in ("1", "2"))
    # A load with its copy, the files with theirs, and what is kept ready; a worker each on the same host and over TCP.
    for name, models in {"local": 5, "worker": 6}.items():
        assert large[name].memory_bytes - small[name].memory_bytes == pytest.approx(models * 1e9, rel=0.02)


def test_what_takes_longest_comes_last() -> None:
    assert list(groups.of(options()))[-1] == "concurrent"
    assert list(needs.of(options()))[-1] == "concurrent"


def test_no_case_is_in_two_groups() -> None:
    cases = [case for of_group, _ in groups.of(options()).values() for case in of_group]
    assert len(cases) == len(set(cases))


def a_row(case: str, subject: str, value: float | None, **more: object) -> dict[str, object]:
    row = Row(case, subject, value, "GB/s", runs=3, min=value, max=value, command="c")
    return row.as_dict() | {"limit": None} | more


def test_a_limit_is_named_and_small_ratios_are_told() -> None:
    ours, limit = series("files/random-4k", "reads/s", 1.0), series("files/random-4k", "reads/s", 0.002)
    limit.subject = "limit: pread"
    row = ours.row("command", limit).as_dict()
    assert "| 0.20% of `limit: pread` |" in page.line(row)
    assert "| is the limit |" in page.line(row | {"subject": "limit: pread", "ratio_to_limit": None})
    assert [page.part(ratio) for ratio in (52.0, 1.5, 0.97, 0.05)] == ["52 x", "150% of", "97% of", "5.0% of"]


def test_the_page_tells_what_was_not_measured() -> None:
    rows = [
        a_row("worker/tcp", "longshore", 2.0, note="how"),
        a_row("worker/tcp", "some", None, note="has no workers"),
        a_row("worker/tcp", "broken", None, error="it fell over"),
    ]
    text = "\n".join(page.table(rows))
    assert "| `worker/tcp` | **longshore** | 2.00 GB/s |" in text
    assert "* Not in `worker/tcp`: some: has no workers." in text
    assert "* Not in `worker/tcp`: broken: failed: it fell over." in text


#: Cases of several groups: each Python process that imports torch takes seconds, so not all of them.
TRIED = ["local/resident", "origin/empty-cache", "files/small", "files/random-4k", "metadata/ops"]


def test_a_run_over_the_real_processes(tmp_path: Path) -> None:
    results, log = tmp_path / "results.json", tmp_path / "log"
    command: list[str | Path] = [
        sys.executable, HERE, "--bin-dir", BIN, "--size", "0.02", "--small-files", "20", "--rounds", "1", "--peers", "",
        "--concurrent-peers", "", "--folder", tmp_path / "work", "--results", results, "--no-page", "--calls", "400",
        "--short-seconds", "0",
    ]  # fmt: skip
    command += [word for case in TRIED for word in ("--only", case)]
    with log.open("w") as errors:
        run = subprocess.Popen(command, stderr=errors)
    try:
        code = run.wait(200)
    finally:
        # Asked to end, not killed: it ends what it started.
        run.terminate()
        run.wait(60)
    said = log.read_text()[-4000:]
    assert code == 0, said
    value = json.loads(results.read_text())
    assert {"date", "machine", "versions", "rows"} <= value.keys()
    rows = value["rows"]
    assert all(row.keys() >= FIELDS for row in rows)
    ours = {row["case"]: row for row in rows if row["subject"] == "longshore"}
    assert ours.keys() == set(TRIED)
    assert not [row for row in rows if row.get("error")], said
    assert all(row["value"] > 0 and "--only" in row["command"] for row in ours.values())
    # Each has the limit of its round beside it.
    assert ours["local/resident"]["ratio_to_limit"] > 0
    assert ours["origin/empty-cache"]["limit_name"] == "limit/get-kept"
    # With memory that is prefaulted as well.
    measured = {row["subject"] for row in rows if row["case"] == "local/resident" and row["value"]}
    assert measured == {*LONGSHORE, *PREFAULTED}
    # Nothing is left behind.
    assert not list((tmp_path / "work").iterdir())
    assert [path.name for path in tmp_path.glob("results*")] == ["results.json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with tempfile.TemporaryDirectory() as sockets, log.open("w") as errors:
        command: list[str | Path] = [
            # Who runs the tests in the background of a shell has signals ignored, and a run leaves that as it is.
            "env", f"--default-signal={number.value}",
            sys.executable, HERE, "--bin-dir", BIN, "--size", "0.05", "--rounds", "1000", "--peers", "",
            "--folder", tmp_path / "work", "--no-page", "--only", "origin/empty-cache",
        ]  # fmt: skip
        run = subprocess.Popen(command, stderr=errors, stdout=errors, env={**os.environ, "TMPDIR": sockets})
        started: list[int] = []
        try:
            deadline = time.monotonic() + 120
            # In the middle of a round, with all processes that there are.
            while "over TCP" not in log.read_text():
                assert run.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            started = [pid for pid in family(run.pid) if pid != run.pid]
            assert len(started) >= 6
            run.send_signal(number)
            assert run.wait(60) == 128 + number
        finally:
            left = [pid for pid in started if Path(f"/proc/{pid}").exists()]
            run.kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.wait()
        assert not left, log.read_text()
        assert not list(Path(sockets).iterdir())
    assert not list((tmp_path / "work").iterdir())
    assert not list(Path("/dev/shm").glob(f"longshore-bench-{run.pid}-*"))
