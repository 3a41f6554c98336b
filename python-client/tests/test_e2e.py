"""The client against the real loader."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from e2e_support import Daemon, binary, every_dtype, random_tensor, write_safetensors, write_sharded, write_sparse
from fake_loader import repository
from test_dtypes import torch_bytes

import longshore
from longshore import _private

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("loader"), "--memory", "512MiB")
    yield running
    running.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of one file with three tensors, and a side file."""
    path = tmp_path / "model"
    path.mkdir()
    tensors = {
        "a": random_tensor("F32", (64, 16)),
        "b": random_tensor("BF16", (1000,)),
        "c": random_tensor("I64", (3, 3)),
    }
    write_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text('{"hidden_size": 16}')
    return path


def by_package(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the safetensors package reads from a file."""
    package: Any = safetensors
    found = package.deserialize(path.read_bytes())
    return {name: (each["dtype"], tuple(each["shape"]), bytes(each["data"])) for name, each in found}


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_every_dtype_is_what_the_safetensors_package_reads(daemon: Daemon, tmp_path: Path, padding: int) -> None:
    write_safetensors(tmp_path / "model.safetensors", every_dtype(), padding)
    wanted = by_package(tmp_path / "model.safetensors")
    assert len({dtype for dtype, _, _ in wanted.values()}) == 22
    tensors = daemon.node.load(tmp_path, framework="torch")
    arrays = daemon.node.load(tmp_path, framework="numpy")
    assert set(tensors) == set(arrays) == set(wanted)
    for name, (dtype, shape, content) in wanted.items():
        info = tensors.info(name)
        assert (info.dtype_name, info.shape, info.nbytes) == (dtype, shape, len(content)), name
        assert torch_bytes(tensors[name]) == content, name
        assert arrays[name].tobytes() == content, name
        assert tensors[name].data_ptr() % 64 == 0, "the loader aligns tensors, so that none is copied"
    assert tensors.nbytes >= sum(len(content) for _, _, content in wanted.values())


def test_torch_tensors_equal_those_of_safetensors_torch(daemon: Daemon, tmp_path: Path) -> None:
    names = ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
    names += ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64"]
    made = {}
    for name in names:
        dtype = getattr(torch, name)
        made[name] = (torch.randn(5, 8) if dtype.is_floating_point else torch.arange(40).reshape(5, 8)).to(dtype)
    safetensors.torch.save_file(made, tmp_path / "model.safetensors")
    wanted = safetensors.torch.load_file(tmp_path / "model.safetensors")
    model = daemon.node.load(tmp_path, framework="torch")
    assert set(model) == set(names)
    for name, tensor in wanted.items():
        assert (model[name].dtype, model[name].shape) == (tensor.dtype, tensor.shape)
        assert torch_bytes(model[name]) == torch_bytes(tensor)


def test_sharded_with_side_files(daemon: Daemon, tmp_path: Path) -> None:
    shards = [
        {f"layer{shard}.{index}": random_tensor("F16", (50 + shard, 11 * index)) for index in range(12)}
        for shard in range(5)
    ]
    write_sharded(tmp_path, shards)
    (tmp_path / "tokenizer.json").write_bytes(os.urandom(5000))
    (tmp_path / "config.json").write_text("{}")
    model = daemon.node.load(tmp_path, framework="numpy")
    assert len(model) == 60
    for path in tmp_path.glob("*.safetensors"):
        for name, (_, shape, content) in by_package(path).items():
            assert model[name].shape == shape
            assert model[name].tobytes() == content
    assert bytes(model.files["tokenizer.json"]) == (tmp_path / "tokenizer.json").read_bytes()
    assert bytes(model.files["config.json"]) == b"{}"
    assert model.report.bytes >= sum(len(content) for shard in shards for _, _, content in shard.values())


def test_other_formats_come_as_bytes(daemon: Daemon, tmp_path: Path) -> None:
    content = b"GGUF" + os.urandom(3 << 20)
    (tmp_path / "model.gguf").write_bytes(content)
    model = daemon.node.load(tmp_path / "model.gguf")
    assert len(model) == 0
    (name,) = model.files
    assert bytes(model.files[name]) == content


def test_an_unknown_dtype_comes_as_bytes_with_a_warning(daemon: Daemon, tmp_path: Path) -> None:
    tensors = {"known": random_tensor("F32", (2,)), "new": ("F3_NEXT", (2, 3), b"abcdefg")}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    model = daemon.node.load(tmp_path, framework="numpy")
    assert model["new"].tobytes() == b"abcdefg"
    assert model["new"].dtype == np.uint8
    assert model.info("new").raw
    assert model.info("new").dtype_name == "F3_NEXT"
    assert any("F3_NEXT" in warning for warning in model.warnings)


OTHER = """
import hashlib, json, sys
import longshore

model = longshore.connect(sys.argv[1]).load(sys.argv[2], framework="numpy")
print(json.dumps([model.report.reattached, {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in model.items()}]))
sys.stdout.flush()
sys.stdin.read()
"""


def test_two_processes_attach_to_one_load(daemon: Daemon, folder: Path) -> None:
    model = daemon.node.load(folder, framework="torch")
    model["a"].zero_()
    wanted = {k: hashlib.sha256(v[2]).hexdigest() for k, v in by_package(folder / "model.safetensors").items()}
    used = daemon.node.status().arena_used_bytes
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(daemon.folder), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        reattached, found = json.loads(other.stdout.readline())
        assert reattached
        assert found == wanted, "a write of this process never reaches another"
        assert daemon.leases(model.uri) == 2
        assert daemon.node.status().arena_used_bytes == used, "nothing was loaded twice"
        other.kill()
    daemon.wait_for_leases(model.uri, 1)
    assert not bool(model["a"].any())


def test_the_lease_ends_with_the_last_tensor(daemon: Daemon, folder: Path) -> None:
    model = daemon.node.load(folder, framework="torch")
    uri = model.uri
    assert daemon.leases(uri) == 1
    view = model["b"][10:20]
    del model
    gc.collect()
    unloaded = daemon.node.unload(uri)
    assert unloaded.models == 1
    assert unloaded.bytes_leased > 0
    content = by_package(folder / "model.safetensors")["b"][2]
    assert torch_bytes(view) == content[20:40], "memory that is held stays, whatever the loader forgets"
    again = daemon.node.load(folder, framework="torch")
    assert daemon.leases(uri) >= 1
    before = daemon.node.status().arena_used_bytes
    del view
    gc.collect()
    deadline = time.monotonic() + 10
    while daemon.node.status().arena_used_bytes >= before:
        assert time.monotonic() < deadline, "the memory of the first load was not freed"
        time.sleep(0.01)
    again.close()
    daemon.wait_for_leases(uri, 0)


def test_progress_and_report(daemon: Daemon, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"t": random_tensor("U8", (40 << 20,))})
    seen: list[longshore.Progress] = []
    model = daemon.node.load(tmp_path, progress=seen.append)
    assert model.report.bytes >= 40 << 20
    assert model.report.bytes_by_tier.get("origin", 0) >= 40 << 20
    assert {step.step for step in model.report.steps} >= {"resolve", "plan", "fetch"}
    assert model.report.seconds > 0
    assert all(event.bytes_done <= event.bytes_total for event in seen)
    assert model.revision
    assert model.uri == f"file://{tmp_path}"


def test_errors_are_mirrored(daemon: Daemon, tmp_path: Path) -> None:
    with pytest.raises(longshore.NotFound, match="absent"):
        daemon.node.load(tmp_path / "absent")
    with pytest.raises(longshore.InvalidArgument, match="gopher"):
        daemon.node.load("gopher://host/model")
    with pytest.raises(longshore.Unsupported, match="cuda:0"):
        daemon.node.load(tmp_path, device="cuda:0")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(longshore.Corrupt, match=r"model\.safetensors"):
        daemon.node.load(broken)
    huge = tmp_path / "huge"
    huge.mkdir()
    write_sparse(huge / "model.safetensors", 1 << 30)
    with pytest.raises(longshore.Exhausted, match="memory"):
        daemon.node.load(huge)
    with pytest.raises(longshore.NotFound):
        longshore.attach("no-such-model", str(daemon.folder / "attach.sock"))
    assert not any(name in model.uri for name in ("broken", "huge") for model in daemon.node.models())


# ---- the private loader, and exec


@pytest.fixture
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LONGSHORE_BIN", str(binary()))
    monkeypatch.setenv("LONGSHORE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LONGSHORE_SOCKET_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("LONGSHORE_LOADER", raising=False)
    monkeypatch.setattr(_private, "_current", None)
    yield
    gc.collect()


@pytest.mark.usefixtures("nothing_runs")
def test_a_private_loader_starts_with_the_load_and_ends_with_the_last_tensor(folder: Path) -> None:
    model = longshore.load(folder, framework="torch")
    other = longshore.load(folder, framework="numpy")
    loader = _private._current
    assert loader is not None
    sockets = Path(str(loader.address.path)).parent
    wanted = by_package(folder / "model.safetensors")
    assert {name: torch_bytes(tensor) for name, tensor in model.items()} == {k: v[2] for k, v in wanted.items()}
    assert other.report.reattached
    tensor = model["a"]
    model.close()
    other.close()
    gc.collect()
    time.sleep(0.3)  # long enough for a loader that would end too early
    assert loader.is_running
    assert torch_bytes(tensor) == wanted["a"][2]
    del tensor
    gc.collect()
    deadline = time.monotonic() + 20
    while loader.is_running or sockets.exists():
        assert time.monotonic() < deadline, "the private loader did not end with the last lease"
        time.sleep(0.02)
    again = longshore.load(folder, framework="numpy")
    assert again["a"].tobytes() == wanted["a"][2]
    assert not again.report.reattached


KILLED = """
import sys
import longshore
from longshore import _private

model = longshore.load(sys.argv[1], framework="numpy")
print(_private._current.pid, _private._current.address.path, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("nothing_runs")
def test_a_private_loader_ends_when_its_client_is_killed(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        pid_text, path = client.stdout.readline().split()
        pid, sockets = int(pid_text), Path(path).parent
        assert Path(f"/proc/{pid}").exists()
        assert sockets.exists()
        client.kill()
    deadline = time.monotonic() + 20
    while _is_alive(pid):
        assert time.monotonic() < deadline, "the private loader outlives its client"
        time.sleep(0.02)
    assert not sockets.exists()


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("nothing_runs")
def test_errors_of_a_private_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(longshore.NotFound, match="absent"):
        longshore.load(tmp_path / "absent")
    monkeypatch.setattr(_private, "_current", None)
    monkeypatch.setenv("LONGSHORE_LOADER_MEMORY", "much")
    with pytest.raises(longshore.InvalidArgument, match=r"ended with code 2: .*much"):
        longshore.load(tmp_path / "absent")


EXEC = """
import hashlib
import longshore

model = longshore.attach(framework="numpy")
print(hashlib.sha256(model["a"].tobytes()).hexdigest())
"""


def test_the_child_of_exec_attaches(daemon: Daemon, folder: Path) -> None:
    run = subprocess.run(
        [binary(), "exec", "--model", folder, "--", sys.executable, "-c", EXEC],
        capture_output=True,
        text=True,
        env={**os.environ, "LONGSHORE_SOCKET_DIR": str(daemon.folder)},
    )
    wanted = hashlib.sha256(by_package(folder / "model.safetensors")["a"][2]).hexdigest()
    assert run.stdout.strip() == wanted, run.stderr


def test_the_platform_wheel_is_the_whole_product(tmp_path: Path, folder: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("LONGSHORE_")}
    built = subprocess.run(
        [repository() / "scripts/build-wheel.sh", tmp_path / "dist"],
        env={**environ, "LONGSHORE_WHEEL_BINARY": str(binary()), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip: list[Any] = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "install"]
    subprocess.run([*pip, "--quiet", "--no-compile", "--no-deps", "--no-index", wheel], check=True)
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    version = subprocess.run([venv / "bin/longshore", "--version"], capture_output=True, text=True, check=True)
    assert longshore.__version__ in version.stdout
    script = "import sys, longshore; print(sorted(longshore.load(sys.argv[1], framework='numpy')))"
    run = subprocess.run(
        [venv / "bin/python", "-c", script, folder],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "PATH": "/nowhere",
            "LONGSHORE_CACHE_DIR": str(tmp_path / "cache"),
            "LONGSHORE_SOCKET_DIR": str(tmp_path / "none"),
        },
    )
    assert run.stdout.strip() == "['a', 'b', 'c']", run.stderr
