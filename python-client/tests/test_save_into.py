"""Checkpoints that are loaded into a state dict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoints import FakeCheckpoints
from save_support import equal, load, save, training_state

import longshore

pytest_plugins = ("save_fixtures",)


def test_into_a_state_of_the_same_form(fake: FakeCheckpoints) -> None:
    state = training_state()
    save(fake, state, wait="committed")
    torch.manual_seed(5)
    module = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.BatchNorm1d(50), torch.nn.Linear(50, 7))
    into: dict[str, Any] = {
        "model": module.state_dict(),
        "optim": {"state": {0: {"exp_avg": torch.zeros(50, 30), "step": torch.zeros(())}}, "param_groups": None},
        "epoch": 0,
        "rng": {"torch": torch.get_rng_state(), "python": None},
        "numpy": {"a": np.zeros(5)},
    }
    inner = into["optim"]
    load(fake, into=into).close()
    assert equal(module.state_dict(), state["model"]), "the module's own memory"
    assert inner is into["optim"]
    assert equal(inner["state"][0]["exp_avg"], state["optim"]["state"][0]["exp_avg"])
    assert inner["param_groups"] == state["optim"]["param_groups"]
    assert into["epoch"] == 3
    assert into["rng"]["python"] == (3, (1, 2), None)
    assert into["numpy"]["a"].tolist() == [0, 1, 2, 3, 4]


def test_into_converts_and_fills_strided_memory(fake: FakeCheckpoints) -> None:
    state: dict[str, Any] = {"w": torch.randn(6, 8), "n": np.arange(6, dtype=np.int64)}
    save(fake, state, wait="committed")
    into: dict[str, Any] = {"w": torch.zeros(8, 6, dtype=torch.bfloat16).T, "n": torch.zeros(6)}
    load(fake, into=into)
    assert torch.equal(into["w"], state["w"].to(torch.bfloat16))
    assert into["n"].tolist() == [0, 1, 2, 3, 4, 5]
    half = {"w": np.zeros((6, 8), dtype=np.float16)}
    load(fake, into=half)
    assert np.array_equal(half["w"], state["w"].numpy().astype(np.float16))


def test_into_names_what_does_not_fit_and_writes_nothing(fake: FakeCheckpoints) -> None:
    save(fake, {"w": torch.ones(6), "v": torch.ones(2)}, wait="committed")
    into = {"w": torch.zeros(6), "v": torch.zeros(3), "x": torch.zeros(1)}
    with pytest.raises(
        longshore.FailedPrecondition, match=r"\['v'\] is \[3\] here and \[2\] there.*\['x'\] is not in it as 'x'"
    ):
        load(fake, into=into)
    assert not into["w"].any()
    with pytest.raises(longshore.InvalidArgument, match="meta"):
        load(fake, into={"w": torch.zeros(6, device="meta")})


def test_into_loads_only_the_files_it_needs(fake: FakeCheckpoints) -> None:
    save(fake, {"model": {"w": torch.ones(6)}, "optim": {"m": torch.full((3,), 2.0)}}, wait="committed")
    into = {"optim": {"m": torch.zeros(3)}}
    load(fake, into=into)
    assert into["optim"]["m"].tolist() == [2, 2, 2]
    assert list(fake.loader.requests[-1].include) == ["optim/optim-00002-of-00002.safetensors", "state.json"]
