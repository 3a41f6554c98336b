"""The dtypes of safetensors 0.8, and what each becomes in torch and numpy.

One rule where the framework lacks a dtype (packed 6-bit floats everywhere, packed 4-bit floats in numpy, an old torch,
numpy without ml_dtypes) and for a dtype that is unknown to this version: the tensor is a flat uint8 array of its
bytes. `Model.info` tells the stored dtype and shape, and that the tensor is raw.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Dtype:
    """Width and names of a dtype; None where the framework has none."""

    bits: int
    torch: str | None
    numpy: str | None
    #: The numpy name is one of ml_dtypes.
    extended: bool = False
    #: Elements that one element of the torch dtype packs.
    torch_pack: int = 1


DTYPES: dict[str, Dtype] = {
    "BOOL": Dtype(8, "bool", "bool"),
    # ml_dtypes has a float4 too, but with one element a byte: not the packed form that files hold.
    "F4": Dtype(4, "float4_e2m1fn_x2", None, torch_pack=2),
    "F6_E2M3": Dtype(6, None, None),
    "F6_E3M2": Dtype(6, None, None),
    "U8": Dtype(8, "uint8", "uint8"),
    "I8": Dtype(8, "int8", "int8"),
    "F8_E5M2": Dtype(8, "float8_e5m2", "float8_e5m2", extended=True),
    "F8_E4M3": Dtype(8, "float8_e4m3fn", "float8_e4m3fn", extended=True),
    "F8_E8M0": Dtype(8, "float8_e8m0fnu", "float8_e8m0fnu", extended=True),
    "F8_E4M3FNUZ": Dtype(8, "float8_e4m3fnuz", "float8_e4m3fnuz", extended=True),
    "F8_E5M2FNUZ": Dtype(8, "float8_e5m2fnuz", "float8_e5m2fnuz", extended=True),
    "I16": Dtype(16, "int16", "int16"),
    "U16": Dtype(16, "uint16", "uint16"),
    "F16": Dtype(16, "float16", "float16"),
    "BF16": Dtype(16, "bfloat16", "bfloat16", extended=True),
    "I32": Dtype(32, "int32", "int32"),
    "U32": Dtype(32, "uint32", "uint32"),
    "F32": Dtype(32, "float32", "float32"),
    "C64": Dtype(64, "complex64", "complex64"),
    "F64": Dtype(64, "float64", "float64"),
    "I64": Dtype(64, "int64", "int64"),
    "U64": Dtype(64, "uint64", "uint64"),
}


def expected_bytes(name: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None when the dtype is unknown, -1 when the bits do not fill whole bytes."""
    dtype = DTYPES.get(name)
    if dtype is None:
        return None
    bits = dtype.bits * prod(shape)
    return bits // 8 if bits % 8 == 0 else -1
