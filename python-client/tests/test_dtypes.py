"""Every dtype of the format, in torch and numpy: the right dtype where there is one, else the bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from fake_loader import URI, FakeLoader, FakeModel

import longshore
from longshore._dtypes import DTYPES, expected_bytes

TORCH = {
    "BOOL": torch.bool,
    "F4": torch.float4_e2m1fn_x2,
    "F6_E2M3": None,
    "F6_E3M2": None,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
NUMPY = {
    "BOOL": np.bool_,
    "F4": None,
    "F6_E2M3": None,
    "F6_E3M2": None,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}


def content(dtype: str, shape: tuple[int, ...]) -> bytes:
    length = expected_bytes(dtype, shape)
    assert length is not None
    return bytes(index % 2 for index in range(length)) if dtype == "BOOL" else os.urandom(length)


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_the_table_is_the_format() -> None:
    """Names and bits, as the safetensors crate has them."""
    crates = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry/src"
    sources = sorted(crates.glob("*/safetensors-0.8.*/src/tensor.rs"))
    assert set(TORCH) == set(NUMPY) == set(DTYPES)
    if not sources:
        pytest.skip("the safetensors crate's source is not on this machine")
    source = sources[-1].read_text()
    bits = dict(re.findall(r"Dtype::(\w+) => (\d+),", source))
    assert {name: str(dtype.bits) for name, dtype in DTYPES.items()} == bits


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_torch(node: longshore.Node, loader: FakeLoader, shift: int) -> None:
    shape = (3, 8)
    stored = {name: (name, shape, content(name, shape)) for name in DTYPES}
    loader.models[URI] = FakeModel(tensors=dict(stored), shift=shift)
    with node.load(URI, framework="torch") as model:
        for name, dtype in TORCH.items():
            tensor = model[name]
            assert torch_bytes(tensor) == stored[name][2], name
            assert model.info(name).raw == (dtype is None)
            assert model.info(name).dtype_name == name
            assert model.info(name).shape == shape
            if dtype is None:
                assert (tensor.dtype, tensor.shape) == (torch.uint8, (len(stored[name][2]),))
            else:
                assert tensor.dtype == dtype
                assert tensor.shape == ((3, 4) if name == "F4" else shape)
                assert tensor.data_ptr() % dtype.itemsize == 0


@pytest.mark.parametrize("shift", [0, 1])
def test_numpy(node: longshore.Node, loader: FakeLoader, shift: int) -> None:
    shape = (3, 8)
    stored = {name: (name, shape, content(name, shape)) for name in DTYPES}
    loader.models[URI] = FakeModel(tensors=dict(stored), shift=shift)
    with node.load(URI, framework="numpy") as model:
        for name, dtype in NUMPY.items():
            array = model[name]
            assert array.tobytes() == stored[name][2], name
            assert not array.flags.writeable
            assert array.flags.aligned
            assert model.info(name).raw == (dtype is None)
            if dtype is None:
                assert (array.dtype, array.shape) == (np.uint8, (len(stored[name][2]),))
            else:
                assert (array.dtype, array.shape) == (np.dtype(dtype), shape)


def test_values_and_not_only_bytes(node: longshore.Node, loader: FakeLoader) -> None:
    wanted = torch.tensor([1.5, -2.0, 0.0])
    loader.models[URI] = FakeModel(
        tensors={
            "bf16": ("BF16", (3,), torch_bytes(wanted.to(torch.bfloat16))),
            "e4m3": ("F8_E4M3", (3,), torch_bytes(wanted.to(torch.float8_e4m3fn))),
            "scalar": ("F64", (), np.float64(7.25).tobytes()),
        }
    )
    model, arrays = node.load(URI, framework="torch"), node.load(URI, framework="numpy")
    for name in ("bf16", "e4m3"):
        assert torch.equal(model[name].float(), wanted)
        assert arrays[name].astype(np.float32).tolist() == wanted.tolist()
    assert model["scalar"].item() == arrays["scalar"].item() == 7.25
    assert model["scalar"].shape == arrays["scalar"].shape == ()


def test_what_torch_cannot_pack_or_does_not_know_is_bytes(node: longshore.Node, loader: FakeLoader) -> None:
    loader.models[URI] = FakeModel(
        tensors={"odd": ("F4", (2, 3), b"abc"), "new": ("F2_NEXT", (5, 5), b"1234567")},
    )
    frameworks: list[Any] = ["torch", "numpy"]
    for framework in frameworks:
        model: longshore.Model[Any] = node.load(URI, framework=framework)
        for name, wanted in (("odd", b"abc"), ("new", b"1234567")):
            assert bytes(model[name].tolist()) == wanted
            assert model.info(name).raw
    assert model.info("new").dtype_name == "F2_NEXT"
    assert model.info("new").shape == (5, 5)


BLOCKED = """
import sys
for name in sys.argv[3].split(","):
    sys.modules[name] = None
import longshore
model = longshore.connect(sys.argv[1]).load(sys.argv[2])
print(model.framework, model.info("t").raw, end=" ")
try:
    tensor = model["t"]
    print(tensor.dtype, tensor.tobytes() == bytes(range(8)))
except longshore.Unsupported as error:
    print(error, bytes(model.files["f"]))
"""


@pytest.mark.parametrize(
    ("blocked", "wanted"),
    [
        ("torch", "numpy False bfloat16 True"),
        ("torch,ml_dtypes", "numpy True uint8 True"),
        ("torch,numpy", "none True tensors need torch or numpy, and neither is installed"),
    ],
)
def test_without_the_packages(loader: FakeLoader, blocked: str, wanted: str) -> None:
    loader.models[URI] = FakeModel(tensors={"t": ("BF16", (4,), bytes(range(8)))}, files={"f": b"x"})
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED, loader.socket, URI, blocked], capture_output=True, text=True
    )
    assert run.stdout.startswith(wanted), run.stderr


def test_frameworks_that_are_none(node: longshore.Node, loader: FakeLoader) -> None:
    with pytest.raises(longshore.InvalidArgument, match="'jax' is not known"):
        node.load(URI, framework="jax")  # type: ignore[call-overload]
    assert not loader.requests
