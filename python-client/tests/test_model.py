"""A model over the attach protocol: what it holds, and how long."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fake_loader import URI, FakeLoader, FakeModel

import longshore


def test_tensors_files_and_attributes(node: longshore.Node, small: FakeModel) -> None:
    with node.load(URI, framework="numpy") as model:
        assert list(model) == ["w", "b"]
        assert len(model) == 2
        assert "w" in model
        assert model["w"].tobytes() == bytes(range(16))
        assert model["b"].dtype == np.int64
        assert bytes(model.files["config.json"]) == b'{"a": 1}'
        assert model.files["config.json"].readonly
        assert (model.uri, model.revision, model.device, model.framework) == (URI, "r1", "host", "numpy")
        assert model.nbytes == 256 + 24 + 8
        assert model.warnings == ("odd but fine",)
        assert model.skipped == (longshore.SkippedFile("notes.txt", "not selected"),)
        assert model.info("w") == longshore.TensorInfo("w", "F32", (2, 2), 16, raw=False)
        assert model.report.bytes_by_tier == {"origin": 288}
        assert model.report.fallbacks == (longshore.Fallback("origin_direct", 2, "no worker"),)
        assert model.report.steps == (longshore.StepTime("fetch", 0.1, 0.4, 0.6),)
        assert "2 tensors" in repr(model)
        with pytest.raises(KeyError):
            model["absent"]


def test_a_second_load_is_a_reattach(node: longshore.Node, small: FakeModel) -> None:
    first, second = node.load(URI), node.load(URI)
    assert (first.report.reattached, second.report.reattached) == (False, True)
    assert first != second
    assert first == first


def test_torch_is_the_default_and_state_dict_loads_into_a_module(node: longshore.Node, loader: FakeLoader) -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    loader.models[URI] = FakeModel(
        tensors={
            "weight": ("F32", (3, 4), weight.numpy().tobytes()),
            "bias": ("F32", (3,), bias.numpy().tobytes()),
        }
    )
    module = torch.nn.Linear(4, 3)
    model = node.load(URI)
    module.load_state_dict(model.state_dict(), assign=True)
    del model
    gc.collect()
    assert torch.equal(module.weight, weight)
    assert torch.allclose(module(torch.ones(4)), weight.sum(1) + bias)
    assert loader.leases == 1
    del module
    gc.collect()
    loader.wait_for_leases(0)


def test_the_lease_ends_with_the_last_tensor(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    model = node.load(URI)
    part = model["w"][1:].view(-1)[:1]
    base = model["b"]
    assert model.leased
    model.close()
    model.close()
    assert model.closed
    assert model.leased
    del base
    gc.collect()
    assert loader.leases == 1
    assert part.numpy().tobytes() == bytes([8, 9, 10, 11])
    del part
    gc.collect()
    loader.wait_for_leases(0)
    assert not model.leased


@pytest.mark.parametrize("keep", ["array", "file", "iterator"])
def test_whatever_points_into_the_memory_keeps_it(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, keep: str
) -> None:
    def hold(model: longshore.Model[Any]) -> Any:
        if keep == "array":
            return model["w"][1]
        if keep == "file":
            return memoryview(model.files["config.json"])[1:]
        return iter(model["b"])

    held = hold(node.load(URI, framework="numpy"))
    gc.collect()
    assert loader.leases == 1
    if keep == "file":
        assert held == b'"a": 1}'
    del held
    gc.collect()
    loader.wait_for_leases(0)


def test_without_tensors_the_lease_ends_with_the_model(
    node: longshore.Node, loader: FakeLoader, small: FakeModel
) -> None:
    with node.load(URI) as model:
        assert loader.leases == 1
    loader.wait_for_leases(0)
    with pytest.raises(longshore.FailedPrecondition, match="closed"):
        model["w"]
    with pytest.raises(longshore.FailedPrecondition, match="closed"):
        _ = model.files
    assert "closed" in repr(model)
    abandoned = node.load(URI)
    loader.wait_for_leases(1)
    del abandoned
    gc.collect()
    loader.wait_for_leases(0)


def test_a_write_stays_in_the_process(node: longshore.Node, small: FakeModel) -> None:
    first, second = node.load(URI, framework="torch"), node.load(URI, framework="torch")
    first["w"].zero_()
    assert bool((first["w"] == 0).all()), "two tensors of one name share their memory"
    assert second["w"].numpy().tobytes() == bytes(range(16))
    array = node.load(URI, framework="numpy")["w"]
    assert array.tobytes() == bytes(range(16))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_each_tensor_has_a_storage_of_its_own(node: longshore.Node, small: FakeModel) -> None:
    model = node.load(URI, framework="torch")
    assert model["w"].untyped_storage().nbytes() == 16
    assert model["w"].storage_offset() == 0
    assert model["w"].data_ptr() == model["w"].data_ptr()
    saved = safetensors.torch.load(safetensors.torch.save(model.state_dict()))
    assert torch.equal(saved["w"], model["w"])


def test_an_empty_model(node: longshore.Node, loader: FakeLoader) -> None:
    loader.models[URI] = FakeModel(
        tensors={"none": ("F16", (0, 3), b""), "f4": ("F4", (2, 0), b"")}, files={"empty": b""}
    )
    with node.load(URI, framework="torch") as model:
        assert model["none"].shape == (0, 3)
        assert model["f4"].shape == (2, 0)
        assert bytes(model.files["empty"]) == b""
        assert loader.leases == 1
    with node.load(URI, framework="numpy") as arrays:
        assert arrays["none"].shape == (0, 3)
    loader.wait_for_leases(0)


def test_regions_of_many_segments_are_contiguous(node: longshore.Node, loader: FakeLoader) -> None:
    page = os.sysconf("SC_PAGESIZE")
    content = os.urandom(150 * page + 100)
    loader.models[URI] = FakeModel(tensors={"t": ("U8", (len(content),), content)}, segment_bytes=page)
    node.status()
    before = len(os.listdir("/proc/self/fd"))
    with node.load(URI, framework="numpy") as model:
        assert model["t"].tobytes() == content
        assert model["t"].ctypes.data % (2 << 20) == 0, "huge pages can be mapped as such"
        loader.wait_until_handed_over(1)
        assert len(os.listdir("/proc/self/fd")) <= before + 2, "descriptors are closed once they are mapped"


def mapped_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")


def test_all_of_the_address_space_is_given_back(node: longshore.Node, loader: FakeLoader) -> None:
    size = (5 << 20) + 12345
    loader.models[URI] = FakeModel(tensors={"t": ("U8", (size,), bytes(size))})
    node.load(URI, framework="numpy").close()
    before = mapped_bytes()
    for _ in range(50):
        node.load(URI, framework="numpy").close()
    loader.wait_for_leases(0)
    assert mapped_bytes() < before + 50 * (1 << 20), "50 mappings of 5 MB were not unmapped"


def test_threads_share_a_model(node: longshore.Node, small: FakeModel, loader: FakeLoader) -> None:
    model = node.load(URI)
    wrong: list[int] = []

    def work() -> None:
        for index in range(200):
            if model["w"].numpy().tobytes() != bytes(range(16)):
                wrong.append(index)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    model.close()
    loader.wait_for_leases(0)


FORK = """
import gc, os, sys
import longshore

node = longshore.connect(sys.argv[1])
model = node.load(sys.argv[2], framework="numpy")
array = model["w"]
child = os.fork()
if child == 0:
    wanted = bytes(range(16))
    ok = array.tobytes() == wanted
    for call in (node.status, lambda: longshore.connect(sys.argv[1])):
        try:
            call()
        except longshore.FailedPrecondition as error:
            ok = ok and "fork" in str(error)
        else:
            ok = False
    again = longshore.attach(model.model_id, model.attach_socket, framework="numpy")
    ok = ok and again["w"].tobytes() == wanted
    del model, array
    gc.collect()
    os._exit(0 if ok and again["w"].tobytes() == wanted else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert array.tobytes() == bytes(range(16))
assert model.leased
print(len(node.status().models), flush=True)
sys.stdin.read()
"""


def test_a_forked_child_uses_the_tensors_and_the_lease_outlives_it(loader: FakeLoader, small: FakeModel) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORK, loader.socket, URI],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "1\n", process.stderr.read() if process.stderr else ""
        loader.wait_for_leases(1)
        process.kill()
    loader.wait_for_leases(0)


def test_a_model_is_not_pickled(node: longshore.Node, small: FakeModel) -> None:
    with pytest.raises(longshore.Unsupported, match="load it in the other process"):
        pickle.dumps(node.load(URI))


def test_attach_by_the_variables_of_exec(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(longshore.InvalidArgument, match="longshore exec"):
        longshore.attach()
    monkeypatch.setenv("LONGSHORE_MODEL_ID", node.load(URI).model_id)
    monkeypatch.setenv("LONGSHORE_ATTACH_SOCKET", loader.attach_socket)
    model = longshore.attach(framework="numpy")
    assert model["w"].tobytes() == bytes(range(16))
    assert model.report.bytes == 288
