"""Models in GPU memory, over the fake driver: what a tensor is, who keeps it, and what a write does."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import torch.utils.dlpack
from e2e_support import every_dtype
from fake_loader import URI, FakeLoader, FakeModel
from gpu_support import GRANULE, FakeCuda, Gpu
from test_dtypes import torch_bytes

import longshore
from longshore import _cuda, _dlpack, _gpu

pytestmark = pytest.mark.gpu

#: What a process has of the driver for one mapped region of one segment.
ONE_REGION = {"contexts": 1, "mappings": 1, "mapped_bytes": GRANULE, "reservations": 1}


@pytest.fixture
def gpu(cuda: FakeCuda) -> Gpu:
    return cuda.gpu(0)


@pytest.fixture
def on_gpu(small: FakeModel, gpu: Gpu) -> FakeModel:
    """The small model, on the first GPU."""
    small.gpu = gpu
    return small


def test_every_dtype_aliases_the_memory(node: longshore.Node, loader: FakeLoader, gpu: Gpu) -> None:
    wanted = every_dtype()
    loader.models[URI] = FakeModel(tensors=wanted, gpu=gpu)
    model = node.load(URI, "cuda:0", framework="torch")
    assert set(model) == set(wanted)
    first = model["u8.scalar"].data_ptr()
    starts = {tensor.name: tensor.offset_bytes for tensor in loader._loaded[model.model_id].model.tensors}
    for name, (dtype, _, content) in wanted.items():
        tensor = model[name]
        assert torch_bytes(tensor) == content, name
        assert tensor.data_ptr() == model[name].data_ptr(), "two tensors of one name share their memory"
        if content:
            assert tensor.data_ptr() - first == starts[name] - starts["u8.scalar"], name
            assert tensor.untyped_storage().nbytes() == len(content), "each has a storage of its own"
        assert model.info(name).raw or tensor.dtype == getattr(torch, str(_torch_name(dtype)))


def _torch_name(dtype: str) -> str | None:
    from longshore._dtypes import DTYPES

    return DTYPES[dtype].torch


def test_attributes_and_files(node: longshore.Node, on_gpu: FakeModel, gpu: Gpu) -> None:
    with node.load(URI, "cuda:0") as model:
        assert (model.device, model.device_uuid, model.framework) == ("cuda:0", gpu.uuid, "torch")
        assert bytes(model.files["config.json"]) == b'{"a": 1}'
        assert model.files["config.json"].readonly
        assert model.nbytes == 256 + 24 + 8
    (info,) = node.models()
    assert (info.device, info.device_uuid) == ("cuda:0", gpu.uuid)


def test_a_region_of_many_segments_is_contiguous_and_may_end_inside_the_last(
    node: longshore.Node, loader: FakeLoader, cuda: FakeCuda, gpu: Gpu
) -> None:
    content = os.urandom(70 * GRANULE + 100)
    loader.models[URI] = FakeModel(tensors={"t": ("U8", (len(content),), content)}, gpu=gpu, segment_bytes=GRANULE)
    node.load(URI, "cuda:0").close()
    loader.wait_for_leases(0)
    before = len(os.listdir("/proc/self/fd"))
    with node.load(URI, "cuda:0") as model:
        assert torch_bytes(model["t"]) == content
        mapped = 71 * GRANULE
        assert cuda.usage() == {"contexts": 1, "mappings": 71, "mapped_bytes": mapped, "reservations": 1}
        loader.wait_until_handed_over(2)
        # The lease has two ends here, and the fake driver's mappings one descriptor each; those that came are closed.
        assert len(os.listdir("/proc/self/fd")) <= before + 2 + 71
    assert cuda.usage() == {}
    loader.wait_for_leases(0)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("device", ["cuda:1", "cuda", "uuid", "auto", torch.device("cuda:1")])
def test_the_loader_is_asked_by_uuid(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, cuda: FakeCuda, device: str | torch.device
) -> None:
    small.gpu = cuda.gpu(0 if device == "cuda" else 1)
    asked = small.gpu.uuid if device == "uuid" else device
    assert node.load(URI, asked)["w"].shape == (2, 2)
    assert loader.requests[0].device == (device if device == "auto" else small.gpu.uuid)


def test_cuda_is_the_current_device_of_the_thread(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, cuda: FakeCuda
) -> None:
    small.gpu = cuda.gpu(1)
    second = _cuda.driver("the tests").gpus[1]
    context = ctypes.c_void_p()
    second.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), second.device)
    try:
        with second.current(context.value or 0):
            model = node.load(URI, "cuda")
            assert (model.device, loader.requests[0].device) == ("cuda:1", small.gpu.uuid)
            assert current_context() == context.value
            model.close()
            assert current_context() == context.value
        assert current_context() is None
    finally:
        second.call("cuDevicePrimaryCtxRelease_v2", second.device)


def current_context() -> int | None:
    context = ctypes.c_void_p()
    _cuda.driver("the tests").call("the tests", "cuCtxGetCurrent", ctypes.byref(context))
    return context.value


def test_the_memory_and_the_lease_end_with_the_last_tensor(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda
) -> None:
    model = node.load(URI, "cuda:0")
    assert cuda.usage() == ONE_REGION
    held = torch.nn.Parameter(model["w"][1:].view(-1)[:1], requires_grad=False)
    model.close()
    assert model.leased
    assert cuda.usage() == ONE_REGION
    assert loader.leases == 1
    assert torch_bytes(held.data) == bytes([8, 9, 10, 11])
    del held
    assert cuda.usage() == {}
    loader.wait_for_leases(0)
    assert not model.leased
    assert not _dlpack._live


@pytest.mark.parametrize("how", ["never touched", "cycle", "another thread"])
def test_whoever_lets_go_last(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda, how: str
) -> None:
    model = node.load(URI, "cuda:0")
    if how == "cycle":
        loop: list[Any] = [model["w"], model]
        loop.append(loop)
        del loop
    elif how == "another thread":
        box = [model["w"]]
        model.close()
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
    del model
    assert cuda.usage() == {}
    loader.wait_for_leases(0)


def test_loads_by_many_threads_leave_nothing(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda
) -> None:
    node.load(URI, "cuda:0").close()
    wrong: list[object] = []

    def work() -> None:
        for _ in range(10):
            tensor = node.load(URI, "cuda:0")["w"]
            if torch_bytes(tensor) != bytes(range(16)):
                wrong.append(tensor)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cuda.usage() == {}
    loader.wait_for_leases(0)


def test_two_models_on_two_gpus(node: longshore.Node, loader: FakeLoader, cuda: FakeCuda) -> None:
    for device in (0, 1):
        content = bytes([device] * 8)
        loader.models[f"{URI}{device}"] = FakeModel(tensors={"t": ("U8", (8,), content)}, gpu=cuda.gpu(device))
    models = [node.load(f"{URI}{device}", f"cuda:{device}") for device in (0, 1)]
    assert [torch_bytes(model["t"]) for model in models] == [bytes(8), bytes([1] * 8)]
    assert cuda.usage()["contexts"] == 2
    models.clear()
    assert cuda.usage() == {}


def test_empty_tensors_and_an_empty_model(node: longshore.Node, loader: FakeLoader, cuda: FakeCuda, gpu: Gpu) -> None:
    loader.models[URI] = FakeModel(tensors={"none": ("F16", (0, 3), b""), "one": ("U8", (1,), b"x")}, gpu=gpu)
    assert node.load(URI, "cuda:0")["none"].shape == (0, 3)
    loader.models[URI] = FakeModel(files={"a": b"abc"}, gpu=gpu)
    assert bytes(node.load(URI, "cuda:0").files["a"]) == b"abc"
    assert cuda.usage() == {}


def test_a_tensor_off_its_alignment_is_copied(node: longshore.Node, loader: FakeLoader, gpu: Gpu) -> None:
    loader.models[URI] = FakeModel(tensors={"t": ("F32", (2,), bytes(range(8)))}, shift=3, gpu=gpu)
    assert torch_bytes(node.load(URI, "cuda:0")["t"]) == bytes(range(8))


# ---- writing


def test_a_writable_model_is_a_private_copy_that_needs_no_lease(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda, gpu: Gpu
) -> None:
    shared = node.load(URI, "cuda:0")
    model = node.load(URI, "cuda:0", writable=True)
    loader.wait_for_leases(1)
    assert not model.leased
    assert cuda.usage()["mappings"] == 2
    assert torch_bytes(model["w"]) == bytes(range(16))
    model["w"].zero_()
    assert not bool(model["w"].any())
    assert torch_bytes(shared["w"]) == bytes(range(16))
    assert gpu.stored[0].content()[:16] == bytes(range(16))
    assert bytes(model.files["config.json"]) == b'{"a": 1}'
    tensor = model["b"]
    model.close()
    shared.close()
    loader.wait_for_leases(0)
    assert cuda.usage()["mappings"] == 1
    tensor.add_(1)
    del tensor
    assert cuda.usage() == {}


def test_attach_takes_writable_too(node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel) -> None:
    first = node.load(URI, "cuda:0")
    model = longshore.attach(first.model_id, loader.attach_socket, writable=True)
    model["b"].zero_()
    assert torch_bytes(first["b"]) == bytes(range(24))
    with pytest.raises(longshore.Unsupported, match="numpy arrays are in host memory"):
        longshore.attach(first.model_id, loader.attach_socket, framework="numpy")


def test_writable_in_host_memory_changes_nothing(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    model = node.load(URI, "host", writable=True, framework="torch")
    model["w"].zero_()
    assert torch_bytes(node.load(URI, "host", framework="torch")["w"]) == bytes(range(16))
    assert model.leased
    loader.wait_for_leases(1)


WRITE = """
import sys
import longshore

model = longshore.connect(sys.argv[1]).load(sys.argv[2], "cuda:0")
tensor = model["w"]
print(bytes(tensor.view(-1).numpy()).hex(), flush=True)
tensor.zero_()
print("written", flush=True)
"""


def test_a_write_through_the_shared_mapping_ends_the_writer_alone(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda, gpu: Gpu
) -> None:
    model = node.load(URI, "cuda:0")
    run = script(cuda, WRITE, loader.socket, URI)
    assert run.returncode == -11, (run.stdout, run.stderr)
    assert run.stdout == bytes(range(16)).hex() + "\n"
    loader.wait_for_leases(1)
    assert torch_bytes(model["w"]) == bytes(range(16))
    assert gpu.stored[0].content()[:16] == bytes(range(16))


def test_the_driver_refuses_to_write_there_too(node: longshore.Node, on_gpu: FakeModel, cuda: FakeCuda) -> None:
    model = node.load(URI, "cuda:0")
    run = script(cuda, COPY_INTO, str(model.attach_socket), model.model_id)
    assert run.stdout.startswith("CUDA_ERROR_"), (run.stdout, run.stderr)
    assert torch_bytes(model["w"]) == bytes(range(16))


COPY_INTO = """
import ctypes, sys
import longshore
from longshore import _cuda

model = longshore.attach(sys.argv[2], sys.argv[1])
region = model._regions[0]
gpu = region.gpu
context = ctypes.c_void_p()
gpu.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu.device)
with gpu.current(context.value):
    source = ctypes.c_uint64()
    gpu.call("cuMemAlloc_v2", ctypes.byref(source), 4096)
    stream = ctypes.c_void_p()
    gpu.call("cuStreamCreate", ctypes.byref(stream), 1)
    number = gpu.attempt("cuMemcpyDtoDAsync_v2", region.address, source, 4096, stream)
    number = number or gpu.attempt("cuStreamSynchronize", stream)
print(gpu.driver.describe("x", number).split(": ", 1)[1])
"""


def script(cuda: FakeCuda, text: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a program as another client."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **cuda.environ, "FAKE_CUDA_ROLE": "client", **environ},
        timeout=120,
    )


# ---- processes


FORK = """
import gc, os, sys
import longshore
from longshore import _cuda

model = longshore.connect(sys.argv[1]).load(sys.argv[2], "cuda:0")
tensor = model["w"]
calls = []
attempt = _cuda.Driver.attempt
child = os.fork()
if child == 0:
    _cuda.Driver.attempt = lambda self, name, *rest: calls.append(name) or attempt(self, name, *rest)
    refused = 0
    for action in (
        lambda: model["w"],
        lambda: longshore.attach(model.model_id, model.attach_socket),
        lambda: longshore.attach(model.model_id, model.attach_socket, writable=True),
    ):
        try:
            action()
        except longshore.FailedPrecondition as error:
            refused += "spawn" in str(error)
    files = bytes(model.files["config.json"]) == b'{"a": 1}'
    del model, tensor, action
    gc.collect()
    os._exit(0 if refused == 3 and files and not calls else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, bytes(tensor.view(-1).numpy()).hex(), model.leased, flush=True)
sys.stdin.read()
"""


def test_a_forked_child_leaves_cuda_alone(
    loader: FakeLoader, node: longshore.Node, on_gpu: FakeModel, cuda: FakeCuda
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORK, loader.socket, URI],
        env={**os.environ, **cuda.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"0 {bytes(range(16)).hex()} True\n", process.stderr.read() if process.stderr else ""
        loader.wait_for_leases(1)
        assert cuda.usage(process.pid) == ONE_REGION
        process.kill()
    loader.wait_for_leases(0)


EXIT = """
import atexit, builtins, ctypes, gc, sys, threading
import longshore

def late():
    # After the client's own handler, which was registered later.
    builtins.later = model["b"]

atexit.register(late)
gc.disable()
model = longshore.connect(sys.argv[1]).load(sys.argv[2], "cuda:0")
tensor = model["w"]
builtins.kept = tensor[:1]
loop = [tensor]
loop.append(loop)
address = tensor.data_ptr()

def read():
    while ctypes.string_at(address, 16) == bytes(range(16)):
        pass

threading.Thread(target=read, daemon=True).start()
print("end", flush=True)
"""


def test_tensors_that_live_until_the_interpreter_ends(
    loader: FakeLoader, node: longshore.Node, on_gpu: FakeModel, cuda: FakeCuda
) -> None:
    run = script(cuda, EXIT, loader.socket, URI)
    assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")
    loader.wait_for_leases(0)


# ---- capsules


def test_a_capsule_that_is_not_taken_leaves_nothing(node: longshore.Node, on_gpu: FakeModel, cuda: FakeCuda) -> None:
    model = node.load(URI, "cuda:0")
    region = model._regions[0] if model._regions else None
    assert isinstance(region, _gpu.GpuRegion)

    def refuse(_: object) -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        _dlpack.export(refuse, region.address, 16, (1, 0), region)
    assert not _dlpack._live

    def take_then_fail(capsule: object) -> None:
        torch.utils.dlpack.from_dlpack(capsule)
        raise KeyError("no")

    with pytest.raises(KeyError):
        _dlpack.export(take_then_fail, region.address, 16, (1, 0), region)
    gc.collect()
    assert not _dlpack._live
    model.close()
    del region
    assert cuda.usage() == {}
