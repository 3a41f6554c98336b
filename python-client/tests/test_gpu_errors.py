"""What goes wrong with a GPU: each reason is told, and nothing stays behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_loader import URI, FakeLoader, FakeModel
from gpu_support import GRANULE, FakeCuda, Gpu
from test_attach import open_files
from test_dtypes import torch_bytes
from test_gpu import ONE_REGION, script

import longshore
from longshore import _cuda, _gpu
from longshore._proto import loader_pb2

pytestmark = pytest.mark.gpu

Response = loader_pb2.AttachResponse


@pytest.fixture
def gpu(cuda: FakeCuda) -> Gpu:
    return cuda.gpu(0)


@pytest.fixture
def on_gpu(small: FakeModel, gpu: Gpu) -> FakeModel:
    """The small model, on the first GPU."""
    small.gpu = gpu
    return small


# ---- what is not there


def test_without_a_driver(node: longshore.Node, loader: FakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "LIBRARY", "libno-such-driver.so.1")
    monkeypatch.setattr(_cuda, "_driver", None)
    with pytest.raises(longshore.Unsupported, match=r"cuda:0: there is no NVIDIA driver .* device='host'"):
        node.load(URI, "cuda:0")
    assert not loader.requests


def test_a_driver_that_is_too_old(node: longshore.Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "LIBRARY", "libc.so.6")
    monkeypatch.setattr(_cuda, "_driver", None)
    with pytest.raises(longshore.Unsupported, match=r"too old: libc\.so\.6 has no cuInit; update the driver"):
        node.load(URI, "cuda:0")


@pytest.mark.usefixtures("cuda")
def test_devices_that_are_not_there(node: longshore.Node, loader: FakeLoader) -> None:
    with pytest.raises(longshore.Unsupported, match=r"cuda:7 is not there.*cuda:0 \(GPU-.*CUDA_VISIBLE_DEVICES is not"):
        node.load(URI, "cuda:7")
    absent = "GPU-00000000-0000-4000-8000-0123456789ab"
    with pytest.raises(longshore.Unsupported, match=f"{absent} is not visible in this process"):
        node.load(URI, absent)
    with pytest.raises(longshore.InvalidArgument, match="'GPU-zero' is no UUID"):
        node.load(URI, "GPU-zero")
    assert not loader.requests


@pytest.mark.usefixtures("cuda")
def test_numpy_is_host_memory(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    with pytest.raises(longshore.Unsupported, match="asked for is cuda:0, and numpy arrays are in host memory"):
        node.load(URI, "cuda:0", framework="numpy")
    assert not loader.requests
    node.load(URI, framework="numpy")
    assert loader.requests[0].device == "host", "auto is a device that the framework can use"


def test_a_loader_that_chose_a_gpu_for_numpy(node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel) -> None:
    with pytest.raises(longshore.Unsupported, match=r"the model is on GPU-.*numpy arrays"):
        node.load(URI, framework="numpy")
    loader.wait_for_leases(0)


def test_torch_without_cuda(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a real card, where the driver says that the memory is the device's.
    monkeypatch.setattr(_gpu, "_dlpack_device", lambda *_: (2, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(longshore.Unsupported, match=r"has no CUDA in this process.*device='host'"):
        node.load(URI, "cuda:0")
    loader.wait_for_leases(0)
    assert cuda.usage() == {}


VISIBLE = """
import sys
import longshore

node = longshore.connect(sys.argv[1])
for device in sys.argv[3:]:
    try:
        model = node.load(sys.argv[2], device)
        print(model.device, bytes(model["w"].view(-1).numpy()).hex())
    except longshore.Error as error:
        print(type(error).__name__, error)
"""


def test_processes_count_their_gpus_differently(loader: FakeLoader, small: FakeModel, cuda: FakeCuda) -> None:
    small.gpu = cuda.gpu(1)
    run = script(cuda, VISIBLE, loader.socket, URI, "cuda:0", "auto", "cuda:1", CUDA_VISIBLE_DEVICES="1")
    lines = run.stdout.splitlines()
    assert lines[:2] == [f"cuda:0 {bytes(range(16)).hex()}"] * 2, (run.stdout, run.stderr)
    assert lines[2].startswith("Unsupported cuda:1 is not there: this process sees cuda:0 (GPU-")
    assert {request.device for request in loader.requests} == {small.gpu.uuid, "auto"}


def test_a_gpu_that_this_process_does_not_see(loader: FakeLoader, small: FakeModel, cuda: FakeCuda) -> None:
    small.gpu = cuda.gpu(1)
    run = script(cuda, VISIBLE, loader.socket, URI, "auto", CUDA_VISIBLE_DEVICES="0")
    wanted = f"Unsupported {small.gpu.uuid} is not visible in this process, which sees cuda:0 (GPU-"
    assert run.stdout.startswith(wanted), (run.stdout, run.stderr)
    assert "CUDA_VISIBLE_DEVICES is '0'" in run.stdout
    assert "device='host'" in run.stdout
    none = script(cuda, VISIBLE, loader.socket, URI, "cuda:0", CUDA_VISIBLE_DEVICES="")
    assert none.stdout.startswith("Unsupported cuda:0: cuInit: CUDA_ERROR_NO_DEVICE (100)"), none.stdout
    loader.wait_for_leases(0)


# ---- descriptions that cannot be true


def _region(**fields: Any) -> Callable[[Response], None]:
    def change(response: Response) -> None:
        for name, value in fields.items():
            if name == "segment_bytes":
                response.model.regions[0].segment_bytes[:] = value
            else:
                setattr(response.model.regions[0], name, value)

    return change


def _file_on_gpu(response: Response) -> None:
    response.model.files[0].region = 0


BAD: dict[str, tuple[Callable[[Response], None], str]] = {
    "no kind of device": (_region(device="tpu:0"), "unknown kind of device"),
    "region longer than its segments": (_region(size_bytes=GRANULE + 1), "have 2097152 bytes"),
    "region of no bytes": (_region(size_bytes=0), "region of 0 bytes"),
    "region beyond the address space": (
        _region(size_bytes=1 << 62, segment_bytes=[1 << 62]),
        "have 4611686018427387904",
    ),
    "segments that are not whole": (_region(segment_bytes=[GRANULE - 4096]), "not a multiple of 2097152"),
    "a segment of no bytes": (_region(segment_bytes=[0]), "have 0 bytes"),
    "a file on a GPU": (_file_on_gpu, "'config.json' on a GPU"),
    "a tensor outside": (lambda r: setattr(r.model.tensors[0], "offset_bytes", GRANULE), "outside"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_description_that_cannot_be_true(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda, case: str
) -> None:
    node.load(URI, "cuda:0").close()
    loader.wait_for_leases(0)
    on_gpu.edit, words = BAD[case]
    before = open_files()
    with pytest.raises(longshore.Corrupt, match=words):
        node.load(URI, "cuda:0")
    loader.wait_for_leases(0)
    assert cuda.usage() == {}
    assert open_files() == before


def test_a_segment_that_is_not_needed(node: longshore.Node, loader: FakeLoader, cuda: FakeCuda, gpu: Gpu) -> None:
    content = bytes(2 * GRANULE)
    loader.models[URI] = FakeModel(
        tensors={"t": ("U8", (len(content),), content)},
        gpu=gpu,
        segment_bytes=GRANULE,
        edit=_region(size_bytes=GRANULE),
    )
    with pytest.raises(longshore.Corrupt, match="have 4194304 bytes"):
        node.load(URI, "cuda:0")
    assert cuda.usage() == {}


def test_memory_that_is_no_gpu_s_or_shorter_than_announced(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, on_gpu: FakeModel, cuda: FakeCuda, gpu: Gpu
) -> None:
    on_gpu.edit = _region(size_bytes=2 * GRANULE, segment_bytes=[2 * GRANULE])
    with pytest.raises(longshore.Internal, match=r"cuda:0 \(GPU-.*\): cuMemMap: CUDA_ERROR_INVALID_VALUE \(1\)"):
        node.load(URI, "cuda:0")
    small.gpu = None
    small.tensors["t"] = ("U8", (GRANULE - 512,), bytes(GRANULE - 512))
    small.files.clear()
    small.edit = _region(device=gpu.uuid)
    loader.models[f"{URI}2"] = small
    loader._loaded.clear()
    with pytest.raises(longshore.Internal, match="cuMemImportFromShareableHandle: CUDA_ERROR_INVALID_VALUE"):
        node.load(f"{URI}2", "cuda:0")
    assert cuda.usage() == {}
    loader.wait_for_leases(0)


# ---- calls that fail

#: What gives back. When one of these fails, what it was for stays until the process ends, and all else goes on.
CLEANUP = {
    "cuCtxPopCurrent_v2",
    "cuCtxSynchronize",
    "cuDevicePrimaryCtxRelease_v2",
    "cuMemAddressFree",
    "cuMemFree_v2",
    "cuMemUnmap",
}


def load_and_close(node: longshore.Node, writable: bool) -> bytes:
    """One load as a process does it first, the driver's start included."""
    _cuda._driver = None
    with node.load(URI, "cuda:0", writable=writable) as model:
        return torch_bytes(model["w"]) + bytes(model.files["config.json"])


def calls_of(cuda: FakeCuda, action: Callable[[], object]) -> dict[str, int]:
    before = cuda.calls()
    action()
    gc.collect()
    return {name: count - before.get(name, 0) for name, count in cuda.calls().items() if count > before.get(name, 0)}


@pytest.mark.parametrize("writable", [False, True])
def test_each_call_fails_in_turn(
    node: longshore.Node, loader: FakeLoader, cuda: FakeCuda, gpu: Gpu, writable: bool
) -> None:
    content = os.urandom(2 * GRANULE)
    loader.models[URI] = FakeModel(
        tensors={"w": ("U8", (len(content),), content)}, files={"config.json": b"{}"}, gpu=gpu, segment_bytes=GRANULE
    )
    wanted = load_and_close(node, writable)
    made = calls_of(cuda, lambda: load_and_close(node, writable))
    made = {name: count for name, count in made.items() if not name.startswith("cuGetError")}
    assert made["cuMemMap"] == 2
    assert ("cuMemcpyDtoDAsync_v2" in made) == writable
    before = open_files()
    failed = set()
    for name in set(made) - CLEANUP:
        for nth in range(1, made[name] + 1):
            cuda.arm(f"client/{name}@{cuda.calls().get(name, 0) + nth}=999")
            error = _error_of(lambda: load_and_close(node, writable), wanted)
            if error is not None:
                assert f"{name}: CUDA_ERROR_UNKNOWN (999)" in str(error)
                failed.add(name)
            loader.wait_for_leases(0)
            assert cuda.usage() == {}, f"{name}, call {nth}"
            assert open_files() == before, f"{name}, call {nth}"
    assert failed == set(made) - CLEANUP
    assert len(failed) > 10
    assert load_and_close(node, writable) == wanted


def _error_of(action: Callable[[], bytes], wanted: bytes) -> longshore.Unavailable | None:
    """The error of a load; without one it must be right."""
    try:
        assert action() == wanted
    except longshore.Unavailable as error:
        return error
    return None


CLEANUP_FAILS = """
import logging, sys
import longshore

logging.basicConfig(stream=sys.stdout, format="%(message)s")
node = longshore.connect(sys.argv[1])
for index in range(16):
    model = node.load(sys.argv[2], "cuda:0", writable=bool(index % 2))
    assert bytes(model["w"].view(-1).numpy()) == bytes(range(16)), index
    model.close()
    assert not model.leased, index
print("done")
"""


def test_giving_back_goes_on_when_one_of_its_calls_fails(
    loader: FakeLoader, node: longshore.Node, on_gpu: FakeModel, cuda: FakeCuda
) -> None:
    node.load(URI, "cuda:0").close()
    calls = cuda.calls()
    faults = {f"client/{name}@{calls.get(name, 0) + nth}=999" for nth, name in enumerate(sorted(CLEANUP), 1)}
    cuda.arm(*faults)
    run = script(cuda, CLEANUP_FAILS, loader.socket, URI)
    *told, last = run.stdout.splitlines()
    assert (run.returncode, last, run.stderr) == (0, "done", "")
    assert any("not given back" in line and "cuMemUnmap: CUDA_ERROR_UNKNOWN (999)" in line for line in told), told
    assert faults <= set(cuda.state()["faults_fired"])
    loader.wait_for_leases(0)


CODES: dict[int, tuple[type[longshore.Error], str]] = {
    2: (longshore.Exhausted, r"CUDA_ERROR_OUT_OF_MEMORY \(2\), out of memory"),
    100: (longshore.Unsupported, r"CUDA_ERROR_NO_DEVICE \(100\)"),
    801: (longshore.Unsupported, r"CUDA_ERROR_NOT_SUPPORTED \(801\)"),
    214: (longshore.Unavailable, r"CUDA_ERROR_ECC_UNCORRECTABLE \(214\)"),
    700: (longshore.Unavailable, r"CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"),
    1: (longshore.Internal, r"CUDA_ERROR_INVALID_VALUE \(1\)"),
    54321: (longshore.Internal, r"an error that this driver has no name for \(54321\)"),
}


@pytest.mark.parametrize("code", CODES)
def test_codes_become_errors(node: longshore.Node, on_gpu: FakeModel, cuda: FakeCuda, code: int) -> None:
    cls, words = CODES[code]
    cuda.arm(f"client/cuMemMap@{cuda.calls().get('cuMemMap', 0) + 2}={code}")
    # The first is the fake loader's, which fills its memory.
    with pytest.raises(cls, match=rf"^cuda:0 \(GPU-[-0-9a-f]+\): cuMemMap: {words}"):
        node.load(URI, "cuda:0")
    assert cuda.usage() == {}
    assert torch_bytes(node.load(URI, "cuda:0")["w"]) == bytes(range(16))


def test_no_room_for_a_private_copy(node: longshore.Node, loader: FakeLoader, cuda: FakeCuda, gpu: Gpu) -> None:
    content = bytes(140 << 20)
    loader.models[URI] = FakeModel(tensors={"w": ("U8", (len(content),), content)}, gpu=gpu)
    with pytest.raises(
        longshore.Exhausted, match=r"no room for a private copy of 146800640 bytes.*OUT_OF_MEMORY \(2\)"
    ):
        node.load(URI, "cuda:0", writable=True)
    assert cuda.usage() == {}
    loader.wait_for_leases(0)
    assert node.load(URI, "cuda:0")["w"].numel() == len(content)


def test_after_a_fork_without_us_the_driver_says_so(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    cuda.arm(f"client/cuInit@{cuda.calls().get('cuInit', 0) + 1}=3")
    with pytest.raises(longshore.FailedPrecondition, match=r"cuInit: CUDA_ERROR_NOT_INITIALIZED \(3\).*spawn"):
        _cuda.driver("cuda:0")


def test_memory_is_not_unmapped_while_a_graph_is_captured(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda
) -> None:
    model = node.load(URI, "cuda:0")
    cuda.arm(f"client/cuCtxSynchronize@{cuda.calls().get('cuCtxSynchronize', 0) + 1}=900")
    model.close()
    assert cuda.usage() == ONE_REGION
    assert loader.leases == 1
    other = node.load(URI, "cuda:0")
    assert cuda.usage() == ONE_REGION, "the next one gives back what had to wait"
    loader.wait_for_leases(1)
    other.close()
    assert cuda.usage() == {}


def test_a_capture_of_this_thread_is_not_disturbed(
    node: longshore.Node, on_gpu: FakeModel, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gpu, "_dlpack_device", lambda *_: (2, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    model = node.load(URI, "cuda:0")
    assert calls_of(cuda, model.close) == {}
    assert cuda.usage() == ONE_REGION
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    _gpu._release_waiting()
    assert cuda.usage() == {}


STICKY = """
import sys
import longshore

node = longshore.connect(sys.argv[1])
good = node.load(sys.argv[2], "cuda:0")["w"]
try:
    node.load(sys.argv[2], "cuda:0", writable=True)
except longshore.Unavailable as error:
    print(error)
try:
    node.load(sys.argv[2], "cuda:0")
except longshore.Unavailable as error:
    print(error)
del good
print(node.load(sys.argv[2], "host") is not None)
"""


def test_a_sticky_error_stays_in_its_process(
    node: longshore.Node, loader: FakeLoader, on_gpu: FakeModel, cuda: FakeCuda
) -> None:
    model = node.load(URI, "cuda:0")
    nth = cuda.calls().get("cuMemcpyDtoDAsync_v2", 0) + 1
    cuda.arm(f"client/cuMemcpyDtoDAsync_v2~{nth}=700")
    on_gpu.edit = lambda response: None
    run = script(cuda, STICKY, loader.socket, URI)
    first, second, *_ = run.stdout.splitlines()
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in first, (run.stdout, run.stderr)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in second
    loader.wait_for_leases(1)
    assert torch_bytes(model["w"]) == bytes(range(16))
