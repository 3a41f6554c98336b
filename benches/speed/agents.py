"""Programs that load on command: the peers and Longshore's client (`benches/peers`), and the plain limits."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import agent
from daemons import Failed

ROOT = Path(__file__).resolve().parents[2]
PEERS_FOLDER = ROOT / "benches" / "peers"
#: Names of the adapters, with what the tables call them when they cannot be started.
PEERS = {
    "safetensors": "safetensors, mapped",
    "safetensors-pread": "safetensors, read",
    "safetensors-next": "safetensors 0.9 pre-release, mapped",
    "runai": "run:ai model streamer",
    "fastsafetensors": "fastsafetensors, host mode",
    "tensorizer": "tensorizer",
    "boto3": "boto3, safetensors",
    "s3torchconnector": "s3torchconnector",
    "s3fs": "s3fs, safetensors",
}
#: Those that only a machine with a GPU can run; `make gpu` has them.
GPU_ONLY = {
    "InstantTensor": "needs a GPU: see docs/benchmarks-gpu.md",
    "thaw": "needs a GPU: see docs/benchmarks-gpu.md",
}


class Adapter(agent.Agent):
    """One program that answers a JSON line with a JSON line."""

    def __init__(self, name: str, command: list[str | Path], environment: dict[str, str], log: Path) -> None:
        self.role = name
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self._left = b""
        self.told: dict[str, Any] = {}

    def ready(self, seconds: float = 120) -> Adapter:
        """Waits for its first line."""
        self.told = self.receive(seconds)
        return self

    def send(self, operation: str, **arguments: Any) -> None:
        """Asks without waiting."""
        pipe = self.process.stdin
        if pipe is None or self.process.poll() is not None:
            raise Failed(f"{self.role} ended: {self.tail()}")
        try:
            pipe.write(json.dumps({"op": operation, **arguments}).encode() + b"\n")
            pipe.flush()
        except OSError as error:
            raise Failed(f"{self.role} ended: {self.tail()}") from error

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None


def peer_command(name: str) -> list[str | Path]:
    """How an adapter is started."""
    if name == "longshore":
        return [python_of(name), PEERS_FOLDER / "longshore_agent.py"]
    return [python_of(name), PEERS_FOLDER / "agent.py", name]


def python_of(name: str) -> Path:
    """The interpreter of an adapter's environment."""
    folder = ".venv" if name == "longshore" else f".cache/bench-peers-{name}"
    python = ROOT / folder / "bin" / "python"
    if not python.exists():
        raise Failed(f"there is no {folder}: run scripts/bench-peers.sh")
    return python


def clean_environment(**more: str) -> dict[str, str]:
    """Without settings of whoever runs this."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LONGSHORE_", "AWS_", "RUNAI_"))}
    return kept | more


#: Names of dtypes in the files, and as torch prints them.
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def digest_of(folder: Path) -> str:
    """What every subject's tensors must come to: computed here from the files alone, see benches/peers/common.py."""
    found: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found |= {name: (path, 8 + length, told) for name, told in header.items()}
    summed = hashlib.sha256()
    for name in sorted(found, key=str.encode):
        path, start, told = found[name]
        shape = ",".join(str(extent) for extent in told["shape"])
        summed.update(f"{name}\0{TORCH_NAMES[told['dtype']]}\0{shape}\0".encode())
        begin, end = told["data_offsets"]
        with path.open("rb") as file:
            file.seek(start + begin)
            summed.update(file.read(end - begin))
    return summed.hexdigest()
