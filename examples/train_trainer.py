"""The Trainer of transformers: its checkpoints go to the bucket, where `from_pretrained` can read each of them.

python train_trainer.py s3://bucket/run
"""

from __future__ import annotations

import sys
import tempfile

import torch
from longshore.torch.trainer import LongshoreCallback, restore
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Sequences to learn by heart."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) + index) % 64
        return {"input_ids": tokens, "labels": tokens}


def main(run: str) -> None:
    """Trains."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    )
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=40,
        save_steps=10,
        save_total_limit=1,
        logging_steps=10,
        report_to=[],
    )
    trainer = Trainer(model, arguments, train_dataset=Counting(), callbacks=[LongshoreCallback(run, keep=2)])
    # None when nothing is committed yet: then the training begins.
    trainer.train(resume_from_checkpoint=restore(run, arguments.output_dir))


if __name__ == "__main__":
    main(sys.argv[1])
