"""The fake loader as fixtures, for modules that name this one in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_checkpoints import FakeCheckpoints
from fake_store import Store
from save_support import forget


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


@pytest.fixture
def fake(store: Store) -> Iterator[FakeCheckpoints]:
    made = FakeCheckpoints(store)
    running = [made]
    made.restarted = running.append
    yield made
    running[-1].close()
    forget()
