"""Several processes with torch.distributed, over gloo, against the fake loader."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from fake_checkpoints import FakeCheckpoints
from fake_store import Store
from rank import RUN, full

import longshore


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


@pytest.fixture(scope="module")
def fake(store: Store) -> Iterator[FakeCheckpoints]:
    with FakeCheckpoints(store) as made:
        yield made


def header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    found: dict[str, Any] = json.loads(content[8 : 8 + length])
    return found


def test_shards_are_saved_once_and_loaded_by_any_number_of_ranks(
    fake: FakeCheckpoints, store: Store, tmp_path: Path
) -> None:
    printed = ranks.run(tmp_path, "save", fake.address, 4)
    assert len(set(printed)) == 1, "one attempt"
    model = longshore.load(RUN, step=1, address=fake.address)
    assert model.checkpoint is not None
    tensors = model.checkpoint.tensors
    assert [len(tensors[name].pieces) for name in ("rows", "copies", "few", "none", "both", "half", "twice")] == [
        4, 1, 1, 1, 4, 2, 4
    ]  # fmt: skip
    assert "tied" in model.checkpoint.aliases
    assert torch.equal(model["rows"], full(10, 6))
    assert torch.equal(model["both"], full(6, 8))
    assert torch.equal(model["optim/state.bf16.exp_avg"], full(300, 70, kind=torch.bfloat16))
    assert model.info("rows").shape == (10, 6)
    assert set(store.files(RUN, 1)) >= {"state.json"}
    assert "state-00001.json" not in store.files(RUN, 1), "the ranks' trees are the same"
    found = model.state_dict()
    assert found["epoch"] == 5
    assert torch.equal(found["optim"]["state"]["twice"]["exp_avg"], full(9, 8))
    arrays = longshore.load(RUN, step=1, address=fake.address, framework="numpy")
    assert arrays["columns"].tolist() == full(4, 9).tolist()
    ranks.run(tmp_path, "load_all", fake.address, 4)
    ranks.run(tmp_path, "load", fake.address, 2)
    ranks.run(tmp_path, "load", fake.address, 3)


def test_tensors_are_put_together_for_hugging_face(fake: FakeCheckpoints, store: Store, tmp_path: Path) -> None:
    ranks.run(tmp_path, "save", fake.address, 2, "huggingface")
    model = longshore.load(RUN, step=1, address=fake.address)
    assert model.checkpoint is not None
    assert all(len(tensor.pieces) == 1 for tensor in model.checkpoint.tensors.values())
    names = {
        name
        for file, content in store.files(RUN, 1).items()
        if file.endswith(".safetensors") and "/" not in file
        for name in header(content)
    }
    assert {"rows", "columns", "bf16", "plain"} <= names
    assert torch.equal(model["rows"], full(10, 6))
    ranks.run(tmp_path, "load", fake.address, 3)


def test_an_error_on_one_rank_is_raised_on_all(fake: FakeCheckpoints, tmp_path: Path) -> None:
    assert ranks.run(tmp_path, "fail_on_one", fake.address, 3) == ["refused\nrefused\n"] * 3


def test_some_of_the_ranks(fake: FakeCheckpoints, store: Store, tmp_path: Path) -> None:
    assert ranks.run(tmp_path, "subgroup", fake.address, 3) == ["not in it\n", "", ""]
    model = longshore.load(RUN, step=2, address=fake.address)
    assert model.state_dict()["mine"]["2"].tolist() == [2, 2, 2]
