"""Longshore's Python client as a program that keeps running, in the protocol of `agent.py`.

A load is timed as every peer's is: from the call until all tensors are torch CPU tensors and one byte of each of their
pages was read. CPU seconds are those of this process and of the daemons that LONGSHORE_BENCH_PIDS names.

Beside `load`: {"op": "load", "keep": true} leaves the model in the loader's memory, {"op": "unload", "model"},
{"op": "hold", "model"} keeps a lease until {"op": "release"}, {"op": "attach", "count": N} attaches to what is held.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import agent  # behind the path
import common
import longshore
import torch  # noqa: F401 # before the first load, as every peer's adapter has it

#: A load that takes longer has failed.
SECONDS = 300.0
DAEMONS = [int(pid) for pid in os.environ.get("LONGSHORE_BENCH_PIDS", "").split(",") if pid]


def daemon_cpu_seconds() -> float:
    """Of the daemons, by their processes' CPU clocks: finer than the ticks of /proc."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in DAEMONS)


own_cpu_seconds = common.cpu_seconds
common.cpu_seconds = lambda: own_cpu_seconds() + daemon_cpu_seconds()


class Longshore(common.Adapter):
    """Loads through the node's loader."""

    subject = "longshore"
    package = "longshore"
    can = ("local", "s3")

    def __init__(self) -> None:
        self.node = longshore.connect()
        self.keep = False
        self.held: Any = None
        self.last: dict[str, Any] = {}
        self._uri = ""

    def load(self, model: str) -> common.Loaded:
        cpu = daemon_cpu_seconds()
        loaded = self.node.load(model, device="host", framework="torch", progress=False, timeout=SECONDS)
        tensors = loaded.state_dict()
        report = loaded.report
        self._uri = model
        self.last = {
            "daemon_cpu_seconds": daemon_cpu_seconds() - cpu,
            "loader_seconds": report.seconds,
            "reattached": report.reattached,
            "fallbacks": [fallback.kind for fallback in report.fallbacks],
            "tiers": dict(report.bytes_by_tier),
            "steps": [
                {"step": each.step, "start": each.start_seconds, "end": each.end_seconds, "busy": each.busy_seconds}
                for each in report.steps
            ],
        }
        return common.Loaded(tensors, [loaded])

    def drop(self) -> None:
        if self._uri and not self.keep:
            self.node.unload(self._uri)

    def attach(self, count: int) -> dict[str, Any]:
        """Attaches one after the other; each ends with torch tensors."""
        model_id, socket = self.held.model_id, self.held.attach_socket
        calls = []
        begin, cpu = time.perf_counter(), common.cpu_seconds()
        for _ in range(count):
            start = time.perf_counter()
            attached = longshore.attach(model_id, socket, framework="torch")
            tensors = attached.state_dict()
            calls.append(time.perf_counter() - start)
            tensors_count = len(tensors)
            del tensors
            attached.close()
        whole = {"seconds": time.perf_counter() - begin, "cpu_seconds": common.cpu_seconds() - cpu}
        calls.sort()
        ranks = {"p50_seconds": 0.5, "p99_seconds": 0.99, "max_seconds": 1.0}
        return (
            whole
            | {"count": count, "tensors": tensors_count}
            | {name: calls[max(math.ceil(share * count) - 1, 0)] for name, share in ranks.items()}
        )

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        match asked["op"]:
            case "load":
                self.keep = bool(asked.get("keep"))
                return agent.answer_to(self, asked) | self.last
            case "hold":
                self.held = self.node.load(
                    asked["model"], device="host", framework="torch", progress=False, timeout=SECONDS
                )
                return {"ok": True, "model_id": self.held.model_id, "attach_socket": self.held.attach_socket}
            case "attach":
                return self.attach(asked["count"])
            case "release":
                self.held = None
                common.collect()
                return {"ok": True}
            case "unload":
                self.node.unload(asked["model"])
                return {"ok": True}
            case _:
                return agent.answer_to(self, asked)


def main() -> int:
    """Until `end` or the end of input."""
    answers = agent.own_output()

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    peer = Longshore()
    told = {"subject": peer.subject, "version": longshore.__version__, "can": list(peer.can), "cannot": {}}
    send({"ready": True, **told})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            send(peer.answer(asked))
        except Exception as error:  # noqa: BLE001 # the row says so
            traceback.print_exc()
            send({"error": agent.said(error)})
        if asked["op"] == "end":
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
