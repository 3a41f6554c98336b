"""Exceptions mirror the codes."""

from __future__ import annotations

import pickle
import re

import grpc
import pytest
from fake_loader import URI, FakeLoader, RpcFailure, repository

import longshore
from longshore._errors import BY_CODE, BY_EXIT_CODE

BUILTINS = {
    longshore.NotFound: FileNotFoundError,
    longshore.PermissionDenied: PermissionError,
    longshore.Unauthenticated: PermissionError,
    longshore.Timeout: TimeoutError,
    longshore.Exhausted: MemoryError,
    longshore.Unavailable: ConnectionError,
    longshore.InvalidArgument: ValueError,
    longshore.Unsupported: NotImplementedError,
}


def test_every_code_of_the_daemons_has_a_class() -> None:
    source = (repository() / "crates/types/src/error.rs").read_text()
    names = dict(re.findall(r'Code::(\w+) => "(\w+)"', source))
    assert set(names.values()) == set(BY_CODE)
    assert len(names) == 12
    exits = {int(number): names[name] for name, number in re.findall(r"Code::(\w+) => (\d+),", source)}
    assert exits == {number: cls.code for number, cls in BY_EXIT_CODE.items()}


@pytest.mark.parametrize("code", BY_CODE)
def test_the_exact_code_travels_in_the_trailing_metadata(loader: FakeLoader, node: longshore.Node, code: str) -> None:
    # One status for all: what counts is the header.
    loader.failure = RpcFailure(grpc.StatusCode.UNKNOWN, f"reading {URI}: because", code)
    for call in (lambda: node.load(URI), node.models, node.status, lambda: node.unload(URI)):
        with pytest.raises(BY_CODE[code]) as caught:
            call()
        assert str(caught.value) == f"reading {URI}: because"
        assert caught.value.code == code
        assert isinstance(caught.value, longshore.Error)


def test_without_the_header_the_status_decides(loader: FakeLoader, node: longshore.Node) -> None:
    loader.failure = RpcFailure(grpc.StatusCode.DATA_LOSS, "torn", None)
    with pytest.raises(longshore.Corrupt, match="Status: torn"):
        node.status()
    loader.failure = RpcFailure(grpc.StatusCode.UNKNOWN, "odd", "from_the_future")
    with pytest.raises(longshore.Internal, match="odd"):
        node.status()


@pytest.mark.parametrize("cls", BY_CODE.values())
def test_classes_are_also_builtins_and_survive_pickling(cls: type[longshore.Error]) -> None:
    error = cls("a: b")
    assert isinstance(error, BUILTINS.get(cls, longshore.Error))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.message) == (cls, "a: b", "a: b")
    assert error.is_retryable == (cls.code in {"unavailable", "timeout", "corrupt"})
