"""`longshore.save` against the fake loader."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoints import FakeCheckpoints, Store

import longshore
from longshore import _service, _slabs

RUN = "s3://bucket/run"


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


@pytest.fixture
def fake(store: Store) -> Iterator[FakeCheckpoints]:
    with FakeCheckpoints(store) as made:
        yield made
        gc.collect()
    for session in _slabs._sessions.values():
        session.close()
    _slabs._sessions.clear()
    _service._services.clear()


def save(fake: FakeCheckpoints, state: Any, step: int = 1, **options: Any) -> longshore.SaveHandle:
    return longshore.save(state, RUN, step=step, address=fake.address, **{"timeout": 30.0, **options})


def test_a_flat_dict(fake: FakeCheckpoints, store: Store) -> None:
    state = {"w": torch.randn(100, 300), "b": torch.arange(7, dtype=torch.int16)}
    handle = save(fake, state, wait="committed")
    assert handle.status.state == "committed"
    assert handle.progress() == 1.0
    assert handle.url == f"{RUN}/step-1"
    assert set(store.files(RUN, 1)) == {"model-00001-of-00001.safetensors", "state.json"}
    model = longshore.load(f"{RUN}/step-1", address=fake.address)
    assert torch.equal(model["w"], state["w"])
    assert torch.equal(model["b"], state["b"])


_ = (OrderedDict, np)
