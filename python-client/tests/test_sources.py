"""Sources: any part of any array or tensor, at any address."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from test_dtypes import torch_bytes

import longshore
from longshore import _inputs
from longshore._dtypes import DTYPES
from longshore._sources import ArraySource, BytesSource, FileSource, HostSource, TensorSource


def content(source: HostSource, cuts: list[int], shift: int = 0) -> bytes:
    """What a source copies when it is cut there."""
    memory = (ctypes.c_ubyte * (source.nbytes + 16)).from_buffer(bytearray(b"\xaa" * (source.nbytes + 16)))
    base = ctypes.addressof(memory)
    base += -base % 8 + shift
    ends = [*cuts, source.nbytes]
    for start, end in zip([0, *cuts], ends, strict=True):
        if end > start:
            source.copy(start, end - start, base + start)
    return ctypes.string_at(base, source.nbytes)


def cut(random_: random.Random, nbytes: int) -> list[int]:
    return sorted(random_.randrange(nbytes + 1) for _ in range(random_.randrange(5)))


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(4 * 6 * 10, dtype=torch.int32).reshape(4, 6, 10)
    return {
        "contiguous": base,
        "transposed": base.transpose(0, 2),
        "sliced": base[:, 1:5, ::3],
        "expanded": base[0, 0, :1].expand(5, 1),
        "scalar": base[1, 1, 1],
        "empty": base[:0],
        "flipped": base.flip(0),
        "bf16": base.to(torch.bfloat16).transpose(1, 2),
        "complex": torch.randn(3, 4, dtype=torch.complex64).T,
        "conjugate": torch.randn(3, 4, dtype=torch.complex64).conj(),
        "bool": base.bool().transpose(0, 1),
        "fp8": base.to(torch.float32).to(torch.float8_e4m3fn)[:, ::2],
        "doubles": base.double()[1:, :, 3:4],
        "grad": torch.nn.Parameter(torch.randn(5, 7)).T,
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
    }


@pytest.mark.parametrize("kind", tensors())
@pytest.mark.parametrize("seed", range(6))
def test_tensors(kind: str, seed: int) -> None:
    tensor = tensors()[kind]
    random_ = random.Random(seed)
    source = TensorSource(tensor)
    wanted = torch_bytes(tensor.detach().resolve_conj().resolve_neg().contiguous())
    assert source.nbytes == len(wanted)
    assert content(source, cut(random_, source.nbytes), random_.choice([0, 0, 1, 2, 4])) == wanted


def arrays() -> dict[str, Any]:
    base = np.arange(4 * 6 * 10, dtype=np.int32).reshape(4, 6, 10)
    frozen = base.copy()
    frozen.flags.writeable = False
    return {
        "contiguous": base,
        "read-only": frozen,
        "transposed": base.T,
        "sliced": base[:, ::-2, 3:],
        "scalar": np.array(3.5),
        "empty": base[:, :0],
        "bf16": base.astype(ml_dtypes.bfloat16)[:, ::2],
        "fp8": base.astype(ml_dtypes.float8_e5m2).T,
        "complex": (base + 1j * base).astype(np.complex64).T,
        "bool": base[:, :, ::3] > 50,
        "broadcast": np.broadcast_to(base[0], (3, 6, 10)),
    }


@pytest.mark.parametrize("kind", arrays())
@pytest.mark.parametrize("seed", range(6))
def test_arrays(kind: str, seed: int) -> None:
    array = arrays()[kind]
    random_ = random.Random(seed)
    source = ArraySource(array)
    assert content(source, cut(random_, source.nbytes), random_.choice([0, 0, 1, 2, 4])) == array.tobytes()


def test_arrays_of_the_other_byte_order() -> None:
    array = np.arange(10, dtype=">i4").reshape(2, 5)
    source = ArraySource(array)
    assert content(source, [3, 17]) == array.astype("<i4").tobytes()


def test_bytes_and_files(tmp_path: Path) -> None:
    for data in (b"", b"abc", bytearray(b"abcd"), memoryview(b"abcdef")[::1]):
        assert content(BytesSource(data), [1] if data else []) == bytes(data)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40)
    source = FileSource(str(path), 256 * 40)
    assert content(source, [5, 1000]) == path.read_bytes()
    path.write_bytes(b"short")
    with pytest.raises(longshore.FailedPrecondition, match=r"file.*became shorter"):
        content(source, [])


# ---- what is described


def test_every_dtype_of_torch() -> None:
    for name, known in DTYPES.items():
        if known.torch is None:
            continue
        tensor = torch.zeros(4, 6, dtype=torch.uint8)
        kind = getattr(torch, known.torch)
        item = kind.itemsize
        tensor = torch.zeros(4, 6 * item, dtype=torch.uint8).view(kind)
        found = _inputs.describe(tensor, "x")
        assert found is not None
        assert (found.dtype_name, found.shape) == (name, (4, 6 * known.torch_pack))
        assert found.source().nbytes == 24 * item


def test_every_dtype_of_numpy() -> None:
    for name, known in DTYPES.items():
        if known.numpy is None:
            continue
        kind = np.dtype(getattr(ml_dtypes, known.numpy) if known.extended else known.numpy)
        found = _inputs.describe(np.zeros((4, 6), dtype=kind), "x")
        assert found is not None
        assert (found.dtype_name, found.shape) == (name, (4, 6))


@pytest.mark.parametrize(
    ("make", "cls", "words"),
    [
        (lambda: torch.empty(3, device="meta"), longshore.InvalidArgument, "meta tensor"),
        (lambda: torch.eye(3).to_sparse(), longshore.Unsupported, "sparse"),
        (lambda: torch.eye(4).to_sparse_csr(), longshore.Unsupported, "sparse"),
        (lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), longshore.Unsupported, "nested"),
        (lambda: torch.zeros(2, dtype=torch.complex128), longshore.Unsupported, "complex128"),
        (lambda: np.zeros(2, dtype=object), longshore.Unsupported, "object"),
        (lambda: np.zeros(2, dtype=np.longdouble), longshore.Unsupported, "128"),
        (lambda: np.zeros(2, dtype=[("a", "i4")]), longshore.Unsupported, "dtype"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(Sparse|nested).*")
def test_what_is_refused(make: Any, cls: type[longshore.Error], words: str) -> None:
    with pytest.raises(cls, match=rf"where.*{words}"):
        _inputs.describe(make(), "where")


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_are_refused() -> None:
    tensor = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    with pytest.raises(longshore.Unsupported, match="quantized"):
        _inputs.describe(tensor, "where")


def test_identity() -> None:
    base = torch.zeros(4, 4)

    def identity(value: Any) -> Any:
        found = _inputs.describe(value, "x")
        assert found is not None
        return found.identity

    assert identity(base) == identity(base.view(4, 4)) == identity(torch.nn.Parameter(base))
    others = [base.T, base[0], base.view(2, 8), base.view(torch.int32), base.clone()]
    assert len({identity(each) for each in [base, *others]}) == 6
    assert identity(torch.zeros(0)) is None
    array = np.zeros(3)
    assert identity(array) == identity(array[:])
    assert identity(array) != identity(array[:2])
