"""Accelerate: its own state folder, kept as one checkpoint.

python train_accelerate.py s3://bucket/run
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import longshore
import torch
from accelerate import Accelerator
from longshore.torch.folder import restore_folder, save_folder
from torch import nn

STEPS, SAVE_EVERY = 40, 10


def main(run: str) -> None:
    """Trains."""
    accelerator = Accelerator(cpu=True)
    scratch = Path(tempfile.mkdtemp())
    model: nn.Module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))

    first = 0
    newest = longshore.latest(run)
    if newest is not None:
        accelerator.load_state(str(restore_folder(run, scratch / "restored", step=newest.step)))
        first = newest.step
        print(f"goes on after step {first}")

    saving = None
    for step in range(first + 1, STEPS + 1):
        data = torch.randn(32, 64)
        loss = (model(data) - data).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step % SAVE_EVERY == 0:
            folder = scratch / f"step-{step}"
            accelerator.save_state(str(folder))
            if accelerator.is_main_process:
                # Returns when everything is copied; the upload goes on.
                saving = save_folder(folder, run, step=step, keep=2)
                print(f"step {step}: loss {loss.item():.4f}, saving")
    if saving is not None:
        saving.result()
        print(f"committed: {saving.url}")


if __name__ == "__main__":
    main(sys.argv[1])
