from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from fake_loader import URI, FakeLoader, FakeModel
from gpu_support import FakeCuda

import longshore
from longshore import _cuda

#: Budgets of the daemons that tests start: how full the machine's disk is does not matter.
DISK_BUDGETS = {"LONGSHORE_CHECKPOINT_DISK": "8GiB", "LONGSHORE_WORKER_DISK": "4GiB"}


def pytest_configure(config: pytest.Config) -> None:
    for name, budget in DISK_BUDGETS.items():
        os.environ.setdefault(name, budget)
    config.addinivalue_line("markers", "e2e: needs the longshore binary (target/debug/longshore, or LONGSHORE_BIN)")
    config.addinivalue_line("markers", "gpu: needs the fake CUDA driver (target/debug/fake-cuda-install)")


@pytest.fixture
def loader() -> Iterator[FakeLoader]:
    with FakeLoader() as fake:
        yield fake
        gc.collect()


@pytest.fixture
def node(loader: FakeLoader) -> Iterator[longshore.Node]:
    with longshore.connect(f"unix:{loader.socket}") as connected:
        yield connected


@pytest.fixture
def small(loader: FakeLoader) -> FakeModel:
    """A model of two tensors and a file, at URI."""
    model = FakeModel(
        tensors={"w": ("F32", (2, 2), bytes(range(16))), "b": ("I64", (3,), bytes(range(24)))},
        files={"config.json": b'{"a": 1}'},
    )
    loader.models[URI] = model
    return model


@pytest.fixture(scope="session")
def installed_cuda(tmp_path_factory: pytest.TempPathFactory) -> FakeCuda:
    """The fake driver in this process: loaded once, so that one serves all tests."""
    cuda = FakeCuda(tmp_path_factory.mktemp("cuda"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cuda.environ.items():
            patch.setenv(name, value)
        patch.setenv("FAKE_CUDA_ROLE", "client")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setattr(_cuda, "LIBRARY", cuda.library)
        patch.setattr(_cuda, "_driver", None)
        # It reads the environment with its first call.
        _cuda.driver("the tests")
    return cuda


@pytest.fixture
def cuda(installed_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The client finds the fake driver, and has nothing of it yet."""
    monkeypatch.setattr(_cuda, "LIBRARY", installed_cuda.library)
    monkeypatch.setattr(_cuda, "_driver", None)
    assert installed_cuda.usage() == {}, "an earlier test left something"
    return installed_cuda
