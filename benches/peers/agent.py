"""One peer as a program that keeps running: a JSON line on standard output for each JSON line on standard input.

usage: .cache/bench-peers-NAME/bin/python benches/peers/agent.py NAME

Says first who it is: {"ready": true, "subject", "version", "can": [...], "cannot": {...}, "random_modes": [...]}. Then:

  {"op": "prepare", "model": "/folder" | "s3://bucket/prefix", "work": "/folder"} -> {"ok": true, "note"}; untimed
  {"op": "load", "model": ..., "verify": bool}
                                     -> {"seconds", "cpu_seconds", "bytes", "tensors", "memory", "digest": hex | null}
  {"op": "read_files", "urls": [...]}                                  -> {"seconds", "cpu_seconds", "bytes", "count"}
  {"op": "random", "url": ..., "count": N, "bytes": 4096, "seed": S, "mode": one of random_modes}        -> and "mode"
  {"op": "metadata", "url": prefix, "count": N}                        -> {"seconds", "cpu_seconds", "bytes", "count"}
  {"op": "end"}                                                                                        -> {"ok": true}

or {"error": text}. A load is timed until every tensor of every *.safetensors is a torch CPU tensor and one byte of each
page of it was read (every 4096th of its bytes), whatever its memory is: its "own", or that of the "mapped" file.
Credentials and endpoint come as AWS_* variables. All that a library prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common  # behind the path

#: Name on the command line, and the module of adapters/ that has it.
PEERS = {
    "safetensors": "safetensors_mmap",
    "safetensors-pread": "safetensors_pread",
    "safetensors-next": "safetensors_next",
    "runai": "runai",
    "fastsafetensors": "fastsafetensors_host",
    "tensorizer": "tensorizer_peer",
    "boto3": "boto3_peer",
    "s3torchconnector": "connector",
    "s3fs": "s3fs_peer",
}


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gave, with the wall-clock and CPU seconds that it took, and when it began on the clock that all share."""
    cpu, begin, start = common.cpu_seconds(), time.monotonic(), time.perf_counter()
    given = work()
    seconds = time.perf_counter() - start
    return given, {"begin": begin, "seconds": seconds, "cpu_seconds": common.cpu_seconds() - cpu}


def load(peer: common.Adapter, asked: dict[str, Any]) -> dict[str, Any]:
    """One load, and everything let go again."""
    model = asked["model"]
    kind = "s3" if common.is_s3(model) else "local"
    if kind not in peer.can:
        raise common.PeerError(peer.why_not(kind))

    def work() -> common.Loaded:
        loaded = peer.load(model)
        common.touch(loaded.tensors)
        return loaded

    peer.before_load(model)
    try:
        loaded, answer = timed(work)
        common.must_be_in_memory(loaded.tensors)
        answer |= {
            "bytes": common.total_bytes(loaded.tensors),
            "tensors": len(loaded.tensors),
            "memory": peer.memory,
            "digest": common.digest(loaded.tensors) if asked.get("verify") else None,
        }
    finally:
        # Buffers of a load that failed are to go as well.
        loaded = None
        common.collect()
        peer.drop()
    return answer


def read_files(peer: common.Adapter, asked: dict[str, Any]) -> dict[str, Any]:
    """Many objects, whole."""
    urls = asked["urls"]
    read, answer = timed(lambda: peer.read_files(urls))
    return answer | {"bytes": read, "count": len(urls)}


def random_reads(peer: common.Adapter, asked: dict[str, Any]) -> dict[str, Any]:
    """Small reads at places that the seed tells."""
    url, length, mode = asked["url"], asked.get("bytes", 4096), asked.get("mode") or peer.random_modes[0]
    if mode not in peer.random_modes:
        raise common.PeerError(f"no random reads in mode {mode}; there are {', '.join(peer.random_modes)}")
    places = random.Random(asked["seed"])
    span = peer.size(url) - length
    offsets = [places.randrange(span) for _ in range(asked["count"])]
    peer.ready_to_read(url, mode)
    try:
        read, answer = timed(lambda: peer.random(url, offsets, length, mode))
    finally:
        peer.drop()
    if read != length * len(offsets):
        raise common.PeerError(f"{read} bytes came instead of {length * len(offsets)}")
    return answer | {"bytes": read, "count": len(offsets), "mode": mode}


def metadata(peer: common.Adapter, asked: dict[str, Any]) -> dict[str, Any]:
    """`count` questions for size and time, of the objects below a prefix in turn."""
    below = peer.keys(asked["url"])
    if not below:
        raise common.PeerError(f"{asked['url']} has no objects")
    urls = [below[at % len(below)] for at in range(asked["count"])]
    told, answer = timed(lambda: peer.metadata(urls))
    return answer | {"bytes": 0, "count": told}


def answer_to(peer: common.Adapter, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    operation = asked["op"]
    if operation in common.OPTIONAL and operation not in peer.can:
        raise common.PeerError(peer.why_not(operation))
    match operation:
        case "prepare":
            return {"ok": True, "note": peer.prepare(asked["model"], Path(asked["work"]))}
        case "load":
            return load(peer, asked)
        case "read_files":
            return read_files(peer, asked)
        case "random":
            return random_reads(peer, asked)
        case "metadata":
            return metadata(peer, asked)
        case "end":
            peer.end()
            return {"ok": True}
        case _:
            raise common.PeerError(f"no operation {operation}")


def own_output() -> TextIO:
    """Standard output for answers alone; what libraries print to it, from C too, goes to standard error."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def said(error: Exception) -> str:
    """An error as a row shows it."""
    if isinstance(error, common.PeerError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def main(arguments: list[str]) -> int:
    """Until `end` or the end of input."""
    if len(arguments) != 1 or arguments[0] not in PEERS:
        print(f"usage: agent.py NAME; names: {', '.join(PEERS)}", file=sys.stderr)
        return 2
    answers = own_output()

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        peer: common.Adapter = importlib.import_module(f"adapters.{PEERS[arguments[0]]}").Peer()
        cannot = {each: peer.why_not(each) for each in ("local", "s3", *common.OPTIONAL) if each not in peer.can}
        told = {"subject": peer.subject, "version": peer.version(), "can": list(peer.can), "cannot": cannot}
    except Exception as error:  # noqa: BLE001 # the row says it
        traceback.print_exc()
        send({"ready": False, "error": said(error)})
        return 1
    send({"ready": True, **told, "random_modes": list(peer.random_modes)})
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            send(answer_to(peer, asked))
        except Exception as error:  # noqa: BLE001 # the row says it
            if not isinstance(error, common.PeerError):
                traceback.print_exc()
            send({"error": said(error)})
            continue
        if asked["op"] == "end":
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
