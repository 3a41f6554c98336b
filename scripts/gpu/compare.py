"""Whether tensors hold what the files hold: byte for byte on the CPU, or by sums over all bytes where they lie."""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

THREADS = 8
#: Elements that are summed at once: what the sums need on the side is bounded by it.
PIECE = 1 << 24

Expected = Callable[[str, torch.Tensor], "torch.Tensor | None"]


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file and where its data begins."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, flat; a copy only when its elements do not follow each other."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def in_files(files: Sequence[str]) -> dict[str, tuple[torch.Tensor, str, list[int]]]:
    """Each tensor's bytes in the files, without reading them yet, with dtype and shape as written."""
    found = {}
    for name in files:
        header, base = header_of(Path(name))
        with open(name, "rb") as file:
            # Private and writable, so that torch does not complain; nothing is written.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for tensor, entry in header.items():
            start, end = entry["data_offsets"]
            flat = torch.empty(0, dtype=torch.uint8)
            if end > start:
                flat = torch.frombuffer(mapped, dtype=torch.uint8, count=end - start, offset=base + start)
            found[tensor] = (flat, entry["dtype"], entry["shape"])
    return found


def differences(tensors: Mapping[str, torch.Tensor], files: Sequence[str]) -> tuple[int, int, list[str]]:
    """Tensors and bytes that were compared, and what differs: missing, surplus, other bytes, another shape."""
    wanted = in_files(files)
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    wrong += [f"{name} is in no file" for name in sorted(tensors.keys() - wanted.keys())]

    def check(name: str) -> tuple[int, str | None]:
        flat, dtype, shape = wanted[name]
        tensor = tensors[name]
        found = as_bytes(tensor).cpu()
        if not torch.equal(found, flat):
            return 0, f"{name} ({dtype} {shape}) has other bytes than its file"
        # Packed and unknown dtypes have another shape in torch; their bytes were compared.
        same = list(tensor.shape) == shape or tensor.dtype == torch.uint8 or dtype.startswith("F4")
        return len(flat), None if same else f"{name} has shape {list(tensor.shape)}, its file {shape}"

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(check, [name for name in wanted if name in tensors]))
    wrong += [text for _, text in results if text]
    return len(results), sum(count for count, _ in results), wrong


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Equal for equal names and bytes: a sum and a sum weighted by place of each tensor, made where it lies."""
    names, sums = sorted(tensors), []
    for name in names:
        flat = as_bytes(tensors[name])
        whole = flat.numel() // 8 * 8
        body, tail = flat[:whole], flat[whole:].to(torch.int64)
        if body.data_ptr() % 8:
            body = body.clone()
        words = body.view(torch.int64)
        plain = tail.sum()
        weighted = (tail * torch.arange(1, tail.numel() + 1, device=tail.device)).sum()
        for start in range(0, words.numel(), PIECE):
            piece = words[start : start + PIECE]
            plain = plain + piece.sum()
            place = torch.arange(start + 1, start + 1 + piece.numel(), device=piece.device)
            weighted = weighted + (piece * place).sum()
        sums += [plain, weighted]
    values = torch.stack(sums).cpu().tolist() if sums else []
    return hashlib.sha256(json.dumps([names, values]).encode()).hexdigest()


def of_one(tensor: torch.Tensor) -> int:
    """A sum over the bytes of one tensor, cheap enough to repeat while something else is measured."""
    return int(as_bytes(tensor).sum(dtype=torch.int64).item())
