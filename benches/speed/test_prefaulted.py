"""Rows of loads into memory that is prefaulted: what is waited for, what is counted, what is no row."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

HERE = Path(__file__).resolve().parent
sys.path[0:0] = [str(HERE.parent), str(HERE.parents[1] / "scripts" / "gpu")]

from daemons import Daemon, Failed  # noqa: E402 # behind the path

from speed import loads, nodes, prefaulted  # noqa: E402 # behind the path
from speed.bench import Bench  # noqa: E402
from speed.nodes import Node, Worker  # noqa: E402
from speed.prefaulted import READY, USED, Prefaulted, metric, wanted_bytes  # noqa: E402
from speed.rounds import Entry, Round, measure, open_series  # noqa: E402
from speed.rows import LONGSHORE, PREFAULTED, Sample  # noqa: E402

MODEL_BYTES = 1_000_000_000
WANTED = wanted_bytes(MODEL_BYTES)


@dataclass
class FakeLoader:
    """A loader's page of metrics, and its CPU clock; each look at the page lets it make some more memory ready."""

    ready: float = WANTED
    used: float = 0
    step: float = WANTED / 4
    #: Of a step.
    cpu_step: float = 0.25
    cpu: float = 10.0
    #: What a load takes of it.
    takes: float = MODEL_BYTES
    slept: float = 0

    def fetch(self, _: str) -> str:
        if self.ready < WANTED:
            self.ready += self.step
            self.cpu += self.cpu_step
        return f"# HELP {READY} x\n{READY} {self.ready}\n{USED} {self.used}\nother 7\n"

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def load(self) -> None:
        self.cpu += 0.5
        self.used += self.takes
        self.ready = 0


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> FakeLoader:
    made = FakeLoader()
    monkeypatch.setattr(prefaulted, "fetch", made.fetch)
    monkeypatch.setattr(prefaulted, "time", Mock(sleep=made.sleep, monotonic=lambda: made.slept))
    return made


def test_a_metric_is_told_or_missed(loader: FakeLoader) -> None:
    loader.used = 3
    assert metric("ops", USED) == 3
    with pytest.raises(Failed, match=r"has no longshore_loader_prefaulted$"):
        metric("ops", "longshore_loader_prefaulted")


def test_memory_is_waited_for_but_not_for_ever(loader: FakeLoader) -> None:
    loader.ready = 0
    Prefaulted("ops", WANTED).wait()
    assert loader.ready >= WANTED
    loader.ready, loader.step = 0, 0
    with pytest.raises(Failed, match=r"0\.00 of 1\.02 GB were ready after 5 s"):
        Prefaulted("ops", WANTED).wait(5)


@dataclass
class FakeNode:
    """A node as a load sees it."""

    loader: FakeLoader
    prefaulted: Prefaulted | None = field(default_factory=lambda: Prefaulted("ops", WANTED))

    def cpu_seconds(self) -> float:
        return self.loader.cpu

    def client(self) -> FakeNode:
        return self

    def call(self, *_: object, **__: object) -> dict[str, Any]:
        self.loader.load()
        return {
            "seconds": 0.2, "begin": 0.0, "cpu_seconds": 0.6, "bytes": MODEL_BYTES, "reattached": False,
            "fallbacks": [], "daemon_cpu_seconds": 0.5, "loader_seconds": 0.1,
        }  # fmt: skip


def load(node: FakeNode) -> dict[str, Sample]:
    bench = Mock(Bench)
    bench.watched = lambda: Bench.watched(Mock(watch=None))
    measured = loads.longshore_load(bench, cast(Node, node), loads.MODEL, names=PREFAULTED)(Round(1))
    assert isinstance(measured, dict)
    return measured


def test_making_memory_ready_again_is_in_the_cpu_of_both_rows(loader: FakeLoader) -> None:
    samples = load(FakeNode(loader))
    whole, region = (samples[name] for name in PREFAULTED)
    # Four steps of a quarter of a second behind the load.
    assert [whole.cpu_seconds, region.cpu_seconds] == pytest.approx([0.6 + 1.0, 0.5 + 1.0])
    assert [whole.seconds, region.seconds] == [0.2, 0.1]
    assert loader.ready >= WANTED
    # Without it nothing is waited for.
    plain = load(FakeNode(loader, prefaulted=None))
    assert [plain[name].cpu_seconds for name in PREFAULTED] == [0.6, 0.5]


def test_a_load_into_other_memory_is_no_row(loader: FakeLoader) -> None:
    node = FakeNode(loader)
    loader.takes = 0.8 * MODEL_BYTES
    with pytest.raises(Failed, match=r"not a prefaulted load: 0\.80 GB were ready, the model has 1\.00"):
        load(node)
    # Nobody loads before the memory is ready.
    loader.ready, loader.step, loader.used = 0, 0, 0
    with pytest.raises(Failed, match="were ready after"):
        load(node)
    assert loader.used == 0


class FakeDaemon(Daemon):
    """A process that was not started."""

    def __init__(self, name: str, command: list[Any], *_: object) -> None:
        self.name, self.command, self.is_ended = name, [str(word) for word in command], False

    @property
    def pid(self) -> int:
        return 1

    def wait_for(self, *_: object) -> None:
        pass

    def end(self) -> None:
        self.is_ended = True


@pytest.fixture
def node_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(nodes, "Daemon", FakeDaemon)
    return lambda name: Node(tmp_path, tmp_path / name, tmp_path, {}, MODEL_BYTES)


def option(node: Node, name: str) -> str:
    assert node.loader is not None
    command = node.loader.command
    return command[command.index(name) + 1]


def test_the_budget_has_room_for_a_model_and_the_memory_of_the_next_one(node_of: Any, loader: FakeLoader) -> None:
    plain, own = node_of("plain").start(), node_of("own").start_loader(prefault=True)
    assert "--prefault" not in plain.loader.command
    assert plain.prefaulted is None
    assert int(option(own, "--prefault")) == WANTED
    assert int(option(own, "--memory")) - int(option(plain, "--memory")) == WANTED
    assert own.prefaulted == Prefaulted(option(own, "--ops-listen"), WANTED)
    assert loader.ready >= WANTED


@pytest.mark.usefixtures("loader")
def test_two_loaders_may_ask_the_same_worker(node_of: Any) -> None:
    first = node_of("first").start(1)
    second = node_of("second").start_loader(first, prefault=True)
    assert option(first, "--workers") == option(second, "--workers") == first.workers[0].data
    worker: Worker = first.workers[0]
    assert second.client_environment()["LONGSHORE_BENCH_PIDS"] == "1,1"
    second.end()
    assert second.loader.is_ended
    assert not cast(FakeDaemon, worker.daemon).is_ended
    first.end()
    assert cast(FakeDaemon, worker.daemon).is_ended


def test_rows_with_default_options_stand_beside_those_with_prefaulted_memory() -> None:
    row = Entry("local/cold", "longshore", "GB/s", None, "cold", limit=("limit/fio", "fio"))
    made = loads.own_entries(Mock(Bench), Mock(Node), Failed("no such option"), loads.MODEL, row)
    assert [(entry.subject, *entry.along) for entry in made] == [LONGSHORE, PREFAULTED]
    assert made[0].measure is not None
    assert "--prefault" not in made[0].note
    assert "CPU includes making as much of it ready again" in made[1].note
    # What cannot be started has rows that say why.
    series = open_series(made)
    rows = [series["local/cold", subject].row("", None) for subject in PREFAULTED]
    assert [(row.value, row.error) for row in rows] == [(None, "no such option")] * 2


def test_a_node_that_does_not_start_is_said_in_its_rows() -> None:
    bench = Mock(Bench)
    bench.node.return_value.start_loader.side_effect = Failed("loader ended with 2")
    found = loads.start_prefaulted(bench, ExitStack(), {})
    assert isinstance(found, Failed)


def test_what_fails_along_with_a_row_says_so() -> None:
    def fails(_: Round) -> Sample:
        raise Failed("not a prefaulted load")

    entry = Entry("local/cold", PREFAULTED[0], "GB/s", fails, along={PREFAULTED[1]: "note"})
    series = open_series([entry])
    measure(entry, series, Round(1))
    assert {each.row("", None).error for each in series.values()} == {"not a prefaulted load"}
