"""FSDP2 and torch.distributed.checkpoint: saves in the background, goes on after a restart with any number of ranks.

torchrun --nproc-per-node 2 train_dcp.py s3://bucket/run
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from typing import Any

import longshore
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from longshore.torch.checkpoint import LongshoreReader, LongshoreWriter
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

STEPS, SAVE_EVERY = 40, 10


def main(run: str) -> None:
    """Trains."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    if dist.is_initialized():
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    first = 0
    if longshore.latest(run) is not None:
        state: dict[str, Any] = dict(zip(("model", "optim"), get_state_dict(model, optimizer), strict=True), step=0)
        dcp.load(state, storage_reader=LongshoreReader(run, step="latest"))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        first = state["step"]
        print(f"goes on after step {first}")

    writer = LongshoreWriter(keep=2)
    saving: Future[Any] | None = None
    for step in range(first + 1, STEPS + 1):
        data = torch.randn(32, 64)
        loss = (model(data) - data).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % SAVE_EVERY == 0:
            if saving is not None:
                saving.result()
            weights, moments = get_state_dict(model, optimizer)
            writer.aim(run, step)
            # Returns when everything is copied into the loader's memory: training may go on.
            saving = dcp.async_save({"model": weights, "optim": moments, "step": step}, storage_writer=writer)
            print(f"step {step}: loss {loss.item():.4f}, saving")
    if saving is not None:
        saving.result()
        print(f"committed: {writer.checkpoint_id}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
