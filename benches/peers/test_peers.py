"""The protocol, with real processes. Peers whose environment is not there are left out; safetensors is always."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

# Not `agent`: scripts/gpu has tests with a module of that name, and one process runs both.
import common  # noqa: E402 # behind the path
import gpu_only  # noqa: E402

LOCAL = ("safetensors", "safetensors-pread", "safetensors-next", "fastsafetensors", "runai", "tensorizer")
S3 = ("runai", "tensorizer", "boto3", "s3torchconnector", "s3fs")
#: What the environment of the tests has itself.
WITHOUT_ENVIRONMENT = ("safetensors", "safetensors-pread")
SMALL_BYTES = 5000


def python_of(name: str) -> str:
    """The interpreter that has this peer."""
    own = ROOT / ".cache" / f"bench-peers-{name}" / "bin" / "python"
    if own.exists():
        return str(own)
    if name in WITHOUT_ENVIRONMENT:
        return sys.executable
    pytest.skip(f"no environment for {name}: scripts/bench-peers.sh makes it")


class Process:
    """An agent that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.ready = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self.process.stdin.flush()
        return self.read()


@contextmanager
def running(name: str, log: Path, **environment: str) -> Iterator[Process]:
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [python_of(name), str(HERE / "agent.py"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | environment,
        ) as process,
    ):
        try:
            yield Process(process)
        finally:
            process.kill()


def tensors_of(shard: int) -> dict[str, torch.Tensor]:
    """Odd sizes, dtypes and shapes, and one tensor that does not lie where its dtype would have it."""
    random = torch.Generator().manual_seed(shard)
    return {
        f"{shard}.big": torch.randn(700, 333, generator=random).to(torch.bfloat16),
        f"{shard}.odd": torch.arange(-100, 101, dtype=torch.int8),
        f"{shard}.after": torch.randn(3, 5, 7, generator=random),
        f"{shard}.scalar": torch.tensor(2.5, dtype=torch.float64),
        f"{shard}.flags": torch.tensor([True, False, True]),
        f"{shard}.eight": torch.arange(48, dtype=torch.uint8).view(torch.float8_e4m3fn).view(6, 8),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for shard in (1, 2):
        save_file(tensors_of(shard), folder / f"model-{shard:05d}-of-00002.safetensors")
    (folder / "config.json").write_text("{}")
    for at in range(20):
        (folder / f"small-{at}").write_bytes(bytes([at]) * SMALL_BYTES)
    return folder


@pytest.fixture(scope="module")
def expected() -> str:
    return common.digest(tensors_of(1) | tensors_of(2))


@pytest.fixture(scope="module")
def store(model: Path) -> Iterator[dict[str, str]]:
    """An S3-compatible store that serves the model, as the variables that lead to it."""
    found = [ROOT / "target" / kind / "fake-origin" for kind in ("debug", "quick/release", "release")]
    program = next((each for each in found if each.exists()), None)
    if program is None:
        pytest.skip("fake-origin is not built")
    arguments = [program, "--folder", model, "--prefix", "bucket/model"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as origin:
        try:
            assert origin.stdout is not None
            url = origin.stdout.readline().split()[-1]
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            origin.kill()


def loads_right(peer: Process, model: str, work: Path, expected: str) -> None:
    assert peer.ask("prepare", model=model, work=str(work))["ok"]
    first = peer.ask("load", model=model, verify=True)
    second = peer.ask("load", model=model, verify=False)
    assert first["digest"] == expected, first
    assert (first["tensors"], first["bytes"]) == (12, sum(map(common.total_bytes, map(tensors_of, (1, 2)))))
    assert first["memory"] in {"own", "mapped"}
    assert second["digest"] is None
    assert second["seconds"] > 0
    assert second["cpu_seconds"] >= 0


@pytest.mark.parametrize("name", LOCAL)
def test_every_local_peer_gives_every_byte(name: str, model: Path, expected: str, tmp_path: Path) -> None:
    with running(name, tmp_path / "log") as peer:
        assert peer.ready["ready"]
        assert peer.ready["version"]
        assert "local" in peer.ready["can"]
        loads_right(peer, str(model), tmp_path, expected)
        assert peer.ask("end") == {"ok": True}
        assert peer.process.wait(30) == 0


@pytest.mark.parametrize("name", S3)
def test_every_s3_peer_gives_every_byte(name: str, store: dict[str, str], expected: str, tmp_path: Path) -> None:
    left_before = {each.name for each in Path("/dev/shm").glob("longshore-bench-*")}
    with running(name, tmp_path / "log", **store) as peer:
        assert "s3" in peer.ready["can"]
        loads_right(peer, "s3://bucket/model", tmp_path, expected)
        own = {each.name for each in Path("/dev/shm").glob(f"longshore-bench-{name}-*")} - left_before
        assert not own
        assert peer.ask("end") == {"ok": True}


@pytest.mark.parametrize("name", ["boto3", "s3torchconnector", "s3fs"])
def test_small_reads(name: str, store: dict[str, str], tmp_path: Path) -> None:
    urls = [f"s3://bucket/model/small-{at}" for at in range(20)]
    with running(name, tmp_path / "log", **store) as peer:
        read = peer.ask("read_files", urls=urls)
        assert (read["count"], read["bytes"]) == (20, 20 * SMALL_BYTES)
        url = "s3://bucket/model/model-00001-of-00002.safetensors"
        for mode in peer.ready["random_modes"]:
            random = peer.ask("random", url=url, count=50, bytes=4096, seed=3, mode=mode)
            assert (random["count"], random["bytes"], random["mode"]) == (50, 50 * 4096, mode)
        if "metadata" in peer.ready["can"]:
            assert peer.ask("metadata", url="s3://bucket/model", count=60)["count"] == 60
        else:
            assert peer.ask("metadata", url="s3://bucket/model", count=60)["error"] == peer.ready["cannot"]["metadata"]


def test_errors_are_answers(model: Path, tmp_path: Path) -> None:
    with running("safetensors", tmp_path / "log") as peer:
        assert "local files only" in peer.ask("load", model="s3://bucket/model")["error"]
        assert "no *.safetensors" in peer.ask("load", model=str(tmp_path))["error"]
        assert "no operation dance" in peer.ask("dance")["error"]
        (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
        assert "SafetensorError" in peer.ask("load", model=str(tmp_path))["error"]
        assert peer.ask("load", model=str(model), verify=True)["tensors"] == 12


@pytest.mark.parametrize("memory", ["own", "mapped"])
def test_the_clock_stops_behind_a_read_of_each_page(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("peers_agent", HERE / "agent.py")
    assert spec is not None
    assert spec.loader is not None
    agent = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(agent)
    now, page = [0.0], common.PAGE_BYTES
    really_touch = common.touch

    def touch(tensors: dict[str, torch.Tensor]) -> int:
        now[0] += 5
        return really_touch(tensors)

    class Peer(common.Adapter):
        can = ("local",)

        def load(self, _: str) -> common.Loaded:
            now[0] += 1
            return common.Loaded({"a": torch.ones(3 * page, dtype=torch.uint8), "b": torch.ones(2, dtype=torch.uint8)})

    monkeypatch.setattr(common, "touch", touch)
    monkeypatch.setattr(agent.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Peer, "memory", memory)
    assert agent.load(Peer(), {"model": "/folder"})["seconds"] == 6
    # A byte of each of three pages, and the one of a small tensor.
    assert really_touch(Peer().load("").tensors) == 4


def test_an_unknown_peer_is_refused() -> None:
    done = subprocess.run([sys.executable, HERE / "agent.py", "nobody"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert all(name in done.stderr for name in {*LOCAL, *S3})


def test_the_digest_tells_every_difference() -> None:
    plain = {"a": torch.zeros(4), "b": torch.ones(4)}
    others = [
        {"a": torch.zeros(4)},
        {"a": torch.zeros(2, 2), "b": torch.ones(4)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(4)},
        {"a": torch.ones(4), "b": torch.zeros(4)},
    ]
    assert len({common.digest(each) for each in [plain, *others]}) == 5
    assert common.digest(dict(reversed(plain.items()))) == common.digest(plain)


def test_parsing_in_place_gives_what_safetensors_gives(model: Path) -> None:
    content = bytearray((model / "model-00001-of-00002.safetensors").read_bytes())
    parsed = common.parse_in_place(content)
    assert common.digest(parsed) == common.digest(tensors_of(1))


def test_what_is_resident_is_told(model: Path) -> None:
    files = common.local_files(str(model))
    for file in files:
        Path(file).read_bytes()
    assert common.resident(files)


def test_every_gpu_only_peer_says_why() -> None:
    assert all(len(peer.reason) > 20 and peer.needs for peer in gpu_only.PEERS)
