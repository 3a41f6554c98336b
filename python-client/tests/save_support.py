"""What the tests of saving share: states to save, and how they are compared."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fake_checkpoints import FakeCheckpoints
from test_tree import same

import longshore
from longshore import _failures, _service, _sessions

RUN = "s3://bucket/run"


def forget() -> None:
    """This process knows of no loader any more, and of no save."""
    gc.collect()
    _sessions.close_all()
    _service._services.clear()
    _failures.forget_all()


def save(fake: FakeCheckpoints, state: Any, step: int = 1, **options: Any) -> longshore.SaveHandle:
    return longshore.save(state, RUN, step=step, address=fake.address, **{"timeout": 60.0, **options})


def load(fake: FakeCheckpoints, step: Any = 1, **options: Any) -> longshore.Model[Any]:
    return longshore.load(RUN, address=fake.address, step=step, **options)


def training_state() -> dict[str, Any]:
    """A model, its optimizer, and what else a trainer keeps."""
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.BatchNorm1d(50), torch.nn.Linear(50, 7))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(8, 30)).sum().backward()
        optimizer.step()
    return {
        "model": module.state_dict(),
        "optim": optimizer.state_dict(),
        "epoch": 3,
        "rng": {"torch": torch.get_rng_state(), "python": (3, (1, 2), None)},
        "numpy": {"a": np.arange(5.0), "s": np.float32(2.5)},
    }


def equal(left: Any, right: Any) -> bool:
    """As `same`, with tensors equal in value."""
    if isinstance(left, torch.Tensor):
        right = torch.from_numpy(right.copy()) if isinstance(right, np.ndarray) else right
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, np.asarray(right))
    if isinstance(left, dict):
        return list(map(repr, left)) == list(map(repr, right)) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    return same(left, right)


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    found: list[Any] = [None] * len(functions)

    def run(index: int) -> None:
        try:
            found[index] = functions[index]()
        except BaseException as error:  # noqa: BLE001
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
