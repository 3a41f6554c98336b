"""Lightning with a CheckpointIO that saves in the background.

python train_lightning.py s3://bucket/run
"""

from __future__ import annotations

import sys
import tempfile

import longshore
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from longshore.torch.lightning import LongshoreCheckpointIO
from torch import nn
from torch.utils.data import DataLoader


class Autoencoder(LightningModule):
    """Learns to give back what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64))

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """The loss of a batch."""
        return (self.layers(batch) - batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(run: str) -> None:
    """Trains."""
    newest = longshore.latest(run)
    trainer = Trainer(
        max_steps=40,
        plugins=[LongshoreCheckpointIO(run, keep=2)],
        callbacks=[ModelCheckpoint(tempfile.mkdtemp(), every_n_train_steps=10)],
        logger=False,
    )
    data = DataLoader(torch.randn(320, 64), batch_size=8)
    trainer.fit(Autoencoder(), data, ckpt_path=None if newest is None else newest.url, weights_only=False)


if __name__ == "__main__":
    main(sys.argv[1])
