"""The client against the real loader and its holder, over the fake CUDA driver."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e_support import Daemon, Holder, every_dtype, random_tensor, write_safetensors, write_sharded
from gpu_support import MEMORY_MIB, FakeCuda
from test_dtypes import torch_bytes
from test_e2e import by_package
from test_gpu import script

import longshore
from longshore import Expert, Parallel, Split

pytestmark = [pytest.mark.e2e, pytest.mark.gpu]

PINNED_MIB = 160
OPTIONS = ("--memory", "512MiB", "--pinned-memory", f"{PINNED_MIB}MiB")


@pytest.fixture(scope="module")
def daemon(installed_cuda: FakeCuda, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("loader"), *OPTIONS, environ=installed_cuda.environ)
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


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_every_dtype(daemon: Daemon, cuda: FakeCuda, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", every_dtype(), padding=1)
    wanted = by_package(tmp_path / "model.safetensors")
    model = daemon.node.load(tmp_path, "cuda:0", framework="torch")
    assert (model.device, model.device_uuid) == ("cuda:0", cuda.gpu(0).uuid)
    assert set(model) == set(wanted)
    for name, (dtype, shape, content) in wanted.items():
        info = model.info(name)
        assert (info.dtype_name, info.shape, info.nbytes) == (dtype, shape, len(content)), name
        assert torch_bytes(model[name]) == content, name
        assert model[name].data_ptr() % 256 == 0 or not content, "aligned, so that none is copied"


def test_many_files_of_more_than_a_chunk_with_side_files(daemon: Daemon, cuda: FakeCuda, tmp_path: Path) -> None:
    shards = [
        {f"layer{shard}.{index}": random_tensor("F16", (500 + shard, 1100 * index)) for index in range(7)}
        for shard in range(2)
    ]
    write_sharded(tmp_path, shards)
    (tmp_path / "tokenizer.json").write_bytes(os.urandom(50_000))
    model = daemon.node.load(tmp_path, "cuda:1", framework="torch")
    assert model.device == "cuda:1"
    for shard in shards:
        for name, (_, shape, content) in shard.items():
            assert tuple(model[name].shape) == shape
            assert torch_bytes(model[name]) == content, name
    assert bytes(model.files["tokenizer.json"]) == (tmp_path / "tokenizer.json").read_bytes()


def test_the_status_tells_of_gpus(daemon: Daemon, cuda: FakeCuda, folder: Path) -> None:
    model = daemon.node.load(folder, "cuda:1")
    status = daemon.node.status()
    found = {device.device: device for device in status.devices}
    second = found["cuda:1"]
    assert second.uuid == model.device_uuid == cuda.gpu(1).uuid
    assert second.state == "ready"
    assert 0 < second.used_bytes < second.capacity_bytes <= MEMORY_MIB << 20
    assert 0 < second.free_bytes < second.capacity_bytes
    assert status.pinned is not None
    assert 0 < status.pinned.capacity_bytes <= PINNED_MIB << 20
    assert status.pinned.pages
    assert status.holder is not None
    assert not status.holder.process
    (info,) = [each for each in status.models if each.model_id == model.model_id]
    assert (info.device, info.device_uuid, info.leases) == ("cuda:1", model.device_uuid, 1)


def test_auto_is_a_gpu_and_numpy_is_host_memory(daemon: Daemon, cuda: FakeCuda, folder: Path) -> None:
    wanted = by_package(folder / "model.safetensors")
    tensors = daemon.node.load(folder, framework="torch")
    assert tensors.device.startswith("cuda:")
    arrays = daemon.node.load(folder, framework="numpy")
    assert arrays.device == "host"
    for name, (_, _, content) in wanted.items():
        assert torch_bytes(tensors[name]) == content
        assert arrays[name].tobytes() == content


OTHER = """
import hashlib, json, sys
import longshore

model = longshore.connect(sys.argv[1]).load(sys.argv[2], sys.argv[3], framework="torch")
digests = {name: hashlib.sha256(tensor.view(-1).view(__import__("torch").uint8).numpy()).hexdigest()
           for name, tensor in model.items()}
print(json.dumps([model.report.reattached, model.device, digests]), flush=True)
sys.stdin.read()
"""


def test_two_processes_share_the_memory_and_it_is_freed(daemon: Daemon, cuda: FakeCuda, folder: Path) -> None:
    before = cuda.used_bytes(1)
    model = daemon.node.load(folder, "cuda:1", framework="torch")
    once = cuda.used_bytes(1)
    assert once > before
    wanted = {
        name: hashlib.sha256(each[2]).hexdigest() for name, each in by_package(folder / "model.safetensors").items()
    }
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(daemon.folder), folder, "cuda:0"],
        env={**os.environ, **cuda.environ, "CUDA_VISIBLE_DEVICES": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert json.loads(other.stdout.readline()) == [True, "cuda:0", wanted]
        assert cuda.used_bytes(1) == once, "nothing was loaded twice"
        assert daemon.leases(model.uri) == 2
        other.kill()
    daemon.wait_for_leases(model.uri, 1)
    tensor, uri = model["a"], model.uri
    model.close()
    assert daemon.node.unload(uri).bytes_leased > 0
    content = by_package(folder / "model.safetensors")["a"][2]
    assert torch_bytes(tensor) == content, "memory that is held stays, whatever the loader forgets"
    del tensor
    gc.collect()
    eventually(lambda: cuda.used_bytes(1) == before, "the memory was not freed")


def test_a_writable_model(daemon: Daemon, cuda: FakeCuda, folder: Path) -> None:
    wanted = by_package(folder / "model.safetensors")
    shared = daemon.node.load(folder, "cuda:0")
    model = daemon.node.load(folder, "cuda:0", writable=True)
    daemon.wait_for_leases(shared.uri, 1)
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert not bool(model["a"].any())
    assert {name: torch_bytes(tensor) for name, tensor in shared.items()} == {k: v[2] for k, v in wanted.items()}
    assert json.loads(bytes(model.files["config.json"])) == {"hidden_size": 16}


WRITE = """
import sys
import longshore

longshore.connect(sys.argv[1]).load(sys.argv[2], "cuda:0")["a"].zero_()
"""


def test_a_write_through_the_shared_mapping_changes_nothing(daemon: Daemon, cuda: FakeCuda, folder: Path) -> None:
    model = daemon.node.load(folder, "cuda:0")
    run = script(cuda, WRITE, str(daemon.folder), str(folder))
    assert run.returncode == -11, run.stderr
    daemon.wait_for_leases(model.uri, 1)
    assert torch_bytes(model["a"]) == by_package(folder / "model.safetensors")["a"][2]


@pytest.mark.parametrize("device", ["cuda:0", "host"])
def test_ranks_get_their_parts(daemon: Daemon, cuda: FakeCuda, tmp_path: Path, device: str) -> None:
    made = {
        "norm.weight": torch.randn(64),
        "q_proj.weight": torch.randn(64, 32),
        "o_proj.weight": torch.randn(32, 64),
        "gate_up_proj.weight": torch.randn(96, 32),
        **{f"experts.{expert}.w": torch.randn(8, 8) for expert in range(4)},
    }
    tensors = {name: ("F32", tuple(tensor.shape), tensor.numpy().tobytes()) for name, tensor in made.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    rules: dict[str, Any] = {
        "q_proj.*": Split(0),
        "o_proj.*": Split(1),
        "gate_up_proj.*": Split(0, [32, 64]),
        "experts.{expert}.*": Expert(),
    }
    for rank in range(2):
        model = daemon.node.load(tmp_path, device, framework="torch", parallel=Parallel(rank, 2, rules))
        assert (model.rank, model.world_size) == (rank, 2)
        gate, up = made["gate_up_proj.weight"][:32], made["gate_up_proj.weight"][32:]
        wanted = {
            "norm.weight": made["norm.weight"],
            "q_proj.weight": made["q_proj.weight"].chunk(2, 0)[rank],
            "o_proj.weight": made["o_proj.weight"].chunk(2, 1)[rank],
            "gate_up_proj.weight": torch.cat([gate.chunk(2)[rank], up.chunk(2)[rank]]),
            **{f"experts.{expert}.w": made[f"experts.{expert}.w"] for expert in range(2 * rank, 2 * rank + 2)},
        }
        assert set(model) == set(wanted)
        for name, tensor in wanted.items():
            assert torch.equal(model[name], tensor), name
    assert {info.rank for info in daemon.node.models() if info.uri == model.uri} == {0, 1}


def test_what_a_loader_without_room_says(daemon: Daemon, cuda: FakeCuda, tmp_path: Path) -> None:
    size = (MEMORY_MIB + 1) << 20
    write_safetensors(tmp_path / "model.safetensors", {"t": ("U8", (size,), bytes(size))})
    with pytest.raises(longshore.Exhausted, match=r"cuda:0|GPU-"):
        daemon.node.load(tmp_path, "cuda:0")
    assert cuda.usage() == {}


def test_clients_go_on_when_the_loader_is_killed(
    installed_cuda: FakeCuda, cuda: FakeCuda, folder: Path, tmp_path: Path
) -> None:
    environ = installed_cuda.environ
    with ExitStack() as running:
        holder = Holder(tmp_path / "sockets", environ)
        running.callback(holder.close)
        daemon = Daemon(tmp_path / "sockets", *OPTIONS, "--require-holder", environ=environ)
        running.callback(daemon.close)
        wanted = by_package(folder / "model.safetensors")["a"][2]
        model = daemon.node.load(folder, "cuda:0", framework="torch")
        tensor = model["a"]
        daemon.process.kill()
        daemon.process.wait(30)
        assert torch_bytes(tensor) == wanted
        assert torch_bytes(model["a"]) == wanted
        again = longshore.attach(model.model_id, model.attach_socket, framework="torch")
        assert torch_bytes(again["a"]) == wanted, "the holder hands the memory out meanwhile"
        again.close()
        daemon.node.close()
        daemon.start()
        status = daemon.node.status()
        assert status.holder is not None
        assert (status.holder.process, status.holder.pid, status.holder.models_adopted) == (True, holder.process.pid, 1)
        assert torch_bytes(tensor) == wanted
        assert daemon.leases(model.uri) == 1
        second = daemon.node.load(folder, "cuda:0", framework="torch")
        assert second.report.reattached
        assert second.model_id == model.model_id
        assert torch_bytes(second["a"]) == wanted
        second.close()
        model.close()
        del tensor
        gc.collect()
        daemon.wait_for_leases(model.uri, 0)
