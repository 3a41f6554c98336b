"""What every step of the report needs: paths, environment, sizes, and how steps are bounded in time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from agent import Agent
from cases import BY_NAME, LONGSHORE, PEERS
from daemons import Failed
from daemons import node as running_node
from machine import Sizes
from report import FAILED, NOT_MEASURED, PASSED, Report, Row, Samples

DEVICE = "cuda:0"
#: Kept back for writing what there is.
RESERVE_SECONDS = 10.0


class OutOfTime(Exception):
    """A step took longer than it may. No `Failed`: whoever takes that for a subject's failure must not go on."""


@dataclass
class Context:
    """One run."""

    bundle: Path
    out: Path
    work: Path
    #: Where models lie that are read from memory.
    memory_folder: Path
    #: Where files lie on a disk.
    disk_folder: Path
    environment: dict[str, str]
    fake: bool
    sizes: Sizes
    report: Report
    deadline: float
    command: str
    huge_pages: bool = False
    peers: dict[str, dict[str, str]] = field(default_factory=dict)
    #: Folder, files and bytes of the model that is measured.
    model: dict[str, Any] = field(default_factory=dict)

    def program(self, name: str) -> Path:
        return self.bundle / "bin" / name

    @property
    def cores(self) -> set[int]:
        """Those that this process may use."""
        return os.sched_getaffinity(0)

    def left(self) -> float:
        """Seconds until the end of the run."""
        return self.deadline - time.monotonic()

    def log(self, name: str) -> Path:
        return self.work / "logs" / f"{name}.log"

    @contextlib.contextmanager
    def node(self, name: str, environment: dict[str, str] | None = None, **options: Any) -> Iterator[Any]:
        """A running holder and loader."""
        folder = self.work / name
        with running_node(
            self.program("longshore"), folder, {**self.environment, **(environment or {})}, **options
        ) as made:
            yield made

    def agent(self, node: str, name: str = LONGSHORE, environment: dict[str, str] | None = None) -> Agent:
        """A client process of a node, which may be started before the node: it connects when it is first asked."""
        socket = self.socket(node)
        return Agent(
            "longshore", {**self.environment, **(environment or {})}, self.log(name), socket=socket, device=DEVICE
        )

    def socket(self, node: str) -> str:
        """Where the loader of a node of that name listens."""
        return str(self.work / node / "run" / "loader.sock")

    def peer(self, name: str) -> Agent:
        """A process with another loader."""
        return Agent("peer", {**self.environment, **self.peers[name]}, self.log(name), name=name, device=DEVICE)

    def limits(self) -> Agent:
        """The process of the plain copies."""
        buffer = min(16 * self.sizes.copy_bytes, 4 << 30)
        return Agent(
            "limits", self.environment, self.log("limits"), buffer_bytes=buffer, piece_bytes=self.sizes.copy_bytes
        )

    def bench(self, *words: Any, seconds: float = 180) -> str:
        """The bench program's output."""
        command = [str(self.program("gpu-bench")), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if done.returncode != 0:
            raise Failed(f"gpu-bench {words[0]} failed: {done.stderr[-400:].strip()}")
        return done.stdout

    def passed(self, case: str, subject: str, note: str, value: float | None = None, unit: str = "") -> None:
        """A check that held."""
        self.report.add(Row(case, subject, PASSED, value=value, unit=unit, runs=1, note=note, command=self.command))

    def samples(self, case: str, subject: str, samples: Samples, limit: Samples | None = None, **more: Any) -> None:
        """A measured row."""
        more.setdefault("command", self.command)
        self.report.add(samples.row(case, subject, limit, **more))

    def step(self, cases: list[str], seconds: float, work: Callable[[], None]) -> None:
        """Runs `work` for at most so long; the cases it leaves without rows get the reason."""
        allowed = min(seconds, self.left() - RESERVE_SECONDS)
        status, reason = FAILED, "the step ended without a result"
        if allowed < 2:
            status, reason = NOT_MEASURED, "not measured: out of time"
        else:
            begun = time.monotonic()
            try:
                with alarm(allowed):
                    work()
            except OutOfTime:
                cut = allowed < seconds
                status = NOT_MEASURED if cut else FAILED
                reason = "not measured: out of time" if cut else f"no result within {allowed:.0f} s"
            except Exception as error:  # noqa: BLE001 - a step that fails is a row, not the end
                traceback.print_exc(file=sys.stdout)
                reason = f"{type(error).__name__}: {str(error)[:500]}"
            print(f"  ({', '.join(cases)}: {time.monotonic() - begun:.1f} s)", flush=True)
        for case in cases:
            for subject in BY_NAME[case].subjects:
                # What others published is no row of ours to fail.
                if self.report.missing(case, subject) and (subject == LONGSHORE or subject not in _NOT_OURS):
                    self.report.add(Row(case, subject, status, note=reason, command=self.command))

    def guard(self, seconds: float, work: Callable[[], None]) -> None:
        """Runs what adds one row to a case of another step: without time for it, that row says so later."""
        if self.left() - RESERVE_SECONDS < seconds / 2:
            return
        try:
            with alarm(min(seconds, self.left() - RESERVE_SECONDS)):
                work()
        except Exception:  # noqa: BLE001 - its row is missing, which `complete` says
            traceback.print_exc(file=sys.stdout)


_NOT_OURS = {"thaw", "ServerlessLLM"}


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in this thread when the time is up. Alarms nest: the outer one goes on afterwards."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime(f"no result within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    begun = time.monotonic()
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - begun), 0.01))


def find_peers(bundle: Path, work: Path, environment: dict[str, str]) -> dict[str, dict[str, str]]:
    """The peers that can be imported, each with the environment that finds it: its wheels, else what is installed."""
    found = {}
    for name in PEERS:
        wheels = sorted((bundle / "wheels" / name).glob("*.whl"))
        if wheels:
            target = work / "peers" / name
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
                 "--no-cache-dir", "--target", target, *wheels],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            if done.returncode != 0:
                print(f"  {name}: its wheels cannot be installed: {done.stderr[-300:].strip()}", flush=True)
                continue
            found[name] = {"PYTHONPATH": os.pathsep.join([str(target), environment.get("PYTHONPATH", "")])}
        elif _importable(name, environment):
            found[name] = {}
    return found


def _importable(name: str, environment: dict[str, str]) -> bool:
    here = str(Path(__file__).parent)
    script = (
        f"import sys; sys.path.insert(0, {here!r}); from importlib.metadata import version; "
        f"from subjects import PACKAGES, VERSIONS; "
        f"sys.exit(not version(PACKAGES[{name!r}]).startswith(VERSIONS.get({name!r}, '')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, timeout=60)
    return done.returncode == 0


def remove(folder: Path) -> None:
    """Gives memory or disk back."""
    shutil.rmtree(folder, ignore_errors=True)
