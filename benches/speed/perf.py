"""`perf record` around what is measured, and what its samples say: by process, thread, system call and symbol."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daemons import Failed, family

from speed.bench import Windows

#: A timer of the kernel: virtual machines often have no counters of the processor.
EVENT = "cpu-clock"
SAMPLES_A_SECOND = 1999
#: Whose CPU a row counts; the origin's is shown apart.
COUNTED = ("loader", "worker", "client", "command line")
HEAD = re.compile(r"^\s*(?P<thread>.+?)\s+(?P<pid>\d+)/(?P<tid>\d+)\s+(?P<at>\d+\.\d+):\s*$")
FRAME = re.compile(r"^\s+[0-9a-f]+ (?P<symbol>.+) \((?P<module>[^()]*(?:\([^()]*\))?)\)$")
#: The kernel's own entry of a system call; the frame before it is the call.
SYSTEM_CALLS = ("do_syscall_64", "do_syscall_x64", "x64_sys_call", "invoke_syscall", "el0_svc_common")
CALL = re.compile(r"^(?:_*(?:do_|x64_|arm64_|se_)?sys_|ksys_|do_)?(\w+?)(?:\.\w+)*$")
#: First words of other entries, and what they mean.
ENTRIES = [
    ("asm_sysvec", "interrupts"),
    ("asm_common_interrupt", "interrupts"),
    ("asm_exc", "exceptions"),
    ("ret_from_fork", "kernel threads"),
]
#: The hash behind a Rust name, and numbers of threads of one kind.
HASH, DIGITS = re.compile(r"::h[0-9a-f]{16}$"), re.compile(r"\d+")
SYMBOL_CHARACTERS = 110


@dataclass
class Found:
    """What all samples of a profile say; each key with its number of samples."""

    threads: Counter[tuple[str, str]] = field(default_factory=Counter)
    entries: Counter[tuple[str, str]] = field(default_factory=Counter)
    symbols: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Samples of the origin, which are in none of the others.
    of_origin: int = 0

    @property
    def samples(self) -> int:
        return self.threads.total()

    def seconds(self, role: str) -> float:
        """CPU seconds that these samples stand for."""
        if role == "origin":
            return self.of_origin / SAMPLES_A_SECOND
        return sum(count for (of, _), count in self.threads.items() if of == role) / SAMPLES_A_SECOND


def why_not() -> str:
    """Why there can be no profile on this machine, or nothing."""
    command = ["perf", "record", "-a", "-e", EVENT, "-o", "/dev/null", "--", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return "there is no `perf` (Debian: linux-perf); as root, scripts/bench-perf.sh installs it"
    if done.returncode == 0:
        return ""
    allowed = Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip()
    said = " ".join(done.stderr.split())[:200]
    return f"perf may not record here (kernel.perf_event_paranoid is {allowed}; it takes root, or -1): {said}"


def role_of(pid: int) -> str:
    """What a process is in a profile; nothing for those that only measure."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    name = Path(words[0]).name
    if name == "longshore":
        return words[1] if words[1] in COUNTED else "command line"
    if name == "fake-origin":
        return "origin"
    return "client" if any(word.endswith("longshore_agent.py") for word in words) else ""


class Recorder:
    """perf over the whole machine, asleep but for what is watched; the processes of this run are picked out later.

    It must begin when they run: perf asks once what is there.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder / "perf.data"
        self.log = folder / "perf.log"
        self.known = Known()
        self._pipes = [folder / "control", folder / "answers"]
        for pipe in self._pipes:
            os.mkfifo(pipe)
        self._control, self._answers = (os.open(pipe, os.O_RDWR) for pipe in self._pipes)
        command = [
            "perf", "record", "-a", "-g", "-e", EVENT, "-F", str(SAMPLES_A_SECOND), "-o", str(self.data), "-D", "-1",
            "--clockid", "monotonic", "--control", "fifo:" + ",".join(map(str, self._pipes)),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # It answers when it listens.
        self._tell("disable")

    def _tell(self, word: str, seconds: float = 20) -> None:
        """A command, and the wait until perf has done it."""
        os.write(self._control, f"{word}\n".encode())
        deadline, said = time.monotonic() + seconds, b""
        while b"ack" not in said:
            ready, _, _ = select.select([self._answers], [], [], 0.2)
            if ready:
                said += os.read(self._answers, 4096)
            elif self._process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"perf record does not answer: {self.log.read_text()[-300:].strip()}")

    @contextlib.contextmanager
    def watch(self) -> Iterator[Windows]:
        """What is in here is recorded, and what it adds to the windows counts."""
        self.known.look()
        stop = threading.Event()
        follower = threading.Thread(target=self.known.follow, args=(stop, threading.get_native_id()), daemon=True)
        self._tell("enable")
        follower.start()
        try:
            yield self.known.windows
        finally:
            self._tell("disable")
            stop.set()
            follower.join()
            # Threads too that came meanwhile.
            self.known.look()

    def end(self) -> None:
        """Writes what it has."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            os.close(self._control)
            os.close(self._answers)

    def found(self) -> Found:
        """What the samples say."""
        command = [
            "perf", "script", "-i", str(self.data), "-F", "comm,pid,tid,time,ip,sym,dso", "--no-inline", "--ns",
            # Of nobody else on the machine: to read their symbols takes minutes.
            "-f", "--pid", ",".join(str(pid) for pid, role in self.known.roles.items() if role),
        ]  # fmt: skip
        with (
            self.log.open("ab") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, errors="replace") as script,
        ):
            if script.stdout is None:
                raise Failed("perf script has no output")
            found = counted(script.stdout, self.known)
        if script.returncode:
            raise Failed(f"perf script: {self.log.read_text(errors='replace')[-300:].strip()}")
        return found


@dataclass
class Known:
    """What is known of the processes of this run, and of when they did what counts."""

    roles: dict[int, str] = field(default_factory=dict)
    #: Names by thread id: perf does not hear of those that came while it was asleep.
    threads: dict[int, str] = field(default_factory=dict)
    windows: Windows = field(default_factory=list)
    above: int = field(default_factory=os.getpid)

    def look(self) -> None:
        """Takes note of who runs now."""
        for pid in family(self.above)[1:]:
            role = role_of(pid)
            self.roles[pid] = role
            for task in Path(f"/proc/{pid}/task").glob("*/comm") if role else ():
                with contextlib.suppress(OSError):
                    self.threads[int(task.parent.name)] = task.read_text().strip()

    def follow(self, stop: threading.Event, thread: int) -> None:
        """Takes note of commands that this thread starts, which may have ended when the load has."""
        while not stop.wait(0.03):
            with contextlib.suppress(OSError):
                for word in Path(f"/proc/self/task/{thread}/children").read_text().split():
                    if not self.roles.get(int(word)) and (role := role_of(int(word))):
                        self.roles[int(word)] = role

    def counts(self, pid: int, at: float) -> str:
        """The role of a process, when what it did then counts."""
        role = self.roles.get(pid, "")
        if role == "origin" or role in COUNTED:
            for begin, end, with_client in self.windows:
                if begin <= at <= end and (with_client or role in {"loader", "worker"}):
                    return role
        return ""


def counted(lines: Iterable[str], known: Known) -> Found:
    """The samples of those with a role, at times that count."""
    found = Found()
    head: re.Match[str] | None = None
    stack: list[tuple[str, str]] = []
    for line in lines:
        if frame := FRAME.match(line):
            stack.append((frame["symbol"], frame["module"]))
        else:
            _count(found, head, stack, known)
            head, stack = HEAD.match(line), []
    _count(found, head, stack, known)
    return found


def _count(found: Found, head: re.Match[str] | None, stack: list[tuple[str, str]], known: Known) -> None:
    if head is None or not stack:
        return
    role = known.counts(int(head["pid"]), float(head["at"]))
    if role == "origin":
        found.of_origin += 1
    elif role:
        thread = known.threads.get(int(head["tid"]), head["thread"])
        found.threads[role, DIGITS.sub("*", thread)] += 1
        found.entries[role, entry_of(stack)] += 1
        found.symbols[role, symbol_of(*stack[0])] += 1


def entry_of(stack: list[tuple[str, str]]) -> str:
    """By what the kernel was entered, from the innermost frame on."""
    fault = ""
    for at, (symbol, _) in enumerate(stack):
        if symbol in SYSTEM_CALLS and at:
            match = CALL.match(stack[at - 1][0])
            return f"{fault and fault + ' in '}system call {match[1] if match else stack[at - 1][0]}"
        if symbol == "asm_exc_page_fault":
            fault = "page faults"
        elif not fault:
            for begin, meaning in ENTRIES:
                if symbol.startswith(begin):
                    return meaning
    return fault or ("the kernel, otherwise" if is_kernel(stack[0][1]) else "its own code")


def is_kernel(module: str) -> bool:
    return module.startswith("[")


def symbol_of(symbol: str, module: str) -> str:
    """A name that tells what it is, and nothing of this machine."""
    name = "(unknown)" if symbol == "[unknown]" else HASH.sub("", symbol)
    if len(name) > SYMBOL_CHARACTERS:
        name = f"{name[:SYMBOL_CHARACTERS]}..."
    if is_kernel(module):
        # Of a loadable module its name, of all else "kernel".
        return f"{name} [{'kernel' if 'kernel' in module else module.strip('[]')}]"
    return f"{name} ({Path(module).name})"
