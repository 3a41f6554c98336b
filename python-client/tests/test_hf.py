"""Hugging Face: what lies in the bucket is read by transformers and safetensors as it is, and the other way round."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from e2e_support import Daemon
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

import longshore
from longshore.torch.checkpoint import LongshoreReader, LongshoreWriter
from longshore.torch.folder import restore_folder, save_folder

dcp: Any = importlib.import_module("torch.distributed.checkpoint")

pytestmark = [
    pytest.mark.e2e,
    # Of other packages, and of torch without a process group.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("loader")
    running = Daemon(
        folder / "sockets",
        "--memory",
        "1GiB",
        "--checkpoint-memory",
        "512MiB",
        "--checkpoint-dir",
        str(folder / "saves"),
    )
    yield running
    running.close()


@pytest.fixture
def address(daemon: Daemon) -> str:
    return str(daemon.folder)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def llama(*, tied: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def config_of(model: Any) -> dict[str, bytes]:
    return {"config.json": model.config.to_json_string().encode()}


def check(folder: Path, model: Any) -> None:
    """That plain tools find the model in a folder."""
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    wanted = model.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    package: Any = safetensors
    for name, file in index["weight_map"].items():
        with package.safe_open(folder / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert torch.equal(opened.get_tensor(name), wanted[name]), name
    stored = set(index["weight_map"])
    assert stored | ({"lm_head.weight"} if model.config.tie_word_embeddings else set()) == set(wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_from_pretrained_reads_what_save_wrote(bucket: Path, address: str, tied: bool) -> None:
    model = llama(tied=tied)
    longshore.save(
        {"model": model.state_dict(), "optim": {"lr": 0.1, "m": torch.ones(3)}},
        f"file://{bucket}",
        step=5,
        layout="huggingface",
        files=config_of(model),
        address=address,
        wait="committed",
    )
    check(bucket / "step-5", model)


def test_from_pretrained_reads_what_the_writer_wrote(bucket: Path, address: str) -> None:
    model = llama()
    writer = LongshoreWriter(f"file://{bucket}", step=6, layout="huggingface", files=config_of(model), address=address)
    dcp.async_save({"model": model.state_dict(), "epoch": 2}, storage_writer=writer).result()
    check(bucket / "step-6", model)
    # And a shard of it: the same files by the package alone, mirrored as any tool does.
    found = longshore.load(f"file://{bucket}/step-6", framework="torch", address=address)
    assert torch.equal(found["lm_head.weight"], model.state_dict()["lm_head.weight"])


def test_the_reader_reads_hugging_face_folders(bucket: Path, address: str) -> None:
    model, other = llama(), llama()
    model.save_pretrained(bucket / "model", max_shard_size="20KB")
    assert len(list((bucket / "model").glob("*.safetensors"))) > 1
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    state = other.state_dict()
    dcp.load(state, storage_reader=LongshoreReader(f"file://{bucket}/model", address=address))
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


class Tokens(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(8) * (index + 1)) % 64
        return {"input_ids": tokens, "labels": tokens}


def test_trainer_goes_on_from_the_bucket(bucket: Path, tmp_path: Path, address: str) -> None:
    from transformers import Trainer, TrainingArguments

    from longshore.torch.trainer import LongshoreCallback, restore

    def train(name: str, steps: int, resume: str | None, callbacks: list[Any]) -> Any:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name),
            max_steps=6,
            save_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
            save_total_limit=1,
            logging_strategy="no",
        )
        torch.manual_seed(0)
        trainer = Trainer(model=llama().float(), args=arguments, train_dataset=Tokens(), callbacks=callbacks)
        if steps < arguments.max_steps:
            from transformers import TrainerCallback

            class Stop(TrainerCallback):  # type: ignore[misc]
                def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                    control.should_training_stop = state.global_step >= steps

            trainer.add_callback(Stop())
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    run = f"file://{bucket}"
    assert restore(run, tmp_path / "second", address=address) is None
    train("first", 4, None, [LongshoreCallback(run, address=address, keep=2)])
    assert [each.step for each in longshore.list(run, address=address)] == [2, 4]
    folder = restore(run, tmp_path / "second", address=address)
    assert folder == str(tmp_path / "second/checkpoint-4")
    weights = load_file(Path(folder) / "model.safetensors")
    for name, tensor in _at(bucket / "step-4").state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    resumed = train("second", 6, folder, [])
    wanted = train("third", 6, None, [])
    for (name, found), expected in zip(resumed.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def _at(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_accelerate_states_come_back(bucket: Path, tmp_path: Path, address: str) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = nn.Linear(4, 3)
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    accelerator.save_state(str(tmp_path / "state"))
    save_folder(tmp_path / "state", f"file://{bucket}", step=1, address=address).result(60)
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    restored = restore_folder(f"file://{bucket}", tmp_path / "again", address=address)
    accelerator.load_state(str(restored))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert sorted(each.name for each in restored.iterdir()) == sorted(
        each.name for each in (tmp_path / "state").iterdir()
    )
    with pytest.raises(longshore.FailedPrecondition, match="exists already"):
        restore_folder(f"file://{bucket}", tmp_path / "again", address=address)


def test_lightning_goes_on_from_the_bucket(bucket: Path, tmp_path: Path, address: str) -> None:
    from lightning.pytorch import LightningModule, Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    from longshore.torch.lightning import LongshoreCheckpointIO

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            loss = self.layer(batch).square().mean()
            assert isinstance(loss, torch.Tensor)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    def fit(steps: int, plugins: list[Any], path: str | None, callbacks: list[Any]) -> Any:
        seed_everything(1, verbose=False)
        module = Module()
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            plugins=plugins,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        rows: Any = torch.arange(64.0).reshape(16, 4) / 64
        data: Any = DataLoader(rows, batch_size=2)
        trainer.fit(module, data, ckpt_path=path, weights_only=False)
        return module.layer

    run = f"file://{bucket}"
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "own", every_n_train_steps=2, save_top_k=1, save_last=True)
    io = LongshoreCheckpointIO(run, address=address)
    fit(4, [io], None, [checkpoints])
    io.teardown()
    assert [each.step for each in longshore.list(run, address=address)][-1] == 4
    # As Lightning's own files do.
    plain = ModelCheckpoint(dirpath=tmp_path / "plain", every_n_train_steps=2, save_top_k=1)
    fit(4, [], None, [plain])
    wanted = fit(6, [], plain.best_model_path, [])
    for path in (f"{run}/step-4", checkpoints.best_model_path, checkpoints.last_model_path):
        found = fit(6, [LongshoreCheckpointIO(run, address=address)], path, [])
        torch.testing.assert_close(found.weight, wanted.weight)
    names = set(longshore.load(run, step=4, address=address))
    assert {"layer.weight", "layer.bias"} <= names
