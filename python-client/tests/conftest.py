from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from fake_loader import URI, FakeLoader, FakeModel

import longshore


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: needs the longshore binary (target/debug/longshore, or LONGSHORE_BIN)")


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
