"""Long-lived child processes that load on command: Longshore's client, each peer, and the plain limits.

A child is started once, so that importing torch and making a CUDA context are in no measurement. Requests and answers
are one JSON object a line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from daemons import Failed

HERE = Path(__file__).resolve().parent


class Agent:
    """One child; ended with its `with` block."""

    def __init__(self, role: str, environment: dict[str, str], log: Path, **options: Any) -> None:
        self.role = role
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "child.py"), role, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self._left = b""

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def call(self, operation: str, seconds: float = 60, **arguments: Any) -> dict[str, Any]:
        """Asks and waits. `Failed` when the child says so, ends, or is late; a late one is ended."""
        self.send(operation, **arguments)
        return self.receive(seconds)

    def send(self, operation: str, **arguments: Any) -> None:
        """Asks without waiting."""
        pipe = self.process.stdin
        if pipe is None or self.process.poll() is not None:
            raise Failed(f"{self.role} ended: {self.tail()}")
        try:
            pipe.write(json.dumps({"operation": operation, **arguments}).encode() + b"\n")
            pipe.flush()
        except OSError as error:
            raise Failed(f"{self.role} ended: {self.tail()}") from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """The answer to the request before."""
        try:
            line = self._line(seconds)
        except BaseException:
            # An answer that nobody waited for would be taken for the next one's.
            self.process.kill()
            raise
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.role}: {answer['error']}")
        return answer

    def _line(self, seconds: float) -> bytes:
        pipe = self.process.stdout
        if pipe is None:
            raise Failed(f"{self.role} has no output")
        deadline = time.monotonic() + seconds
        while b"\n" not in self._left:
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.process.kill()
                self.process.wait()
                raise Failed(f"{self.role}: no answer within {seconds:.0f} s: {self.tail()}")
            piece = os.read(pipe.fileno(), 1 << 20)
            if not piece:
                self.process.wait()
                raise Failed(f"{self.role} ended with {self.process.returncode}: {self.tail()}")
            self._left += piece
        line, _, self._left = self._left.partition(b"\n")
        return line

    def tail(self) -> str:
        """The last words of its log."""
        try:
            return self.log.read_text(errors="replace")[-500:].strip()
        except OSError:
            return ""

    def end(self) -> None:
        """Closes its input; it ends by itself, or is ended."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
