"""The arguments of a tensor-parallel load, and what a model says about its part."""

from __future__ import annotations

from typing import Any

import pytest
from fake_loader import URI, FakeLoader, FakeModel

import longshore
from longshore import Expert, FusedPart, Parallel, Replicate, Split
from longshore._proto import loader_pb2

RULES: dict[str, longshore.Replicate | longshore.Split | longshore.Expert] = {
    "*.qkv_proj.weight": Split(0, [4096, FusedPart(1024, 2), FusedPart(1024, 2)]),
    "*.o_proj.weight": Split(1),
    "*.experts.{expert}.*": Expert(),
    "*": Replicate(),
}


def test_the_rules_travel_in_order(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    model = node.load(URI, "host", parallel=Parallel(3, 8, RULES))
    sent = loader.requests[0].parallel
    assert (sent.rank, sent.world_size, [rule.pattern for rule in sent.rules]) == (3, 8, list(RULES))
    assert [rule.WhichOneof("rule") for rule in sent.rules] == ["split", "split", "expert", "replicate"]
    part = loader_pb2.FusedPart
    assert list(sent.rules[0].split.parts) == [part(size=4096, replicas=1), *[part(size=1024, replicas=2)] * 2]
    assert (sent.rules[1].split.dim, len(sent.rules[1].split.parts)) == (1, 0)
    assert (model.rank, model.world_size) == (3, 8)
    assert "rank 3 of 8" in repr(model)
    (info,) = node.models()
    assert (info.rank, info.world_size) == (3, 8)


def test_a_whole_model_is_rank_0_of_1(node: longshore.Node, small: FakeModel) -> None:
    model = node.load(URI)
    assert (model.rank, model.world_size) == (0, 1)
    assert "rank" not in repr(model)
    assert node.models()[0].world_size == 1


def test_rules_are_pairs_or_a_mapping() -> None:
    assert Parallel(0, 2, RULES) == Parallel(0, 2, list(RULES.items()))
    assert Parallel(0, 2).to_proto() == loader_pb2.Parallel(world_size=2)


WRONG: dict[str, Any] = {
    "0 to 7, not 8": lambda: Parallel(8, 8),
    "0 to 7, not -1": lambda: Parallel(-1, 8),
    "the world size": lambda: Parallel(0, 0),
    "not True": lambda: Parallel(True, 2),
    "pair of a pattern": lambda: Parallel(0, 2, ["*.weight"]),  # type: ignore[list-item]
    "at least one character": lambda: Parallel(0, 2, {"": Replicate()}),
    "Replicate, Split or Expert, not 0": lambda: Parallel(0, 2, {"*": 0}),  # type: ignore[dict-item]
    r"has one \{expert\}": lambda: Parallel(0, 2, {"*.experts.*": Expert()}),
    r"no other has any": lambda: Parallel(0, 2, {"*.{expert}.*": Replicate()}),
    "groups of 3": lambda: Parallel(0, 8, {"*": Split(0, [FusedPart(64, 3)])}),
    "the dimension": lambda: Split(-1),
    "with at least one": lambda: Split(0, []),
    "list of sizes": lambda: Split(0, "ab"),  # type: ignore[arg-type]
    "the size of a part": lambda: Split(0, [0]),
    "the replicas": lambda: FusedPart(8, 0),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_meant_is_refused(words: str) -> None:
    with pytest.raises(longshore.InvalidArgument, match=words):
        WRONG[words]()


def test_only_a_parallel_is_taken(node: longshore.Node) -> None:
    with pytest.raises(longshore.InvalidArgument, match=r"takes a longshore\.Parallel"):
        node.load(URI, parallel=(0, 2))  # type: ignore[call-overload]
