"""Nested state dicts: taken apart and put together again."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

import longshore
from longshore import _inputs, _tree


def round_trip(state: Any, *, allow_pickle: bool = False) -> Any:
    flat = _tree.flatten(state, _inputs.is_tensor, allow_pickle=allow_pickle)
    known = {leaf.qualified: leaf.value for leaf in flat.leaves}
    assert len(known) == len(flat.leaves), "names are unique"
    document = _tree.parse(flat.document(), "here")
    assert document is not None
    assert document.aliases == {}
    tree = document.tree
    assert _tree.references(tree) == {leaf.path: leaf.qualified for leaf in flat.leaves}
    return _tree.unflatten(tree, known.__getitem__, allow_pickle=allow_pickle)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down; tensors are the same object."""
    if _inputs.is_tensor(left):
        return left is right
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        keys = [(type(key), key) for key in left] == [(type(key), key) for key in right]
        return keys and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


def names(state: Any) -> dict[str, Any]:
    flat = _tree.flatten(state, _inputs.is_tensor)
    return {leaf.qualified: leaf.value for leaf in flat.leaves}


def test_groups_and_names() -> None:
    tensors = [torch.zeros(1) for _ in range(6)]
    state = {
        "model": OrderedDict({"layer.0.weight": tensors[0], "layer.0.bias": tensors[1]}),
        "optim": {"state": {0: {"exp_avg": tensors[2]}, 1: {"exp_avg": tensors[3]}}, "param_groups": [{"lr": 0.1}]},
        "rng": tensors[4],
        "a/b c": [tensors[5]],
        "epoch": 3,
    }
    found = names(state)
    assert list(found) == [
        "layer.0.weight",
        "layer.0.bias",
        "optim/state.0.exp_avg",
        "optim/state.1.exp_avg",
        "extra/rng",
        "a_b_c/0",
    ]
    assert all(value is tensor for value, tensor in zip(found.values(), tensors, strict=True))
    assert same(round_trip(state), state)


def test_a_flat_dict_is_the_model() -> None:
    state = {"w": torch.zeros(1), "b": np.zeros(2)}
    assert list(names(state)) == ["w", "b"]
    assert same(round_trip(state), state)


def test_names_that_collide_and_names_that_files_cannot_hold() -> None:
    state: dict[str, Any] = {
        "model": {
            "a.b": torch.zeros(1),
            "a": {"b": torch.zeros(2)},
            "__metadata__": torch.zeros(3),
            "": torch.zeros(4),
        },
        "opt": {0: torch.zeros(1), "0": torch.zeros(2), "new\nline": torch.zeros(3)},
        "opt ": {0: torch.zeros(3)},
        "opt_": {0: torch.zeros(3)},
    }
    state["model"]["opt/0"] = torch.zeros(5)
    found = names(state)
    assert len(found) == 10
    assert "__metadata__" not in found
    assert all(name.isprintable() and name for name in found)
    assert same(round_trip(state), state)


LEAVES: list[Any] = [
    None,
    True,
    0,
    -(1 << 70),
    1.5,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-320,
    "",
    "$tensor",
    "text \ud800 \u20ac",
    b"",
    bytes(range(256)),
    bytearray(b"abc"),
    1 + 2j,
    complex(math.inf, -0.0),
    (),
    (1, ("a", None)),
    set(),
    {1, "a", (2, 3)},
    frozenset({1.5}),
    [],
    {},
    {"$tensor": "x"},
    {"$a": 1, "b": 2},
    {1: "int", "1": "str", None: 0, (1, 2): 3, 2.5: 1},
    OrderedDict([("b", 1), ("a", 2)]),
    OrderedDict([(1, 1)]),
    np.float32(1.25),
    np.int64(-3),
    np.bool_(True),
    np.float64(0.1),
    np.datetime64("2024-01-02"),
    np.str_("abc"),
    np.str_(""),
    np.bytes_(b""),
    torch.float16,
    torch.device("cuda:3"),
    torch.Size([1, 2]),
]


@pytest.mark.parametrize("value", LEAVES)
def test_values(value: Any) -> None:
    state = {"x": value, "y": [value, {"z": (value,)}]}
    assert same(round_trip(state), state)


def random_tree(random_: random.Random, depth: int) -> Any:
    kind = random_.randrange(8 if depth else 3)
    if kind == 0:
        return torch.zeros(random_.randrange(3))
    if kind <= 2:
        return random_.choice(LEAVES)
    inner = [random_tree(random_, depth - 1) for _ in range(random_.randrange(4))]
    if kind == 3:
        return inner
    if kind == 4:
        return tuple(inner)
    keys: list[Any] = [random_.choice(["a", "b.c", "$d", 0, 1, "0", "", (1,), None, 2.5]) for _ in inner]
    made = dict(zip(keys, inner, strict=True))
    return OrderedDict(made) if kind == 5 else made


@pytest.mark.parametrize("seed", range(300))
def test_any_tree_comes_back(seed: int) -> None:
    random_ = random.Random(seed)
    state = {random_.choice(["model", "optim", "a", 3, ""]): random_tree(random_, 4) for _ in range(4)}
    assert same(round_trip(state), state)


class Odd:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd)

    __hash__ = None  # type: ignore[assignment]


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(longshore.InvalidArgument, match=r"state_dict\['a'\]\[1\]\['b'\] is a .*Odd.*allow_pickle"):
        round_trip({"a": [1, {"b": Odd()}]})
    with pytest.raises(longshore.InvalidArgument, match=r"the key .*Odd"):
        round_trip({"b": {type("Odd", (), {})(): 1}})
    with pytest.raises(longshore.InvalidArgument, match="a state dict is a mapping, not list"):
        round_trip([])
    loop: dict[str, Any] = {}
    loop["again"] = loop
    with pytest.raises(longshore.InvalidArgument, match="nested too deeply"):
        round_trip(loop)


def test_pickles_are_asked_for_twice() -> None:
    state = {"a": Odd()}
    assert round_trip(state, allow_pickle=True) == state
    tree = _tree.flatten(state, _inputs.is_tensor, allow_pickle=True).tree
    with pytest.raises(longshore.FailedPrecondition, match=r"state_dict\['a'\] is pickled"):
        _tree.unflatten(tree, str)
    with pytest.raises(longshore.InvalidArgument, match="cannot be pickled"):
        _tree.flatten({"a": lambda: 1}, _inputs.is_tensor, allow_pickle=True)


def test_documents_of_others_and_of_newer_versions() -> None:
    assert _tree.parse(b"{}", "x") is None
    assert _tree.parse(b"[1", "x") is None
    with pytest.raises(longshore.Unsupported, match="newer"):
        _tree.parse(b'{"format": "longshore.state", "version": 2}', "x")
    with pytest.raises(longshore.Unsupported, match=r"\$later"):
        _tree.unflatten({"$later": 1}, str)
    wrongs: list[Any] = [{"$bytes": 1}, {"$dict": 3}, {"$numpy": ["<f4", ""]}, {"$torch.dtype": "none"}, {"$float": []}]
    for wrong in wrongs:
        with pytest.raises(longshore.Corrupt, match="cannot be read"):
            _tree.unflatten({"a": wrong}, str)


def test_documents_of_ranks_are_united() -> None:
    states = [
        {"model": {"a": torch.zeros(1)}, "optim": {0: {"s": 1}}, "epoch": 1},
        {"model": {"b": torch.zeros(1)}, "optim": {0: {"s": 2, "t": 3}, 1: 4}, "epoch": 1, "more": (1,)},
    ]
    documents = [
        _tree.Document(_tree.flatten(state, _inputs.is_tensor).tree, {f"x{rank}": "a", "y": str(rank)})
        for rank, state in enumerate(states)
    ]
    merged = _tree.merge(documents)
    assert merged.aliases == {"x0": "a", "x1": "a", "y": "0"}
    assert _tree.unflatten(merged.tree, str) == {
        "model": {"a": "a", "b": "b"},
        "optim": {0: {"s": 1, "t": 3}, 1: 4},
        "epoch": 1,
        "more": (1,),
    }


def test_names_of_documents() -> None:
    assert [_tree.state_name(rank) for rank in (0, 1, 123456)] == [
        "state.json",
        "state-00001.json",
        "state-123456.json",
    ]
    assert all(_tree.is_state_file(_tree.state_name(rank)) for rank in (0, 1, 123456))
    assert not any(map(_tree.is_state_file, ("a/state.json", "state-1.json", "state.json.gz")))
