"""Longshore as a subject, and the checkpoint that everybody saves."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import longshore
import torch
from daemons import Daemon, cpu_seconds

#: A save that takes longer has failed.
SECONDS = 300.0


@dataclass
class Measure:
    """One measurement: wall-clock and CPU seconds of every process that took part."""

    seconds: float
    cpu_seconds: float


@dataclass
class Saved:
    """What was measured along with a stall."""

    local_durable: Measure | None = None
    committed: Measure | None = None


def state_dict(size_bytes: int) -> dict[str, dict[str, torch.Tensor]]:
    """Shapes of a decoder in BF16: large matrices, and small vectors between them."""
    hidden, inner = 2048, 5632
    shapes = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 8, hidden),
        "self_attn.v_proj": (hidden // 8, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found: dict[str, torch.Tensor] = {}
    layer = total = 0
    while total < size_bytes:
        for name, shape in shapes.items():
            tensor = torch.randn(shape, dtype=torch.bfloat16)
            found[f"model.layers.{layer}.{name}.weight"] = tensor
            total += tensor.nbytes
        layer += 1
    return {"model": found}


def own_cpu() -> float:
    """CPU seconds of this process."""
    times = os.times()
    return times.user + times.system


class Subject:
    """Saves through the loader that runs."""

    def __init__(self, loader: Daemon) -> None:
        self._loader = loader

    def _cpu(self) -> float:
        return own_cpu() + cpu_seconds(self._loader.pid)

    def save(self, state: dict[str, dict[str, torch.Tensor]], uri: str, number: int, saved: Saved) -> Measure:
        """The stall; fills in what came after it."""
        start, cpu = time.perf_counter(), self._cpu()
        handle = longshore.save(state, uri, step=number, keep=1)
        stall = Measure(time.perf_counter() - start, self._cpu() - cpu)
        handle.local_durable.result(SECONDS)
        saved.local_durable = Measure(time.perf_counter() - start, self._cpu() - cpu)
        handle.committed.result(SECONDS)
        saved.committed = Measure(time.perf_counter() - start, self._cpu() - cpu)
        return stall

    def save_here(self, state: dict[str, dict[str, torch.Tensor]], uri: str, number: int) -> Measure:
        """From the call until local durable, to a store that takes nothing; then it is given up."""
        start, cpu = time.perf_counter(), self._cpu()
        handle = longshore.save(state, uri, step=number)
        handle.local_durable.result(SECONDS)
        measured = Measure(time.perf_counter() - start, self._cpu() - cpu)
        handle.cancel()
        return measured

    def save_committed(self, state: dict[str, dict[str, torch.Tensor]], uri: str, number: int) -> Measure:
        """From the call to the commit."""
        saved = Saved()
        self.save(state, uri, number, saved)
        assert saved.committed is not None
        return saved.committed
